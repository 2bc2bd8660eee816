"""The methods of HandPoseService: read the metadata, call the use case, write the answer.

Each method is one call of `_Call`, which knows the request's id, its deadline and how an error ends it. When a client
cancels, or its deadline passes, or its connection is lost, grpc.aio cancels the method, and with it the wait in the
micro-batch queue.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import grpc

from service.inference.access import charge
from service.inference.batching import Priority
from service.inference.errors import ErrorKind, InvalidInputError, ServiceError, TooLargeError
from service.inference.failures import (
    FrameFailures,
    as_service_error,
    detail_of,
    let_go_of_frames,
    report,
    routed,
)
from service.inference.models import ServedModel
from service.inference.ports import Clock
from service.inference.predictor import Estimate as ImageEstimate
from service.inference.predictor import EstimateRequest
from service.inference.streaming import Frame, FrameAnswer, Streams
from service.inference.tracing import (
    NoTracer,
    RequestSpan,
    Tracer,
    client_id_from,
    entered,
    part,
    request_id_from,
    trace_id_of,
    traceparent_from,
)
from service.inference.tracking import Estimator
from service.rpc import convert
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.rpc.status import STATUS_DETAILS, STATUS_OF, rich_status, status_number

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["HandPoseService"].full_name
_OURS: Final = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED})


class RequestObserver(Protocol):
    """Is told of every request and every image, to count and time them. Must be quick and must not raise."""

    def request_started(self) -> None: ...

    def request_ended(self) -> None: ...

    def image_answered(self, model: ServedModel | None, asked_for: str | None, code: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class RpcPolicy:
    """What one call may ask for.

    Attributes:
        max_body_bytes: size of a request message.
        max_batch_images: images in one batch.
        default_deadline_s: time for a call that sets no deadline.
        max_deadline_s: most time that a call is given, whatever it asks for.
    """

    max_body_bytes: int = 20 * 1024 * 1024
    max_batch_images: int = 32
    default_deadline_s: float = 10.0
    max_deadline_s: float = 60.0


class HandPoseServicer(hand_pose_pb2_grpc.HandPoseServiceServicer):
    """Implements HandPoseService on the use case.

    Args:
        estimate: answers one image (`Predictor.estimate`).
        streams: answers frames.
        models: the models that can be asked now.
        clock: the predictor's clock.
        observer: is told of requests and images.
        policy: what one call may ask for.
        tracer: keeps the traces of calls; None keeps none.
    """

    def __init__(
        self,
        *,
        estimate: Estimator,
        streams: Streams,
        models: Callable[[], Sequence[ServedModel]],
        clock: Clock,
        observer: RequestObserver,
        policy: RpcPolicy,
        tracer: Tracer | None = None,
    ) -> None:
        self._estimate = estimate
        self._streams = streams
        self._models = models
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self._tracer = tracer or NoTracer()

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:  # noqa: N802
        """One image."""
        call = self._call(context)
        with self._counted(call, "Estimate"):
            try:
                self._check_size(request.ByteSize())
                estimate = await self._one(request, call, Priority.INTERACTIVE)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it ends the call with a status
                await call.fail(error)
        await call.send_headers(("x-model-variant", f"{estimate.model.variant}@{estimate.model.version}"))
        return convert.from_estimate(estimate, call.request_id)

    async def EstimateBatch(  # noqa: N802
        self, request: pb.EstimateBatchRequest, context: Context
    ) -> pb.EstimateBatchResponse:
        """Several images, each with an outcome of its own."""
        call = self._call(context)
        with self._counted(call, "EstimateBatch"):
            try:
                self._check_size(request.ByteSize())
                self._check_number(len(request.requests))
                charge(len(request.requests), counted=1)
                async with asyncio.TaskGroup() as group:
                    results = (self._result(index, each, call) for index, each in enumerate(request.requests))
                    tasks = [group.create_task(result) for result in results]
            except Exception as error:  # noqa: BLE001 -- whatever it is, it ends the call with a status
                await call.fail(error)
        await call.send_headers()
        return pb.EstimateBatchResponse(results=[convert.from_result(task.result(), call.request_id) for task in tasks])

    async def EstimateStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EstimateStreamRequest], context: Context
    ) -> None:
        """Frames in, hands out."""
        call = self._call(context)
        messages = aiter(request_iterator)

        async def send(answer: FrameAnswer) -> None:
            call.frame_answered(answer)
            await context.write(convert.from_frame_answer(answer, call.request_id))

        with self._counted(call, "EstimateStream"):
            try:
                # Before the headers: a client begins to write when it has them, and gRPC does not tell one that is
                # writing why its call has ended.
                self._streams.check_room()
                await call.send_headers()
                first = await anext(messages, None)
                if first is None:
                    return
                options = convert.to_stream_options(first.options, call.asked_for, call.client_id)
                await self._streams.run(options, _frames(first, messages), send)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it ends the call with a status
                await call.fail(error)

    async def ListModels(  # noqa: N802
        self,
        request: pb.ListModelsRequest,  # noqa: ARG002 -- gRPC passes it
        context: Context,
    ) -> pb.ListModelsResponse:
        """The models that can be asked now."""
        call = self._call(context)
        await call.send_headers()
        models = sorted(self._models(), key=lambda each: (each.variant, each.version))
        return pb.ListModelsResponse(models=[convert.from_model(model) for model in models])

    def _call(self, context: Context) -> "_Call":
        remaining: float | None = context.time_remaining()  # None without a deadline, whatever its type says
        allowed = self._policy.default_deadline_s if remaining is None else min(remaining, self._policy.max_deadline_s)
        return _Call(context, self._observer, self._clock, allowed_s=allowed)

    async def _result(self, index: int, request: pb.EstimateRequest, call: "_Call") -> ImageEstimate | ServiceError:
        try:
            with part("image", index=index):
                return await self._one(request, call, Priority.BULK)
        except Exception as error:  # noqa: BLE001 -- one image's failure must not take the others with it
            failure = as_service_error(error)
            report(failure, call.request_id)
            let_go_of_frames(error)
            return failure

    async def _one(self, request: pb.EstimateRequest, call: "_Call", priority: Priority) -> ImageEstimate:
        started = self._clock.time()
        model, asked_for, code = None, call.asked_for, "client_gone"
        try:
            if not request.image:
                raise InvalidInputError('"image" is empty; send the bytes of an image file', code="empty_image")
            estimate = await self._estimate(
                EstimateRequest(
                    image=request.image,
                    deadline=call.deadline,
                    rois=convert.to_boxes(request.rois),
                    asked_for=call.asked_for,
                    client_id=call.client_id,
                    priority=priority,
                )
            )
            model, code = estimate.model, "ok"
        except Exception as error:
            call.counted, code = error, as_service_error(error).code
            model, asked_for = routed(error, asked_for)
            raise
        finally:
            self._observer.image_answered(model, asked_for, code, self._clock.time() - started)
        return estimate

    @contextlib.contextmanager
    def _counted(self, call: "_Call", method: str) -> Iterator[None]:
        """The block answers this call: it counts as being worked on, and has a span."""
        name = f"{_SERVICE}/{method}"
        span = self._tracer.request(
            name,
            call.traceparent,
            request_id=call.request_id,
            **{"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method},
        )
        self._observer.request_started()
        try:
            with entered(span):
                try:
                    yield
                    call.code = "ok"
                finally:
                    _say_how_it_ended(span, name, call)
        finally:
            self._observer.request_ended()
            call.log(name, span)

    def _check_size(self, size: int) -> None:
        if size > self._policy.max_body_bytes:
            raise TooLargeError(
                f"the request has {size} bytes; at most {self._policy.max_body_bytes} are allowed",
                code="body_too_large",
            )

    def _check_number(self, images: int) -> None:
        if images == 0:
            raise InvalidInputError("the batch holds no image; send at least one", code="missing_image")
        if images > self._policy.max_batch_images:
            raise TooLargeError(
                f"the batch holds {images} images; at most {self._policy.max_batch_images} are allowed",
                code="too_many_images",
            )


async def _frames(
    first: pb.EstimateStreamRequest, others: AsyncIterator[pb.EstimateStreamRequest]
) -> AsyncIterator[Frame]:
    if first.HasField("frame"):
        yield convert.to_frame(first.frame)
    async for message in others:
        if not message.HasField("frame"):
            raise InvalidInputError("only the first message of a stream may be other than a frame", code="not_a_frame")
        yield convert.to_frame(message.frame)


def _say_how_it_ended(span: RequestSpan, name: str, call: "_Call") -> None:
    failure = call.failure
    if failure is not None:
        status = status_number(failure)
    else:
        status = (grpc.StatusCode.OK if call.code == "ok" else grpc.StatusCode.CANCELLED).value[0]
    span.answered(name, {"rpc.grpc.status_code": status}, failed=failure is not None and failure.kind in _OURS)


class _Call:
    """One call: what its metadata says, and how it ends.

    Attributes:
        request_id: the client's, if it is fit for a log, else made up.
        asked_for: the model that the client names, if any.
        deadline: the clock's time after which the answer is of no use.
        counted: the last error that the observer was told of as an image's.
        code: how it ended, as it is counted; a call that has not ended when its method has was cancelled.
        failure: how it ended, if not well.
    """

    def __init__(self, context: Context, observer: RequestObserver, clock: Clock, *, allowed_s: float) -> None:
        self._context = context
        self._observer = observer
        self._clock = clock
        self._arrived = self._last_answer = clock.time()  # of the last answer, or of the call
        self._metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.deadline = self._last_answer + allowed_s
        self.counted: Exception | None = None
        self.code = "client_gone"
        self.failure: ServiceError | None = None
        self.request_id = request_id_from(self._metadata.get("x-request-id"))
        self._failures = FrameFailures(self.request_id)
        self.asked_for = self._metadata.get("x-model-variant")
        self.traceparent = traceparent_from(self._metadata.get("traceparent"))

    @property
    def client_id(self) -> str | None:
        """Who calls, if that is known. Raises InvalidInputError if it is no fit name."""
        return client_id_from(self._metadata.get("x-client-id"))

    async def send_headers(self, *more: tuple[str, str]) -> None:
        await self._context.send_initial_metadata((("x-request-id", self.request_id), *more))

    def log(self, name: str, span: RequestSpan) -> None:
        """Say in one line what was asked and what became of it."""
        logger.info(
            "%s",
            name,
            extra={
                "code": self.code,
                "duration_ms": round((self._clock.time() - self._arrived) * 1000, 1),
                "request_id": self.request_id,
                "trace_id": trace_id_of(span.traceparent),
                "client": self._context.peer(),
            },
        )

    def frame_answered(self, answer: FrameAnswer) -> None:
        """Count and, if it failed, report one frame of a stream."""
        outcome, self._last_answer = answer.outcome, self._clock.time()
        self._failures.frame_ended(outcome if isinstance(outcome, ServiceError) else None)
        if isinstance(outcome, ServiceError):
            self._observer.image_answered(*routed(outcome, self.asked_for), outcome.code, answer.seconds)
        else:
            self._observer.image_answered(outcome.estimate.model, self.asked_for, "ok", answer.seconds)

    async def fail(self, error: Exception) -> NoReturn:
        """End the call with the error's status."""
        failure = self.failure = as_service_error(error)
        self.code = failure.code
        report(failure, self.request_id)
        if error is not self.counted:
            seconds = self._clock.time() - self._last_answer
            self._observer.image_answered(*routed(failure, self.asked_for), failure.code, seconds)
        status = rich_status(failure, self.request_id)
        await self._context.abort(
            STATUS_OF[failure.kind],
            detail_of(failure),
            trailing_metadata=((STATUS_DETAILS, status.SerializeToString()), ("x-request-id", self.request_id)),
        )
