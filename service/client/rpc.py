"""The client over gRPC: messages from values, values from messages, statuses to errors. Retries are decided above."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from service.client.errors import (
    ConnectionFailedError,
    FieldProblem,
    HandPoseError,
    RejectedError,
    ServerFailedError,
    TimedOutError,
    TryAgainError,
)
from service.client.tls import Tls
from service.client.transport import BatchResults, EncodedFrame, Headers
from service.client.types import (
    Estimate,
    Hand,
    Keypoint,
    Model,
    ModelUsed,
    StreamAnswer,
    StreamOptions,
    Timings,
)
from service.pose.geometry import Box
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc

_LARGEST_MESSAGE: Final = 64 * 1024 * 1024
_STATUS_DETAILS: Final = "grpc-status-details-bin"

_ERROR_OF: Final[dict[int, type[HandPoseError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: RejectedError,
    grpc.StatusCode.NOT_FOUND.value[0]: RejectedError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: RejectedError,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: RejectedError,
    grpc.StatusCode.UNIMPLEMENTED.value[0]: RejectedError,
    grpc.StatusCode.UNAVAILABLE.value[0]: TryAgainError,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: TimedOutError,
}
_EXHAUSTED: Final[int] = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


class RpcTransport:
    """Implements `service.client.transport.Transport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        target, secure = _target(url)
        credentials = tls.credentials() if secure else None
        self._channel = (
            grpc.secure_channel(target, credentials, _OPTIONS)
            if credentials is not None
            else grpc.insecure_channel(target, _OPTIONS)
        )
        self._stub: Any = hand_pose_pb2_grpc.HandPoseServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def estimate(self, image: bytes, rois: Sequence[Box], headers: Headers, timeout_s: float) -> Estimate:
        try:
            return _estimate(
                self._stub.Estimate(_request(image, rois), timeout=timeout_s, metadata=tuple(headers.items()))
            )
        except grpc.RpcError as error:
            raise _error(error) from error

    def estimate_batch(self, images: Sequence[bytes], headers: Headers, timeout_s: float) -> BatchResults:
        try:
            answer = self._stub.EstimateBatch(_batch(images), timeout=timeout_s, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            raise _error(error) from error
        return [_result(each) for each in answer.results]

    def stream(
        self, frames: Iterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> Generator[StreamAnswer, None, None]:
        failures: list[Exception] = []

        def messages() -> Iterator[pb.EstimateStreamRequest]:
            yield _options_message(options)
            try:
                for frame in frames:
                    yield _frame_message(frame)
            except Exception as error:
                failures.append(error)  # gRPC would only say that iterating failed
                raise

        call = self._stub.EstimateStream(messages(), metadata=tuple(headers.items()))
        try:
            for answer in call:
                yield _stream_answer(answer)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise _error(error) from error
        finally:
            call.cancel()

    def models(self, headers: Headers, timeout_s: float) -> list[Model]:
        try:
            answer = self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            raise _error(error) from error
        return [_model(each) for each in answer.models]

    def close(self) -> None:
        self._channel.close()


class AsyncRpcTransport:
    """Implements `service.client.transport.AsyncTransport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        target, secure = _target(url)
        self._channel = (
            grpc.aio.secure_channel(target, tls.credentials(), _OPTIONS)
            if secure
            else grpc.aio.insecure_channel(target, _OPTIONS)
        )
        self._stub: Any = hand_pose_pb2_grpc.HandPoseServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def estimate(self, image: bytes, rois: Sequence[Box], headers: Headers, timeout_s: float) -> Estimate:
        try:
            return _estimate(
                await self._stub.Estimate(_request(image, rois), timeout=timeout_s, metadata=tuple(headers.items()))
            )
        except grpc.RpcError as error:
            raise _error(error) from error

    async def estimate_batch(self, images: Sequence[bytes], headers: Headers, timeout_s: float) -> BatchResults:
        try:
            answer = await self._stub.EstimateBatch(_batch(images), timeout=timeout_s, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            raise _error(error) from error
        return [_result(each) for each in answer.results]

    async def stream(
        self, frames: AsyncIterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> AsyncGenerator[StreamAnswer, None]:
        failures: list[Exception] = []

        async def messages() -> AsyncIterator[pb.EstimateStreamRequest]:
            # The service's headers come first. Without them it has refused, and writing to it would only hide why.
            if not await call.initial_metadata():
                return
            yield _options_message(options)
            try:
                async for frame in frames:
                    yield _frame_message(frame)
            except Exception as error:
                failures.append(error)  # gRPC would only say that iterating failed
                raise

        call = self._stub.EstimateStream(messages(), metadata=tuple(headers.items()))
        try:
            async for answer in call:
                yield _stream_answer(answer)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise _error(error) from error
        finally:
            call.cancel()

    async def models(self, headers: Headers, timeout_s: float) -> list[Model]:
        try:
            answer = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=tuple(headers.items())
            )
        except grpc.RpcError as error:
            raise _error(error) from error
        return [_model(each) for each in answer.models]

    async def close(self) -> None:
        await self._channel.close()


_OPTIONS: Final = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_send_message_length", -1),  # the server says what is too large
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def _target(url: str) -> tuple[str, bool]:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or 8001}", parts.scheme == "grpcs"


# Messages


def _request(image: bytes, rois: Sequence[Box]) -> pb.EstimateRequest:
    return pb.EstimateRequest(image=image, rois=[_box_message(roi) for roi in rois])


def _batch(images: Sequence[bytes]) -> pb.EstimateBatchRequest:
    return pb.EstimateBatchRequest(requests=[pb.EstimateRequest(image=image) for image in images])


def _box_message(box: Box) -> pb.Box:
    return pb.Box(x=box.x, y=box.y, width=box.width, height=box.height)


def _options_message(options: StreamOptions) -> pb.EstimateStreamRequest:
    message = pb.StreamOptions(tracking=options.tracking, latest_only=options.latest_only)
    if options.smoothing is not None:
        message.smoothing.min_cutoff_hz = options.smoothing.min_cutoff_hz
        message.smoothing.beta = options.smoothing.beta
        message.smoothing.derivative_cutoff_hz = options.smoothing.derivative_cutoff_hz
    if options.frame_timeout_s is not None:
        message.frame_timeout.FromNanoseconds(round(options.frame_timeout_s * 1e9))
    return pb.EstimateStreamRequest(options=message)


def _frame_message(frame: EncodedFrame) -> pb.EstimateStreamRequest:
    return pb.EstimateStreamRequest(
        frame=pb.Frame(
            image=frame.image, id=frame.id, time_s=frame.time_s, rois=[_box_message(roi) for roi in frame.rois]
        )
    )


# Answers


def _estimate(message: pb.EstimateResponse) -> Estimate:
    model, timings = message.model, message.timings
    return Estimate(
        request_id=message.request_id,
        model=ModelUsed(model.name, model.variant, model.version, model.label or None, model.routed_by),
        image_size=(message.image.width, message.image.height),
        hands=tuple(
            Hand(
                score=hand.score,
                box=Box(hand.box.x, hand.box.y, hand.box.width, hand.box.height),
                keypoints=tuple(
                    Keypoint(
                        point.id,
                        point.name,
                        point.x,
                        point.y,
                        point.x_norm,
                        point.y_norm,
                        point.score,
                        point.sigma,
                    )
                    for point in hand.keypoints
                ),
            )
            for hand in message.hands
        ),
        timings_ms=Timings(
            timings.decode_ms, timings.queue_ms, timings.inference_ms, timings.postprocess_ms, timings.total_ms
        ),
    )


def _result(message: pb.EstimateResult) -> Estimate | HandPoseError:
    if message.HasField("problem"):
        return _problem(message.problem)
    return _estimate(message.estimate)


def _stream_answer(message: pb.EstimateStreamResponse) -> StreamAnswer:
    return StreamAnswer(
        frame_id=message.frame_id,
        estimate=_estimate(message.estimate) if message.HasField("estimate") else None,
        error=_problem(message.problem) if message.HasField("problem") else None,
        tracked=message.tracked,
        skipped=message.skipped,
        track_ids=tuple(message.track_ids),
    )


def _model(message: pb.Model) -> Model:
    return Model(
        name=message.name,
        variant=message.variant,
        version=message.version,
        labels=tuple(message.labels),
        input_size=message.input_size,
        stride=message.stride,
        parameters=message.parameters or None,
        created=message.created,
        metrics=json.loads(message.metrics_json or "{}"),
    )


# Errors


def _problem(message: pb.Problem) -> HandPoseError:
    return _class_of(message.status, message.code)(
        message.code,
        message.detail,
        retry_after_s=message.retry_after.ToNanoseconds() / 1e9 if message.HasField("retry_after") else None,
        errors=[FieldProblem(each.field, each.message) for each in message.errors],
    )


def _error(error: Any) -> HandPoseError:
    """What a gRPC error means; `error` is a grpc.Call, too, which its type does not say."""
    raw = dict(error.trailing_metadata() or ()).get(_STATUS_DETAILS)
    if raw is None:
        return _plain_error(error.code(), error.details() or "")
    status = status_pb2.Status.FromString(raw)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    has_retry = _unpack(status.details, retry)
    _unpack(status.details, info)
    _unpack(status.details, bad)
    code = info.metadata.get("code") or info.reason.lower() or "unknown"
    return _class_of(status.code, code)(
        code,
        status.message,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
        errors=[FieldProblem(each.field, each.description) for each in bad.field_violations],
        request_id=info.metadata.get("request_id", ""),
    )


def _plain_error(code: grpc.StatusCode, details: str) -> HandPoseError:
    """An error that gRPC itself made, here or at the server."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectionFailedError("connection_failed", f"the service cannot be reached: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOutError("client_timeout", "the time for the call was up")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RejectedError("body_too_large", f"the message is larger than the service reads: {details}")
    name = code.name.lower()
    return _class_of(code.value[0], name)(name, details)


def _class_of(status: int, code: str) -> type[HandPoseError]:
    if status == _EXHAUSTED:  # one status for "too much for now" and "too much for ever"
        return RejectedError if code.startswith("too_") or code.endswith("too_large") else TryAgainError
    return _ERROR_OF.get(status, ServerFailedError)


def _unpack(details: Iterable[any_pb2.Any], message: Any) -> bool:
    return any(each.Unpack(message) for each in details)
