"""The use case from image bytes to keypoints in the image, on a fake backend whose hands are known."""

import asyncio
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.inference.decoding import ImageDecoder
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidInputError,
    OverloadedError,
    ServiceError,
    TooLargeError,
    UnavailableError,
    UndecodableImageError,
    UnknownModelError,
    UnsupportedTypeError,
)
from service.inference.estimates import EstimateRequest, Priority
from service.inference.model_queue import BatchingPolicy
from service.pose.geometry import Box
from service.pose.preprocessing import CROP_PADDING
from tests.support.backend import FakeBackend, failing_backend, hand_where_crop_is_marked, spread_keypoints
from tests.support.clock import ManualClock, settle
from tests.support.executor import InlineExecutor
from tests.support.images import image_bytes, marked_picture, picture
from tests.support.models import INPUT_SIZE, served_model
from tests.support.observer import RecordingObserver
from tests.support.predictor import make_predictor
from tests.support.waiting import until

FAR = math.inf
IMAGE_640_480 = image_bytes(picture(640, 480))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Kitchen:
    """A predictor with everything it needs."""

    def __init__(self, workers: Executor, backend: FakeBackend | None = None, **parts: Any) -> None:
        self.backend = backend or FakeBackend()
        self.observer = RecordingObserver()
        self.clock = ManualClock()
        decoding = {name: parts.pop(name) for name in ("max_pixels", "large_images_bytes", "threads") if name in parts}
        self.decoder = ImageDecoder(workers, self.clock, **decoding)
        self.predictor = make_predictor(
            self.backend, clock=self.clock, decoder=self.decoder, observer=self.observer, **parts
        )


async def test_a_whole_image_is_one_hand_in_the_images_own_coordinates(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(picture(640, 480)), FAR, whole=True))
    (hand,) = estimate.hands
    assert hand.box_in_image == Box(0, 0, 640, 480)
    assert (hand.handedness, kitchen.backend.searches) == (None, [])
    # The image is letterboxed: 640 px become the input's width, and 80 px of grey lie above and below.
    expected = spread_keypoints(INPUT_SIZE) * (640 / INPUT_SIZE) - (0, 80)
    np.testing.assert_allclose(hand.keypoints_in_image, expected, atol=0.05 * 640 / INPUT_SIZE)
    assert estimate.image_size == (640, 480)
    assert hand.score == pytest.approx(float(hand.scores.mean()))


async def test_a_roi_is_padded_and_its_hand_comes_back_in_image_coordinates(workers: ThreadPoolExecutor) -> None:
    backend = FakeBackend(answer=hand_where_crop_is_marked)
    image = image_bytes(marked_picture(640, 480, (300, 200, 320, 220)))
    roi = Box(250, 180, 120, 100)
    estimate = await Kitchen(workers, backend).predictor.estimate(EstimateRequest(image, FAR, rois=(roi,)))
    (hand,) = estimate.hands
    assert hand.box_in_image == roi
    np.testing.assert_allclose(hand.keypoints_in_image, np.full((21, 2), (310.0, 210.0)), atol=0.5)
    side = 120 * CROP_PADDING
    np.testing.assert_allclose(hand.sigmas, 1.25 * 8 * side / INPUT_SIZE, rtol=0.1)


async def test_several_rois_give_their_hands_in_the_order_of_the_rois(workers: ThreadPoolExecutor) -> None:
    backend = FakeBackend(answer=hand_where_crop_is_marked)
    canvas = picture(600, 200, (255, 255, 255))
    centres = [(100, 60), (300, 120), (500, 90)]
    for x, y in centres:
        canvas.paste((255, 0, 0), (x - 8, y - 8, x + 8, y + 8))
    rois = tuple(Box(x - 40, y - 40, 80, 80) for x, y in (centres[2], centres[0], centres[1]))
    estimate = await Kitchen(workers, backend).predictor.estimate(EstimateRequest(image_bytes(canvas), FAR, rois=rois))
    found = [tuple(hand.keypoints_in_image[0].round().astype(int)) for hand in estimate.hands]
    assert found == [centres[2], centres[0], centres[1]]


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_rotated_photo_answers_in_upright_coordinates(orientation: int, workers: ThreadPoolExecutor) -> None:
    width, height = (300, 200) if orientation < 5 else (200, 300)
    # Where the mark of the stored pixels lands when a viewer applies the tag, worked out by hand.
    left, right = 90.0, 210.0
    top, bottom = 70.0, 130.0
    upright = {
        1: (left, top),
        2: (right, top),
        3: (right, bottom),
        4: (left, bottom),
        5: (left, top),
        6: (right, top),
        7: (right, bottom),
        8: (left, bottom),
    }[orientation]
    stored_centre = (90, 70) if orientation < 5 else (70, 90)
    x, y = stored_centre
    stored = marked_picture(width, height, (x - 10, y - 10, x + 10, y + 10))
    data = image_bytes(stored, "JPEG", orientation=orientation)
    backend = FakeBackend(answer=hand_where_crop_is_marked)
    estimate = await Kitchen(workers, backend).predictor.estimate(EstimateRequest(data, FAR))
    assert estimate.image_size == (300, 200)
    np.testing.assert_allclose(estimate.hands[0].keypoints_in_image[0], upright, atol=1.0)


@pytest.mark.parametrize(
    ("asked_for", "served", "routed_by"),
    [
        (None, "lightweight", "default"),
        (" ", "lightweight", "default"),
        ("standard", "standard", "header"),
        ("lightweight@1", "lightweight", "header"),
        ("standard@stable", "standard", "header"),
    ],
)
async def test_a_request_goes_to_the_model_it_asks_for(
    asked_for: str | None, served: str, routed_by: str, workers: ThreadPoolExecutor
) -> None:
    estimate = await Kitchen(workers).predictor.estimate(EstimateRequest(image_bytes(), FAR, asked_for=asked_for))
    assert (estimate.model.variant, estimate.routed_by) == (served, routed_by)


@pytest.mark.parametrize("asked_for", ["huge", "standard@99", "lightweight@canary"])
async def test_a_model_that_does_not_exist_is_unknown(asked_for: str, workers: ThreadPoolExecutor) -> None:
    with pytest.raises(UnknownModelError):
        await Kitchen(workers).predictor.estimate(EstimateRequest(image_bytes(), FAR, asked_for=asked_for))


async def test_a_batch_never_mixes_two_models(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    wishes = ["standard", "lightweight"] * 6
    await asyncio.gather(
        *(kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, asked_for=wish)) for wish in wishes)
    )
    per_variant = {"standard": 0, "lightweight": 0}
    for call in kitchen.backend.calls:
        per_variant[call.model.variant] += len(call.crops)
    assert per_variant == {"standard": 6, "lightweight": 6}


@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        (b"", UnsupportedTypeError, "unsupported_image_format"),
        (b"%PDF-1.4", UnsupportedTypeError, "unsupported_image_format"),
        (image_bytes(picture(), "JPEG")[:200], UndecodableImageError, "undecodable_image"),
        (image_bytes(picture(400, 400)), TooLargeError, "too_many_pixels"),
    ],
)
async def test_a_bad_image_is_named_for_what_it_is(
    data: bytes, error: type[ServiceError], code: str, workers: ThreadPoolExecutor
) -> None:
    kitchen = Kitchen(workers, max_pixels=100_000)
    with pytest.raises(error) as caught:
        await kitchen.predictor.estimate(EstimateRequest(data, FAR))
    assert caught.value.code == code
    assert kitchen.backend.calls == []


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (Box(80, 10, 40, 20), "lies outside the image, which is 80 x 60 pixels"),
        (Box(-40, 0, 40.5, 20), "lies outside"),
        (Box(10, 10, 0, 20), "at least 1 pixel"),
        (Box(10, 10, 5, -3), "at least 1 pixel"),
        (Box(math.nan, 0, 5, 5), "finite"),
        (Box(0, 0, math.inf, 5), "finite"),
    ],
    ids=str,
)
async def test_a_roi_that_cannot_hold_a_hand_is_refused_by_name(
    roi: Box, message: str, workers: ThreadPoolExecutor
) -> None:
    request = EstimateRequest(image_bytes(picture(80, 60)), FAR, rois=(Box(0, 0, 80, 60), roi))
    with pytest.raises(InvalidInputError, match=message) as caught:
        await Kitchen(workers).predictor.estimate(request)
    assert [each.field for each in caught.value.errors] == ["roi[1]"]


@given(st.tuples(*[st.integers(0, 1000)] * 4))
def test_a_roi_with_fractions_that_lies_inside_the_image_is_accepted(edges: tuple[int, int, int, int]) -> None:
    left, right = sorted(edge * 0.64 for edge in edges[:2])
    top, bottom = sorted(edge * 0.48 for edge in edges[2:])
    assume(right - left >= 1 and bottom - top >= 1)
    asyncio.run(_ask_about(Box(left, top, right - left, bottom - top)))


async def _ask_about(roi: Box) -> None:
    with ThreadPoolExecutor(1) as workers:
        request = EstimateRequest(IMAGE_640_480, FAR, rois=(roi,))
        box = (await Kitchen(workers).predictor.estimate(request)).hands[0].box_in_image
        assert (box.x, box.y, box.width, box.height) == pytest.approx((roi.x, roi.y, roi.width, roi.height))


@pytest.mark.parametrize(
    ("roi", "inside"),
    [
        (Box(-1, 0, 41, 20), Box(0, 0, 40, 20)),
        (Box(60, 50, 40, 20), Box(60, 50, 20, 10)),
        (Box(-50, -50, 1000, 1000), Box(0, 0, 80, 60)),
    ],
    ids=str,
)
async def test_a_roi_over_the_edge_is_clipped(roi: Box, inside: Box, workers: ThreadPoolExecutor) -> None:
    request = EstimateRequest(image_bytes(picture(80, 60)), FAR, rois=(roi,))
    (hand,) = (await Kitchen(workers).predictor.estimate(request)).hands
    assert hand.box_in_image == inside


async def test_too_many_rois_are_refused_before_any_work(workers: ThreadPoolExecutor) -> None:
    request = EstimateRequest(b"not even an image", FAR, rois=(Box(0, 0, 9, 9),) * 3)
    with pytest.raises(TooLargeError, match="3 rois were given; at most 2"):
        await Kitchen(workers, max_rois=2).predictor.estimate(request)


async def test_an_expired_request_is_told_so(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    with pytest.raises(DeadlineExceededError):
        await kitchen.predictor.estimate(EstimateRequest(image_bytes(), kitchen.clock.time() - 1))


async def test_an_image_whose_time_is_up_is_not_decoded(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    with pytest.raises(DeadlineExceededError):
        await kitchen.predictor.estimate(EstimateRequest(b"not even an image", kitchen.clock.time() - 1))


async def test_the_hands_of_one_image_share_a_batch(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, rois=(Box(0, 0, 9, 9),) * 4))
    assert [len(call.crops) for call in kitchen.backend.calls] == [4]


async def test_the_backend_is_told_how_long_an_answer_is_of_use(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    await kitchen.predictor.estimate(EstimateRequest(image_bytes(), kitchen.clock.time() + 3))
    assert kitchen.backend.calls[0].timeout_s == pytest.approx(3)


async def test_overload_is_answered_before_the_image_is_decoded(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, batching=BatchingPolicy(max_queue=1))
    kitchen.backend.hold()
    accepted = asyncio.create_task(kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR)))
    await kitchen.backend.arrived()
    with pytest.raises(OverloadedError) as caught:
        await kitchen.predictor.estimate(EstimateRequest(b"not even an image", FAR))
    assert caught.value.retry_after_s is not None
    kitchen.backend.release()
    assert len((await accepted).hands) == 1


async def test_a_failing_backend_fails_the_request_with_its_own_error(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, failing_backend(UnavailableError("the model server is down", retry_after_s=2)))
    with pytest.raises(UnavailableError, match="model server is down"):
        await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, rois=(Box(0, 0, 9, 9),) * 2))


async def test_belief_maps_of_another_shape_are_an_internal_error(workers: ThreadPoolExecutor) -> None:
    backend = FakeBackend(answer=lambda crops: np.zeros((len(crops), 4, 4, 22), np.float32))
    with pytest.raises(InternalError, match="answered with shape"):
        await Kitchen(workers, backend).predictor.estimate(EstimateRequest(image_bytes(), FAR))


async def test_bulk_requests_let_interactive_ones_go_first() -> None:
    kitchen = Kitchen(InlineExecutor(), batching=BatchingPolicy(max_batch_size=1))
    kitchen.backend.hold()
    order: list[str] = []

    async def ask(name: str, priority: Priority) -> None:
        await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, priority=priority))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name, priority in (
            ("first", Priority.BULK),
            ("bulk", Priority.BULK),
            ("interactive", Priority.INTERACTIVE),
        ):
            group.create_task(ask(name, priority))
            await settle()
        kitchen.backend.release()
    assert order == ["first", "interactive", "bulk"]


async def test_an_answer_is_reported_once_with_its_phases(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR))
    assert kitchen.observer.estimates == [estimate]
    assert kitchen.observer.parts == ["decode", "detection", "postprocess"]
    assert [(model.kind, size) for model, size, _ in kitchen.observer.batches] == [("detector", 1), ("lightweight", 1)]


async def test_a_failure_says_which_model_the_request_was_routed_to(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    for data, asked_for, routed_to in (
        (b"no image", "standard@1", ("standard", 1)),
        (image_bytes(), "standard@99", ("standard", None)),
        (image_bytes(), "huge", None),
    ):
        with pytest.raises(ServiceError) as caught:
            await kitchen.predictor.estimate(EstimateRequest(data, FAR, asked_for=asked_for))
        assert caught.value.routed_to == routed_to


class Gate(ThreadPoolExecutor):
    """Threads whose work begins only once `open` was called; counts what they were given."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        self.open = threading.Event()
        self.given = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given += 1

        def begin() -> Any:
            self.open.wait(20)
            return fn(*args, **kwargs)

        return super().submit(begin)


async def test_an_image_whose_time_is_up_when_a_thread_is_free_is_not_decoded() -> None:
    with Gate() as threads:
        kitchen = Kitchen(threads)
        asked = asyncio.create_task(
            kitchen.predictor.estimate(EstimateRequest(IMAGE_640_480, kitchen.clock.time() + 1))
        )
        await until(lambda: threads.given == 1)
        kitchen.clock.advance(2)
        threads.open.set()
        with pytest.raises(DeadlineExceededError, match="before its image could be decoded"):
            await asked
        assert threads.given == 1


async def test_draining_answers_what_was_accepted_and_refuses_the_rest(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    kitchen.backend.hold()
    accepted = asyncio.create_task(kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR)))
    await kitchen.backend.arrived()
    draining = asyncio.create_task(kitchen.predictor.drain())
    await settle()
    assert not draining.done()
    with pytest.raises(UnavailableError, match="shutting down"):
        await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR))
    kitchen.backend.release()
    assert len((await accepted).hands) == 1
    await draining


async def test_versions_of_one_variant_have_queues_of_their_own(workers: ThreadPoolExecutor) -> None:
    backend = FakeBackend(served_model(version=1), served_model(version=2, labels=("canary",)))
    kitchen = Kitchen(workers, backend)
    for wish, version in (("lightweight@1", 1), ("lightweight@canary", 2)):
        estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, asked_for=wish))
        assert estimate.model.version == version
    assert [call.model.version for call in backend.calls] == [1, 2]


@pytest.fixture(scope="module")
def poster() -> bytes:
    """More than a small image takes to be decoded, and not to be had smaller."""
    return image_bytes(picture(5000, 4000), "PNG")


async def test_a_large_image_waits_for_room_and_is_answered(workers: ThreadPoolExecutor, poster: bytes) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(poster, FAR))
    assert estimate.image_size == (5000, 4000)
    assert kitchen.decoder.large.most_held >= 5000 * 4000 * 4


class HeldThreads(ThreadPoolExecutor):
    """Threads that begin and do not end before `go_on`. The first so many pieces of work are done at once."""

    def __init__(self, threads: int, *, at_once: int) -> None:
        super().__init__(threads)
        self._at_once = at_once
        self._may_end = threading.Event()
        self.running = 0
        self.begun: list[str] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        return super().submit(self._run, function, arguments, named)

    def _run(self, function: Callable[..., Any], arguments: Any, named: Any) -> Any:
        self.begun.append(function.__name__)
        if len(self.begun) > self._at_once:
            self.running += 1
            self._may_end.wait(20)
            self.running -= 1
        return function(*arguments, **named)

    def go_on(self) -> None:
        self._may_end.set()


async def test_a_picture_is_let_go_of_with_its_room_whoever_still_holds_it(workers: ThreadPoolExecutor) -> None:
    decoder = ImageDecoder(workers, ManualClock())
    async with decoder.open(image_bytes(), deadline=FAR) as image:
        pixels = await image.apply(lambda decoded: weakref.ref(decoded.pixels))
        assert decoder.small.held > 0
    assert (pixels(), decoder.small.held) == (None, 0)
    with pytest.raises(ValueError, match="let go"):
        await image.apply(lambda decoded: decoded.pixels)


async def test_an_image_that_nobody_wants_any_more_keeps_its_room_until_its_thread_is_done(poster: bytes) -> None:
    with HeldThreads(2, at_once=1) as threads:
        kitchen = Kitchen(threads)
        gone = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(poster, FAR)))
        await until(lambda: threads.running == 1)  # it is being decoded
        for _ in range(2):
            gone.cancel()
            await settle()
        kept = (gone.done(), kitchen.decoder.large.held)
        threads.go_on()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert kept == (False, kitchen.decoder.large.most_held)
        assert kitchen.decoder.large.held == 0


async def test_an_image_that_no_thread_has_begun_with_is_given_up_at_once(poster: bytes) -> None:
    with HeldThreads(1, at_once=0) as threads:
        kitchen = Kitchen(threads)
        first = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(IMAGE_640_480, FAR)))
        await until(lambda: threads.running == 1)
        gone = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(poster, FAR)))
        await settle()
        gone.cancel()
        await settle()
        given_up = gone.done()
        threads.go_on()
        await first
        assert given_up


async def test_a_large_image_that_there_can_be_no_room_for_is_too_large(
    workers: ThreadPoolExecutor, poster: bytes
) -> None:
    kitchen = Kitchen(workers, large_images_bytes=70_000_000)
    with pytest.raises(TooLargeError) as refused:
        await kitchen.predictor.estimate(EstimateRequest(poster, FAR))
    assert refused.value.code == "too_many_pixels"


async def test_a_large_photo_needs_little_room_because_it_is_decoded_smaller(workers: ThreadPoolExecutor) -> None:
    photo = image_bytes(picture(5000, 4000), "JPEG")
    kitchen = Kitchen(workers, large_images_bytes=1)
    await kitchen.predictor.estimate(EstimateRequest(photo, FAR))
    await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(0, 0, 2000, 2000), Box(9, 9, 1500, 1800))))
    with pytest.raises(TooLargeError):
        await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(0, 0, 100, 100),)))


async def test_a_roi_of_a_photo_that_is_decoded_smaller_comes_back_in_place(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, FakeBackend(answer=hand_where_crop_is_marked), large_images_bytes=1)
    photo = image_bytes(marked_picture(4800, 3600, (2380, 1780, 2420, 1820)), "JPEG")
    estimate = await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(2000, 1400, 1000, 800),)))
    np.testing.assert_allclose(estimate.hands[0].keypoints_in_image[0], (2400, 1800), atol=4)


async def test_many_small_images_are_open_within_their_budget() -> None:
    side = 3000  # 36 MB as pixels: three fit into the budget of two threads
    image = image_bytes(picture(side, side), "PNG")
    with ThreadPoolExecutor(2) as workers:
        kitchen = Kitchen(workers, threads=2)
        await asyncio.gather(*(kitchen.predictor.estimate(EstimateRequest(image, FAR)) for _ in range(6)))
        assert side * side * 4 <= kitchen.decoder.small.most_held <= kitchen.decoder.small.limit
        assert kitchen.decoder.small.held == 0


async def test_a_poster_does_not_keep_snapshots_waiting(poster: bytes) -> None:
    with HeldThreads(2, at_once=1) as threads:
        kitchen = Kitchen(threads, threads=2)
        slow = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(poster, FAR)))
        await until(lambda: threads.running == 1)  # it is being decoded
        second = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(poster, FAR)))
        await settle()
        assert threads.running <= 2
        threads.go_on()
        await asyncio.gather(slow, second)
