"""Streams of frames: in order, a bounded number at a time, ended cleanly. Shared by all protocols.

Contract of `Streams.run`
    * Answers leave in the order of the frames, one for each frame that was not skipped.
    * At most `max_waiting` frames wait, and at most `max_under_way` are being estimated. A frame is taken from the
      sender only when there is room, and estimated only when the reader has taken the answers before it, so neither a
      fast sender nor a slow reader makes memory grow.
    * What frames hold counts as uploads. Where there is no memory for one, the stream ends with OverloadedError.
    * With `latest_only` a new frame replaces the one that waits, and the answer says how many were skipped.
    * A frame that fails is answered with its error and the stream goes on. Errors that every frame would meet (no such
      model, no key) end it.
    * Cancelling `run` stops the work on its frames at once.
    * `drain` lets every stream answer the frames it has accepted and then ends it with `UnavailableError`.

What a connection is, and how frames and answers look on it, is the adapters' business.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from service.inference.access import charge
from service.inference.byte_budget import UPLOAD_BYTES, ByteBudget, Hold
from service.inference.errors import (
    ErrorKind,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.inference.estimates import (
    DEFAULT_MAX_HANDS,
    DEFAULT_MIN_SCORE,
    EstimateRequest,
    Estimator,
    Priority,
)
from service.inference.ports import Clock, Observer
from service.inference.tracking import HandTracker, TrackedEstimate
from service.pose.geometry import Box
from service.pose.tracking import FollowPolicy, OneEuro

_ENDS_THE_STREAM: Final = frozenset({ErrorKind.UNKNOWN_MODEL, ErrorKind.UNAUTHENTICATED})


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What streams may hold.

    Attributes:
        max_streams: streams open at the same time.
        max_waiting: frames of one stream that have arrived and are not being estimated.
        max_under_way: frames of one stream that are estimated at the same time. Tracking needs the frame before, so
            with tracking, smoothing or `latest_only` it is one.
        frame_timeout_s: seconds from a frame's arrival to its answer, unless the stream asks for less.
    """

    max_streams: int = 256
    max_waiting: int = 2
    max_under_way: int = 4
    frame_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if min(self.max_streams, self.max_waiting, self.max_under_way) < 1 or not self.frame_timeout_s > 0:
            raise ValueError(f"the limits of streams must be at least 1, and the timeout positive: {self}")


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How one stream is treated.

    Attributes:
        asked_for: the model that the stream names, such as "lightweight" or "standard@2".
        client_id: who sends it, if that is known. A stream without one gets one of its own, so that all its frames go
            to the same model whatever the weights.
        tracking: whether hands are followed from frame to frame instead of being looked for in each.
        smoothing: parameters of the one-euro filter; None leaves keypoints as they are found.
        latest_only: whether to skip frames that a newer one overtook.
        frame_timeout_s: seconds from a frame's arrival to its answer; None or more than the limit means the limit.
        max_hands: how many hands to look for and to follow.
        min_score: hands that are looked for and score less are left out; None: the service's default.
        whole: whether every frame without rois shows one hand as a whole.
    """

    asked_for: str | None = None
    client_id: str | None = None
    tracking: bool = True
    smoothing: OneEuro | None = None
    latest_only: bool = False
    frame_timeout_s: float | None = None
    max_hands: int = DEFAULT_MAX_HANDS
    min_score: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it arrived.

    Attributes:
        image: the bytes of an image file.
        id: returned with the answer; the sender's choice.
        time_s: when it was taken, on any clock that goes forward; None means its arrival.
        rois: boxes from which tracking starts afresh, in pixels of the upright image.
    """

    image: bytes
    id: int
    time_s: float | None = None
    rois: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class FrameAnswer:
    """What became of one frame.

    Attributes:
        frame_id: the frame's id.
        outcome: its hands, or why there are none.
        skipped: frames that were skipped since the one answered before.
        seconds: from the frame's arrival to its outcome.
    """

    frame_id: int
    outcome: TrackedEstimate | ServiceError
    skipped: int
    seconds: float


Send = Callable[[FrameAnswer], Awaitable[None]]
"""Hands an answer to the reader; returns when the connection has room for the next one."""


class Streams:
    """All streams of this process: opens, limits and drains them.

    Args:
        estimate: answers one image (`Predictor.estimate`).
        clock: time; frame deadlines are in its time.
        observer: is told when a frame is answered.
        limits: what streams may hold.
        follow: when a tracked hand counts as lost.
        uploads: what frames may hold, from their arrival to their answer; None: as many bytes as by default.
    """

    def __init__(
        self,
        estimate: Estimator,
        *,
        clock: Clock,
        observer: Observer,
        limits: StreamLimits | None = None,
        follow: FollowPolicy | None = None,
        uploads: ByteBudget | None = None,
    ) -> None:
        self.estimate = estimate
        self.clock = clock
        self.observer = observer
        self.limits = limits or StreamLimits()
        self.follow = follow
        self.uploads = uploads or ByteBudget(UPLOAD_BYTES)
        self._open: set[_Stream] = set()
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._draining = False

    @property
    def number_open(self) -> int:
        """Streams that have begun and not ended."""
        return len(self._open)

    async def run(self, options: StreamOptions, frames: AsyncIterator[Frame], send: Send) -> None:
        """Answer frames until there are no more.

        Args:
            options: how to treat them.
            frames: the sender's side; read from only when there is room.
            send: the reader's side.

        Raises:
            OverloadedError: too many streams are open.
            UnavailableError: the service is shutting down; every accepted frame was answered before.
            ServiceError: an error that every frame would meet; or one that `frames` raised, after the frames before it
                were answered. Whatever else `frames` or `send` raises ends the stream at once.
        """
        self.check_room()
        stream = _Stream(self, options)
        self._open.add(stream)
        self._all_closed.clear()
        try:
            await stream.run(frames, send)
        finally:
            self._open.discard(stream)
            if not self._open:
                self._all_closed.set()

    def check_room(self) -> None:
        """Raise what `run` would at once: UnavailableError if it is shutting down, OverloadedError if it is full."""
        if self._draining:
            raise _shutting_down()
        if len(self._open) >= self.limits.max_streams:
            raise OverloadedError(
                f"{len(self._open)} streams are open, and at most {self.limits.max_streams} may be", retry_after_s=1.0
            )

    async def drain(self) -> None:
        """Open no more streams, end the open ones as the module's contract says, and return when all have ended."""
        self._draining = True
        for stream in self._open:
            stream.stop()
        await self._all_closed.wait()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame in the buffer: when it was taken (by its sender), when it arrived and its deadline (by our clock)."""

    frame: Frame
    memory: Hold
    time_s: float
    arrived: float
    deadline: float
    skipped: int


class _Stream:
    """One stream: a task that reads frames into the buffer, and the caller's task, which answers them."""

    def __init__(self, streams: Streams, options: StreamOptions) -> None:
        limits = streams.limits
        self._streams = streams
        self._clock = streams.clock
        self._options = options
        self._client_id = options.client_id or uuid.uuid4().hex
        self._timeout_s = min(options.frame_timeout_s or limits.frame_timeout_s, limits.frame_timeout_s)
        one_by_one = options.tracking or options.smoothing is not None or options.latest_only
        self._max_under_way = 1 if one_by_one else limits.max_under_way
        self._max_waiting = 1 if options.latest_only else limits.max_waiting
        self._tracker = HandTracker(
            streams.estimate, smoothing=options.smoothing, follow=options.tracking, policy=streams.follow
        )
        self._waiting: deque[_Waiting] = deque()
        self._skipped = 0
        self._last_time_s = float("-inf")
        self._changed = asyncio.Event()  # a frame arrived, or none will
        self._room = asyncio.Event()
        self._room.set()
        self._no_more = False
        self._stopped = False
        self._failure: ServiceError | None = None
        self._reader: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Accept no more frames."""
        self._stopped = True
        if self._reader is not None:
            self._reader.cancel()
        self._read_all()  # which the reader itself does not say if it is cancelled before it began

    async def run(self, frames: AsyncIterator[Frame], send: Send) -> None:
        """See `Streams.run`."""
        try:
            async with asyncio.TaskGroup() as group:
                self._reader = group.create_task(self._read(frames))
                try:
                    await self._answer_all(send)
                finally:
                    self._reader.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._forget_waiting()
        if self._failure is not None:
            raise self._failure
        if self._stopped:
            raise _shutting_down()

    async def _answer_all(self, send: Send) -> None:
        under_way: deque[asyncio.Task[FrameAnswer]] = deque()
        try:
            while True:
                while self._waiting and len(under_way) < self._max_under_way:
                    under_way.append(self._begin(self._take()))
                if under_way:
                    await self._next_to_do(under_way)
                    if under_way[0].done():
                        await send(_or_end(under_way.popleft().result()))
                elif self._no_more:
                    return
                else:
                    await self._changed.wait()
                    self._changed.clear()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _next_to_do(self, under_way: "deque[asyncio.Task[FrameAnswer]]") -> None:
        """Wait until the oldest answer is there or, while more may be under way, another frame has arrived."""
        if len(under_way) >= self._max_under_way or self._no_more:
            await asyncio.wait([under_way[0]])
            return
        arrival = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait([under_way[0], arrival], return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrival.cancel()
        self._changed.clear()

    async def _read(self, frames: AsyncIterator[Frame]) -> None:
        try:
            async for frame in frames:
                self._accept(frame)
                await self._room.wait()
        except ServiceError as error:  # raised again by `run`, after the frames before it
            self._failure = error
        finally:
            self._read_all()

    def _read_all(self) -> None:
        self._no_more = True
        self._changed.set()

    def _accept(self, frame: Frame) -> None:
        now = self._clock.time()
        # Two frames may arrive within one tick of the clock; time must go forward all the same.
        time_s = frame.time_s if frame.time_s is not None else max(now, self._last_time_s + 1e-6)
        self._last_time_s = time_s
        if self._options.latest_only and self._waiting:
            self._skipped += len(self._waiting)
            self._forget_waiting()
        memory = self._streams.uploads.hold(len(frame.image))
        self._waiting.append(_Waiting(frame, memory, time_s, now, now + self._timeout_s, self._skipped))
        if not self._options.latest_only and len(self._waiting) >= self._max_waiting:
            self._room.clear()
        self._changed.set()

    def _forget_waiting(self) -> None:
        for each in self._waiting:
            each.memory.release()
        self._waiting.clear()

    def _take(self) -> _Waiting:
        self._room.set()
        self._skipped = 0
        return self._waiting.popleft()

    def _begin(self, waiting: _Waiting) -> "asyncio.Task[FrameAnswer]":
        task = asyncio.create_task(self._answer(waiting))
        task.add_done_callback(lambda _: waiting.memory.release())  # even if it is cancelled before it began
        return task

    async def _answer(self, waiting: _Waiting) -> FrameAnswer:
        request = EstimateRequest(
            image=waiting.frame.image,
            deadline=waiting.deadline,
            rois=waiting.frame.rois,
            whole=self._options.whole and not waiting.frame.rois,
            max_hands=self._options.max_hands,
            min_score=DEFAULT_MIN_SCORE if self._options.min_score is None else self._options.min_score,
            asked_for=self._options.asked_for,
            client_id=self._client_id,
            priority=Priority.INTERACTIVE,
        )
        outcome: TrackedEstimate | ServiceError
        try:
            with self._streams.observer.frame(waiting.frame.id):
                charge()
                if self._options.tracking or self._options.smoothing is not None:
                    outcome = await self._tracker.next(request, time_s=waiting.time_s)
                else:
                    estimate = await self._streams.estimate(request)
                    outcome = TrackedEstimate(estimate, tracked=False, track_ids=(0,) * len(estimate.hands))
        except ServiceError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 -- one frame's failure must not end the others
            outcome = InternalError("the frame could not be answered")
            outcome.__cause__ = error
        return FrameAnswer(waiting.frame.id, outcome, waiting.skipped, self._clock.time() - waiting.arrived)


def _or_end(answer: FrameAnswer) -> FrameAnswer:
    """The answer, unless it is an error that every frame would meet."""
    if isinstance(answer.outcome, ServiceError) and answer.outcome.kind in _ENDS_THE_STREAM:
        raise answer.outcome
    return answer


def _shutting_down() -> UnavailableError:
    return UnavailableError("the service is shutting down; open the stream again", retry_after_s=1.0)
