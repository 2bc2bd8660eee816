"""Streams of frames without a protocol: order, bounds, skipping, failures, cancelling and draining."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from service.inference.errors import (
    InvalidInputError,
    OverloadedError,
    UnavailableError,
    UndecodableImageError,
    UnknownModelError,
)
from service.inference.estimates import Estimate, EstimateRequest
from service.inference.streaming import Frame, FrameAnswer, StreamLimits, StreamOptions, Streams
from service.inference.tracking import TrackedEstimate
from service.pose.tracking import OneEuro
from tests.support.clock import ManualClock, settle
from tests.support.moving_hand import MovingHand, frame_bytes, hand_at
from tests.support.observer import RecordingObserver

PLAIN = StreamOptions(tracking=False)


def still_hand(frames: int = 100) -> MovingHand:
    return MovingHand(np.broadcast_to(hand_at(300, 200), (frames, 21, 2)))


async def numbered(count: int) -> AsyncIterator[Frame]:
    for index in range(count):
        yield Frame(frame_bytes(index), id=index)


class Camera:
    """Frames that the test sends one by one; knows how many were taken."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.taken = 0
        self._sent = 0

    @classmethod
    def of(cls, count: int) -> "Camera":
        """A camera that has sent some frames and will send more."""
        camera = cls()
        camera.send(count)
        return camera

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._frames.put_nowait(Frame(frame_bytes(self._sent), id=self._sent))
            self._sent += 1

    def end(self) -> None:
        self._frames.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while (frame := await self._frames.get()) is not None:
            self.taken += 1
            yield frame


class Viewer:
    """Remembers answers; can be told to stop reading."""

    def __init__(self) -> None:
        self.answers: list[FrameAnswer] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def __call__(self, answer: FrameAnswer) -> None:
        await self.reads.wait()
        self.answers.append(answer)

    @property
    def ids(self) -> list[int]:
        return [answer.frame_id for answer in self.answers]


class HeldModel:
    """Stands in for `Predictor.estimate`: answers only when told to, and counts who waits."""

    def __init__(self) -> None:
        self._inner = still_hand(10_000)
        self.waiting: list[asyncio.Future[None]] = []
        self.cancelled = 0

    async def __call__(self, request: EstimateRequest) -> Estimate:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self._inner(request)

    def answer(self, index: int = 0) -> None:
        self.waiting.pop(index).set_result(None)


def streams(estimate: MovingHand | HeldModel, **limits: float) -> Streams:
    return Streams(estimate, clock=ManualClock(), observer=RecordingObserver(), limits=StreamLimits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        StreamOptions(),
        StreamOptions(smoothing=OneEuro()),
        PLAIN,
        StreamOptions(tracking=False, smoothing=OneEuro()),
    ],
)
async def test_every_frame_is_answered_in_order(options: StreamOptions) -> None:
    viewer = Viewer()

    await streams(still_hand()).run(options, numbered(50), viewer)

    assert viewer.ids == list(range(50))
    assert all(isinstance(answer.outcome, TrackedEstimate) for answer in viewer.answers)


async def test_answers_keep_the_order_of_frames_that_finish_out_of_order() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    running = asyncio.create_task(streams(model, max_under_way=3).run(PLAIN, camera.__aiter__(), viewer))
    camera.send(3)
    camera.end()
    await settle()
    assert len(model.waiting) == 3

    model.answer(2)
    model.answer(1)
    await settle()
    assert viewer.ids == []
    model.answer(0)
    await running

    assert viewer.ids == [0, 1, 2]


async def test_a_frame_that_comes_while_another_runs_starts_at_once_when_frames_are_independent() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    running = asyncio.create_task(streams(model).run(PLAIN, camera.__aiter__(), viewer))
    camera.send()
    await settle()
    camera.send()
    await settle()

    assert len(model.waiting) == 2
    camera.end()
    model.answer()
    model.answer()
    await running


async def test_with_tracking_one_frame_runs_at_a_time() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    running = asyncio.create_task(streams(model).run(StreamOptions(), camera.__aiter__(), viewer))
    camera.send(2)
    camera.end()
    await settle()

    assert len(model.waiting) == 1
    model.answer()
    await settle()
    model.answer()
    await running
    assert viewer.ids == [0, 1]


async def test_frames_are_taken_from_the_sender_only_when_there_is_room() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    running = asyncio.create_task(streams(model, max_waiting=2).run(StreamOptions(), camera.__aiter__(), viewer))
    camera.send(50)
    await settle()

    assert camera.taken == 3, "one under way and two that wait"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reader_that_stops_reading_stops_the_work() -> None:
    model, viewer, camera = still_hand(), Viewer(), Camera()
    viewer.reads.clear()
    running = asyncio.create_task(streams(model, max_waiting=2, max_under_way=4).run(PLAIN, camera.__aiter__(), viewer))
    camera.send(50)
    camera.end()
    await settle(200)
    stalled_at = camera.taken

    assert stalled_at <= 7
    assert len(model.requests) <= 5
    viewer.reads.set()
    await running
    assert viewer.ids == list(range(50))


async def test_latest_only_answers_the_newest_frame_and_counts_the_skipped() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    options = StreamOptions(latest_only=True)
    running = asyncio.create_task(streams(model).run(options, camera.__aiter__(), viewer))
    camera.send()
    await settle()
    camera.send(10)
    await settle()
    model.answer()
    await settle()
    camera.end()
    model.answer()
    await running

    assert [(answer.frame_id, answer.skipped) for answer in viewer.answers] == [(0, 0), (10, 9)]


async def test_a_frame_that_fails_is_answered_with_its_error_and_the_stream_goes_on() -> None:
    model, viewer = still_hand(), Viewer()
    failure = UndecodableImageError("torn")
    model.failures[1] = failure

    await streams(model).run(StreamOptions(), numbered(3), viewer)

    assert viewer.ids == [0, 1, 2]
    assert viewer.answers[1].outcome is failure


async def test_a_defect_in_one_frame_is_an_internal_error_of_that_frame() -> None:
    viewer = Viewer()

    async def broken(request: EstimateRequest) -> Estimate:
        raise RuntimeError("secret")

    await Streams(broken, clock=ManualClock(), observer=RecordingObserver()).run(StreamOptions(), numbered(2), viewer)

    assert [getattr(answer.outcome, "code", None) for answer in viewer.answers] == ["internal", "internal"]
    assert "secret" not in str(viewer.answers[0].outcome)


async def test_an_unknown_model_ends_the_stream() -> None:
    model, viewer = still_hand(), Viewer()
    model.failures[0] = UnknownModelError("no such model")

    with pytest.raises(UnknownModelError):
        await streams(model).run(StreamOptions(asked_for="huge"), numbered(3), viewer)

    assert viewer.ids == []


async def test_an_error_of_the_sender_ends_the_stream_after_the_frames_before_it() -> None:
    viewer = Viewer()

    async def frames() -> AsyncIterator[Frame]:
        yield Frame(frame_bytes(0), id=0)
        raise InvalidInputError("options come first")

    with pytest.raises(InvalidInputError):
        await streams(still_hand()).run(StreamOptions(), frames(), viewer)

    assert viewer.ids == [0]


async def test_a_connection_that_breaks_ends_the_stream_at_once() -> None:
    model = HeldModel()

    async def frames() -> AsyncIterator[Frame]:
        yield Frame(frame_bytes(0), id=0)
        yield Frame(frame_bytes(1), id=1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await streams(model, max_waiting=3).run(StreamOptions(), frames(), Viewer())

    assert model.cancelled == len(model.waiting) <= 1


async def test_a_reader_that_fails_ends_the_stream_at_once() -> None:
    async def send(answer: FrameAnswer) -> None:
        raise BrokenPipeError

    all_streams = streams(still_hand())
    with pytest.raises(BrokenPipeError):
        await all_streams.run(StreamOptions(), Camera.of(3).__aiter__(), send)

    assert all_streams.number_open == 0


async def test_cancelling_stops_the_work_at_once_and_forgets_the_stream() -> None:
    model, camera = HeldModel(), Camera()
    all_streams = streams(model)
    running = asyncio.create_task(all_streams.run(PLAIN, camera.__aiter__(), Viewer()))
    camera.send(3)
    await settle()
    assert (all_streams.number_open, len(model.waiting)) == (1, 3)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert (all_streams.number_open, model.cancelled) == (0, 3)


async def test_drain_answers_what_was_accepted_and_ends_streams_as_unavailable() -> None:
    model, viewer, camera = HeldModel(), Viewer(), Camera()
    all_streams = streams(model, max_waiting=2)
    running = asyncio.create_task(all_streams.run(StreamOptions(), camera.__aiter__(), viewer))
    camera.send(10)
    await settle()
    draining = asyncio.create_task(all_streams.drain())
    await settle()
    assert not draining.done()

    while not running.done():
        if model.waiting:
            model.answer()
        await settle()
    await draining

    assert viewer.ids == [0, 1, 2]
    assert isinstance(running.exception(), UnavailableError)
    with pytest.raises(UnavailableError):
        await all_streams.run(StreamOptions(), numbered(1), viewer)


async def test_a_stream_that_opens_in_the_very_moment_in_which_drain_begins_ends_too() -> None:
    all_streams, viewer = streams(still_hand()), Viewer()
    running = asyncio.create_task(all_streams.run(StreamOptions(), Camera().__aiter__(), viewer))
    draining = asyncio.create_task(all_streams.drain())

    async with asyncio.timeout(5):
        await asyncio.wait({running, draining})

    assert isinstance(running.exception(), UnavailableError)
    assert (viewer.ids, all_streams.number_open) == ([], 0)


async def test_more_streams_than_allowed_are_told_to_come_back() -> None:
    all_streams = streams(HeldModel(), max_streams=1)
    running = asyncio.create_task(all_streams.run(StreamOptions(), Camera().__aiter__(), Viewer()))
    await settle()

    with pytest.raises(OverloadedError) as caught:
        await all_streams.run(StreamOptions(), numbered(1), Viewer())

    assert caught.value.retry_after_s is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, 5.0), (2.0, 2.0), (60.0, 5.0)])
async def test_a_frames_deadline_counts_from_its_arrival(asked_s: float | None, given_s: float) -> None:
    model = still_hand()
    options = StreamOptions(frame_timeout_s=asked_s)

    await streams(model, frame_timeout_s=5.0).run(options, numbered(1), Viewer())

    assert model.requests[0].deadline == ManualClock().time() + given_s


class Picture(bytes):
    """The bytes of a frame; the class counts how many are alive."""

    alive = 0

    def __init__(self, _: bytes) -> None:
        Picture.alive += 1

    def __del__(self) -> None:
        Picture.alive -= 1


async def test_all_frames_of_a_stream_are_routed_alike() -> None:
    model = still_hand()
    await streams(model).run(PLAIN, numbered(3), Viewer())
    await streams(model).run(PLAIN, numbered(3), Viewer())
    await streams(model).run(StreamOptions(tracking=False, client_id="me"), numbered(3), Viewer())

    clients = [request.client_id for request in model.requests]
    assert len(set(clients[:3])) == len(set(clients[3:6])) == 1
    assert clients[0] != clients[3]
    assert clients[6:] == ["me"] * 3


async def test_memory_stays_flat_over_ten_thousand_frames_and_a_slow_reader() -> None:
    model, most = still_hand(), 0

    async def frames() -> AsyncIterator[Frame]:
        nonlocal most
        for index in range(10_000):
            yield Frame(Picture(frame_bytes(0)), id=index)
            most = max(most, Picture.alive)
            model.requests.clear()

    seen = 0

    async def slow_reader(answer: FrameAnswer) -> None:
        nonlocal seen
        seen += 1
        await asyncio.sleep(0)

    limits = StreamLimits(max_waiting=2, max_under_way=4)
    await Streams(model, clock=ManualClock(), observer=RecordingObserver(), limits=limits).run(
        PLAIN, frames(), slow_reader
    )

    assert seen == 10_000
    assert most <= limits.max_waiting + limits.max_under_way + 3
