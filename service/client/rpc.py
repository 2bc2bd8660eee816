"""The client over gRPC: messages from values, values from messages, statuses to errors. Retries are decided above."""

import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import asdict, fields, replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from service.client import errors
from service.client.tls import Tls
from service.client.transport import BatchResults, EncodedFrame, Headers, Search
from service.client.types import (
    Estimate,
    Hand,
    Handedness,
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

_REJECTED: Final = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
_ERROR_OF: Final[dict[int, type[errors.HandPoseError]]] = {
    **{grpc.StatusCode[name].value[0]: errors.RejectedError for name in _REJECTED},
    grpc.StatusCode.UNAVAILABLE.value[0]: errors.TryAgainError,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: errors.TimedOutError,
}
_EXHAUSTED: Final[int] = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]

T = TypeVar("T")


_OPTIONS: Final = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_send_message_length", -1),  # the server says what is too large
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class _Calls:
    """The calls of both transports. `_call` returns the answer; in the async transport, an awaitable of it."""

    _call: Callable[..., Any]

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._stub: Any = hand_pose_pb2_grpc.HandPoseServiceStub(channel)  # type: ignore[no-untyped-call]  # generated

    def estimate(self, image: bytes, search: Search, headers: Headers, timeout_s: float) -> Any:
        return self._call(_estimate, self._stub.Estimate, _request_message(image, search), headers, timeout_s)

    def estimate_batch(self, images: Sequence[bytes], search: Search, headers: Headers, timeout_s: float) -> Any:
        request = pb.EstimateBatchRequest(requests=[_request_message(image, search) for image in images])
        return self._call(_results, self._stub.EstimateBatch, request, headers, timeout_s)

    def models(self, headers: Headers, timeout_s: float) -> Any:
        return self._call(_models, self._stub.ListModels, pb.ListModelsRequest(), headers, timeout_s)


class BlockingConnection(_Calls):
    """Implements `service.client.transport.Transport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        super().__init__(_channel(grpc, url, tls))

    def _call(self, read: Callable[[Any], Any], method: Any, request: Any, headers: Headers, timeout_s: float) -> Any:
        try:
            return read(method(request, timeout=timeout_s, metadata=tuple(headers.items())))
        except grpc.RpcError as error:
            raise _error(error) from error

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

    def close(self) -> None:
        self._channel.close()


class AsyncConnection(_Calls):
    """Implements `service.client.transport.AsyncTransport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        super().__init__(_channel(grpc.aio, url, tls))

    async def _call(
        self, read: Callable[[Any], Any], method: Any, request: Any, headers: Headers, timeout_s: float
    ) -> Any:
        try:
            return read(await method(request, timeout=timeout_s, metadata=tuple(headers.items())))
        except grpc.RpcError as error:
            raise _error(error) from error

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

    async def close(self) -> None:
        await self._channel.close()


def _channel(api: Any, url: str, tls: Tls) -> Any:
    """A channel of `grpc` or of `grpc.aio`, whose functions have the same names."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    target = f"{host}:{parts.port or 8001}"
    if parts.scheme == "grpcs":
        return api.secure_channel(target, tls.credentials(), _OPTIONS)
    return api.insecure_channel(target, _OPTIONS)


# Messages


def _box_message(box: Box) -> pb.Box:
    return pb.Box(x=box.x, y=box.y, width=box.width, height=box.height)


def _request_message(image: bytes, search: Search) -> pb.EstimateRequest:
    return pb.EstimateRequest(image=image, rois=map(_box_message, search.rois), **_search_fields(search))


def _search_fields(search: Search | StreamOptions) -> dict[str, Any]:
    """None leaves an optional field absent."""
    return {"max_hands": search.max_hands, "min_score": search.min_score, "whole": search.whole}


def _options_message(options: StreamOptions) -> pb.EstimateStreamRequest:
    smoothing = None if options.smoothing is None else pb.OneEuro(**asdict(options.smoothing))
    message = pb.StreamOptions(
        tracking=options.tracking, latest_only=options.latest_only, smoothing=smoothing, **_search_fields(options)
    )
    if options.frame_timeout_s is not None:
        message.frame_timeout.FromNanoseconds(round(options.frame_timeout_s * 1e9))
    return pb.EstimateStreamRequest(options=message)


def _frame_message(frame: EncodedFrame) -> pb.EstimateStreamRequest:
    rois = map(_box_message, frame.rois)
    return pb.EstimateStreamRequest(frame=pb.Frame(image=frame.image, id=frame.id, time_s=frame.time_s, rois=rois))


# Answers


def _estimate(message: pb.EstimateResponse) -> Estimate:
    return Estimate(
        request_id=message.request_id,
        model=replace(_members(ModelUsed, message.model), label=message.model.label or None),
        image_size=(message.image.width, message.image.height),
        hands=tuple(map(_hand, message.hands)),
        timings_ms=Timings(*(getattr(message.timings, f"{each.name}_ms") for each in fields(Timings))),
    )


def _hand(message: pb.Hand) -> Hand:
    return Hand(
        message.score,
        _members(Box, message.box),
        tuple(_members(Keypoint, each) for each in message.keypoints),
        _members(Handedness, message.handedness) if message.HasField("handedness") else None,
        message.rotation_degrees,
    )


def _members(kind: type[T], message: Any) -> T:
    return kind(**{each.name: getattr(message, each.name) for each in fields(kind)})  # type: ignore[arg-type]  # a dataclass


def _results(message: pb.EstimateBatchResponse) -> BatchResults:
    return [
        _problem(each.problem) if each.HasField("problem") else _estimate(each.estimate) for each in message.results
    ]


def _stream_answer(message: pb.EstimateStreamResponse) -> StreamAnswer:
    return StreamAnswer(
        frame_id=message.frame_id,
        estimate=_estimate(message.estimate) if message.HasField("estimate") else None,
        error=_problem(message.problem) if message.HasField("problem") else None,
        tracked=message.tracked,
        skipped=message.skipped,
        track_ids=tuple(message.track_ids),
    )


def _models(message: pb.ListModelsResponse) -> list[Model]:
    return [
        Model(
            name=each.name,
            variant=each.variant,
            version=each.version,
            labels=tuple(each.labels),
            input_size=each.input_size,
            stride=each.stride,
            parameters=each.parameters or None,
            created=each.created,
            metrics=json.loads(each.metrics_json or "{}"),
        )
        for each in message.models
    ]


# Errors


def _problem(message: pb.Problem) -> errors.HandPoseError:
    return _class_of(message.status, message.code)(
        message.code,
        message.detail,
        retry_after_s=message.retry_after.ToNanoseconds() / 1e9 if message.HasField("retry_after") else None,
        errors=[errors.FieldProblem(each.field, each.message) for each in message.errors],
    )


def _error(error: Any) -> errors.HandPoseError:
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
        errors=[errors.FieldProblem(each.field, each.description) for each in bad.field_violations],
        request_id=info.metadata.get("request_id", ""),
    )


def _plain_error(code: grpc.StatusCode, details: str) -> errors.HandPoseError:
    """An error that gRPC itself made, here or at the server."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.ConnectionFailedError("connection_failed", f"the service cannot be reached: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.TimedOutError("client_timeout", "the time for the call was up")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.RejectedError("body_too_large", f"the message is larger than the service reads: {details}")
    name = code.name.lower()
    return _class_of(code.value[0], name)(name, details)


def _class_of(status: int, code: str) -> type[errors.HandPoseError]:
    if status == _EXHAUSTED:  # one status for "too much for now" and "too much for ever"
        return errors.RejectedError if code.startswith("too_") or code.endswith("too_large") else errors.TryAgainError
    return _ERROR_OF.get(status, errors.ServerFailedError)


def _unpack(details: Iterable[any_pb2.Any], message: Any) -> bool:
    return any(each.Unpack(message) for each in details)
