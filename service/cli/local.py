"""The model in this process, behind the client's interface: `handpose estimate` without a service.

`LocalTransport` implements `service.client.transport.Transport` on the use case itself. The use case lives on an event
loop in a thread of its own; TensorFlow is loaded there.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from service.backends.repository import Servable
from service.bootstrap import LocalService, local_service
from service.client import errors as client_errors
from service.client import types
from service.client.transport import BatchResults, EncodedFrame, Headers
from service.inference.errors import ErrorKind, ServiceError
from service.inference.estimates import Estimate, EstimateRequest, Priority
from service.inference.models import ServedModel
from service.inference.streaming import Frame, FrameAnswer, StreamOptions
from service.inference.tracking import TrackedEstimate
from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_NAMES
from service.settings import Settings

_ERROR_OF: Final[Mapping[ErrorKind, type[client_errors.HandPoseError]]] = {
    ErrorKind.OVERLOADED: client_errors.TryAgainError,
    ErrorKind.UNAVAILABLE: client_errors.TryAgainError,
    ErrorKind.TOO_SLOW: client_errors.TimedOutError,
    ErrorKind.DEADLINE_EXCEEDED: client_errors.TimedOutError,
    ErrorKind.INTERNAL: client_errors.ServerFailedError,
}
"""Every other kind is a rejection."""

T = TypeVar("T")


class LocalTransport:
    """A connection to a model in this process.

    Args:
        settings: which models, batching and limits.
        open_servable: how models are opened; None: with TensorFlow.

    Raises:
        StartError: the models cannot be had.
    """

    def __init__(self, settings: Settings, *, open_servable: Callable[[Servable], Any] | None = None) -> None:
        self._settings = settings
        self._open_servable = open_servable
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._streams: set[asyncio.Task[None]] = set()
        self._started: queue.Queue[LocalService | BaseException] = queue.Queue()
        self._thread = threading.Thread(target=self._live, name="hand-pose model", daemon=True)
        self._thread.start()
        started = self._started.get()
        if isinstance(started, BaseException):
            self._thread.join()
            raise started
        self._service = started

    def estimate(self, image: bytes, rois: Sequence[Box], headers: Headers, timeout_s: float) -> types.Estimate:
        return self._on_loop(self._estimate(image, tuple(rois), headers, timeout_s, Priority.INTERACTIVE))

    def estimate_batch(self, images: Sequence[bytes], headers: Headers, timeout_s: float) -> BatchResults:
        async def one(image: bytes) -> types.Estimate | client_errors.HandPoseError:
            try:
                return await self._estimate(image, (), headers, timeout_s, Priority.BULK)
            except client_errors.HandPoseError as error:
                return error

        async def all_of_them() -> BatchResults:
            return list(await asyncio.gather(*map(one, images)))

        return self._on_loop(all_of_them())

    def stream(
        self, frames: Iterable[EncodedFrame], options: types.StreamOptions, headers: Headers
    ) -> Generator[types.StreamAnswer, None, None]:
        answers: queue.Queue[types.StreamAnswer | BaseException | None] = queue.Queue(maxsize=8)
        iterator = iter(frames)

        async def incoming() -> AsyncIterator[Frame]:
            while (frame := await asyncio.to_thread(next, iterator, None)) is not None:
                yield Frame(frame.image, frame.id, frame.time_s, frame.rois)

        async def send(answer: FrameAnswer) -> None:
            await asyncio.to_thread(answers.put, _stream_answer(answer))

        async def run() -> None:
            if (task := asyncio.current_task()) is not None:
                self._streams.add(task)
                task.add_done_callback(self._streams.discard)
            wanted = StreamOptions(
                asked_for=headers.get("x-model-variant"),
                tracking=options.tracking,
                smoothing=options.smoothing,
                latest_only=options.latest_only,
                frame_timeout_s=options.frame_timeout_s,
            )
            outcome: BaseException | None = None
            try:
                await self._service.streams.run(wanted, incoming(), send)
            except ServiceError as error:
                outcome = _error(error)
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                outcome = error
            await asyncio.to_thread(answers.put, outcome)

        running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            while (answer := answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            running.cancel()
            with suppress(queue.Empty):  # nobody takes answers any more: let go whoever waits to put one
                while True:
                    answers.get_nowait()

    def models(self, headers: Headers, timeout_s: float) -> list[types.Model]:  # noqa: ARG002 -- nothing travels here
        served = sorted(self._service.backend.models(), key=lambda each: (each.variant, each.version))
        return [_model(each) for each in served]

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _live(self) -> None:
        async def live() -> None:
            try:
                async with local_service(self._settings, open_servable=self._open_servable) as service:
                    self._started.put(service)
                    await self._stop.wait()
                    for stream in self._streams:
                        stream.cancel()
                    await asyncio.gather(*self._streams, return_exceptions=True)
            except Exception as error:  # noqa: BLE001 -- the constructor raises it again
                self._started.put(error)

        try:
            self._loop.run_until_complete(live())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _estimate(
        self, image: bytes, rois: tuple[Box, ...], headers: Headers, timeout_s: float, priority: Priority
    ) -> types.Estimate:
        request = EstimateRequest(
            image=image,
            deadline=self._service.clock.time() + timeout_s,
            rois=rois,
            asked_for=headers.get("x-model-variant"),
            priority=priority,
        )
        try:
            return _converted(await self._service.predictor.estimate(request))
        except ServiceError as error:
            raise _error(error) from error


def _converted(estimate: Estimate) -> types.Estimate:
    width, height = estimate.image_size
    timings = estimate.timings
    return types.Estimate(
        request_id="",
        model=types.ModelUsed(
            estimate.model.name,
            estimate.model.variant,
            estimate.model.version,
            next(iter(estimate.model.labels), None),
            estimate.routed_by,
        ),
        image_size=(width, height),
        hands=tuple(
            types.Hand(
                hand.score,
                hand.box_in_image,
                tuple(
                    types.Keypoint(index, KEYPOINT_NAMES[index], x, y, x / width, y / height, score, sigma)
                    for index, ((x, y), score, sigma) in enumerate(
                        zip(hand.keypoints_in_image.tolist(), hand.scores.tolist(), hand.sigmas.tolist(), strict=True)
                    )
                ),
            )
            for hand in estimate.hands
        ),
        timings_ms=types.Timings(
            1000 * timings.decode,
            1000 * timings.queue,
            1000 * timings.inference,
            1000 * timings.postprocess,
            1000 * timings.total,
        ),
    )


def _stream_answer(answer: FrameAnswer) -> types.StreamAnswer:
    if isinstance(answer.outcome, TrackedEstimate):
        return types.StreamAnswer(
            answer.frame_id,
            _converted(answer.outcome.estimate),
            None,
            answer.outcome.tracked,
            answer.skipped,
            answer.outcome.track_ids,
        )
    return types.StreamAnswer(answer.frame_id, None, _error(answer.outcome), skipped=answer.skipped)


def _model(model: ServedModel) -> types.Model:
    card = model.card
    return types.Model(
        model.name,
        model.variant,
        model.version,
        model.labels,
        card.input_size,
        card.stride,
        card.parameters,
        card.created,
        card.metrics,
    )


def _error(error: ServiceError) -> client_errors.HandPoseError:
    return _ERROR_OF.get(error.kind, client_errors.RejectedError)(
        error.code,
        error.detail,
        retry_after_s=error.retry_after_s,
        errors=[client_errors.FieldProblem(each.field, each.message) for each in error.errors],
    )
