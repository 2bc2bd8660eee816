"""The methods of HandPoseService: read the metadata, call the use case, write the answer.

A method that fails raises a `ServiceError`, which `service.rpc.guard` turns into the call's status. When a client
cancels, or its deadline passes, or its connection is lost, grpc.aio cancels the method, and with it the wait in the
micro-batch queue.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from service.inference.access import charge
from service.inference.errors import OUR_FAULT, InvalidInputError, ServiceError, TooLargeError
from service.inference.estimates import Estimate as ImageEstimate
from service.inference.estimates import Estimator, Priority
from service.inference.models import ServedModel
from service.inference.ports import Clock
from service.inference.requests import (
    CLIENT_GONE,
    OK,
    RequestObserver,
    StreamReport,
    as_service_error,
    client_id_from,
    observed_image,
    report,
)
from service.inference.streaming import Frame, FrameAnswer, Streams
from service.rpc import convert
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.rpc.metadata import REQUEST_ID, Context, metadata_of
from service.rpc.status import STATUS_OF

logger = logging.getLogger(__name__)

SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["HandPoseService"].full_name


@dataclass(frozen=True, slots=True)
class RpcPolicy:
    """What one call may ask for.

    Attributes:
        max_batch_images: images in one batch.
        default_deadline_s: time for a call that sets no deadline.
        max_deadline_s: most time that a call is given, whatever it asks for.
    """

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
    ) -> None:
        self._estimate = estimate
        self._streams = streams
        self._models = models
        self._clock = clock
        self._observer = observer
        self._policy = policy

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:  # noqa: N802
        """One image."""
        with self._answering(context, "Estimate") as call:
            estimate = await self._one(request, call, Priority.INTERACTIVE)
        await call.send_headers(("x-model-variant", f"{estimate.model.variant}@{estimate.model.version}"))
        return convert.from_estimate(estimate, call.request_id)

    async def EstimateBatch(  # noqa: N802
        self, request: pb.EstimateBatchRequest, context: Context
    ) -> pb.EstimateBatchResponse:
        """Several images, each with an outcome of its own."""
        with self._answering(context, "EstimateBatch") as call:
            images = len(request.requests)
            if images == 0:
                raise InvalidInputError("the batch holds no image; send at least one", code="missing_image")
            if images > (most := self._policy.max_batch_images):
                detail = f"the batch holds {images} images; at most {most} are allowed"
                raise TooLargeError(detail, code="too_many_images")
            charge(images, counted=1)
            results = await asyncio.gather(
                *(self._result(index, each, call) for index, each in enumerate(request.requests))
            )
        await call.send_headers()
        return pb.EstimateBatchResponse(results=[convert.from_result(each, call.request_id) for each in results])

    async def EstimateStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EstimateStreamRequest], context: Context
    ) -> None:
        """Frames in, hands out."""
        with self._answering(context, "EstimateStream") as call:

            async def send(answer: FrameAnswer) -> None:
                call.report.frame_answered(answer)
                await context.write(convert.from_frame_answer(answer, call.request_id))

            # Before the headers: a client begins to write when it has them, and gRPC does not tell one that is
            # writing why its call has ended.
            self._streams.check_room()
            await call.send_headers()
            first = await anext(request_iterator, None)
            if first is not None:
                options = convert.to_stream_options(first.options, call.asked_for, call.client_id)
                await self._streams.run(options, _frames(first, request_iterator), send)

    async def ListModels(  # noqa: N802
        self,
        request: pb.ListModelsRequest,  # noqa: ARG002 -- gRPC passes it
        context: Context,
    ) -> pb.ListModelsResponse:
        """The models that can be asked now."""
        await self._call(context).send_headers()
        models = sorted(self._models(), key=lambda each: (each.variant, each.version))
        return pb.ListModelsResponse(models=[convert.from_model(model) for model in models])

    def _call(self, context: Context) -> "_Call":
        return _Call(context, self._observer, self._clock, self._policy)

    async def _result(self, index: int, request: pb.EstimateRequest, call: "_Call") -> ImageEstimate | ServiceError:
        try:
            with self._observer.part("image", index=index):
                return await self._one(request, call, Priority.BULK)
        except Exception as error:  # noqa: BLE001 -- one image's failure must not take the others with it
            failure = as_service_error(error)
            report(failure, call.request_id)
            return failure.with_traceback(None)  # which leads to the request

    async def _one(self, request: pb.EstimateRequest, call: "_Call", priority: Priority) -> ImageEstimate:
        call.counted = True
        with observed_image(self._observer, self._clock, since=self._clock.time(), asked_for=call.asked_for) as outcome:
            estimate = await self._estimate(
                convert.to_request(
                    request,
                    deadline=call.deadline,
                    asked_for=call.asked_for,
                    client_id=call.client_id,
                    priority=priority,
                )
            )
            outcome.model = estimate.model
        return estimate

    @contextlib.contextmanager
    def _answering(self, context: Context, method: str) -> Iterator["_Call"]:
        """The block answers a call: it is counted, has a span and a line in the log, and raises only ServiceErrors."""
        call, name = self._call(context), f"{SERVICE_NAME}/{method}"
        # Unless it ends otherwise, it was cancelled.
        code, status, failed = CLIENT_GONE, grpc.StatusCode.CANCELLED, False
        trace = self._observer.request(
            name,
            request_id=call.request_id,
            caller=call.metadata.get("traceparent"),
            attributes={"rpc.system": "grpc", "rpc.service": SERVICE_NAME, "rpc.method": method},
        )
        with trace as span, self._observer.in_flight():
            try:
                yield call
                code, status = OK, grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 -- whatever it is, it ends the call with a status
                failure = as_service_error(error)
                code, status, failed = failure.code, STATUS_OF[failure.kind], failure.kind in OUR_FAULT
                if call.counted:
                    report(failure, call.request_id)
                else:
                    call.report.failed(failure)
                raise failure  # noqa: B904 -- it is the error, or has it as its cause
            finally:
                span.answered(name, {"rpc.grpc.status_code": status.value[0]}, failed=failed)
                said = {"code": code, "request_id": call.request_id, "client": context.peer()}
                duration_ms = round((self._clock.time() - call.arrived) * 1000, 1)
                logger.info("%s", name, extra={**said, "duration_ms": duration_ms})


async def _frames(
    first: pb.EstimateStreamRequest, others: AsyncIterator[pb.EstimateStreamRequest]
) -> AsyncIterator[Frame]:
    if first.HasField("frame"):
        yield convert.to_frame(first.frame)
    async for message in others:
        if not message.HasField("frame"):
            raise InvalidInputError("only the first message of a stream may be other than a frame", code="not_a_frame")
        yield convert.to_frame(message.frame)


class _Call:
    """What one call's metadata says.

    Attributes:
        metadata: without what is bytes.
        request_id: the client's, if it is fit for a log, else made up.
        asked_for: the model that the client names, if any.
        arrived: the clock's time.
        deadline: the clock's time after which the answer is of no use.
        report: counts the call's failure, and the frames of a stream.
        counted: whether the call's images are counted one by one.
    """

    def __init__(self, context: Context, observer: RequestObserver, clock: Clock, policy: RpcPolicy) -> None:
        self._context = context
        self.metadata = metadata_of(context)
        self.request_id = REQUEST_ID.get()
        self.asked_for = self.metadata.get("x-model-variant")
        self.arrived = clock.time()
        remaining: float | None = context.time_remaining()  # None without a deadline, whatever its type says
        allowed_s = policy.default_deadline_s if remaining is None else min(remaining, policy.max_deadline_s)
        self.deadline = self.arrived + allowed_s
        self.report = StreamReport(observer, clock, self.request_id, asked_for=self.asked_for)
        self.counted = False

    @property
    def client_id(self) -> str | None:
        """Who calls, if that is known. Raises InvalidInputError if it is no fit name."""
        return client_id_from(self.metadata.get("x-client-id"), "x-client-id")

    async def send_headers(self, *more: tuple[str, str]) -> None:
        await self._context.send_initial_metadata((("x-request-id", self.request_id), *more))
