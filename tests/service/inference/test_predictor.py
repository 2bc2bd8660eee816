"""The use case from image bytes to keypoints in the image, on a fake backend whose hands are known."""

import asyncio
import io
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import ImageCms

from service.inference.batching import BatchingPolicy, Priority
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
from service.inference.memory import DECODING_BYTES, DecodingRoom
from service.inference.models import ModelReference
from service.inference.ports import Stage
from service.inference.predictor import EstimateRequest, Limits, Predictor
from service.inference.routing import Router
from service.pose.geometry import Box
from service.pose.preprocessing import CROP_PADDING, crop
from tests.support.backend import FakeBackend, failing_backend, hand_where_crop_is_marked, spread_keypoints
from tests.support.clock import ManualClock, settle
from tests.support.images import image_bytes, jpeg_in_scans, marked_picture, picture
from tests.support.models import INPUT_SIZE, served_model
from tests.support.observer import RecordingObserver
from tests.support.waiting import until

FAR = math.inf
DEFAULT = ModelReference("lightweight")
IMAGE_640_480 = image_bytes(picture(640, 480))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Kitchen:
    """A predictor with everything it needs."""

    def __init__(
        self,
        workers: ThreadPoolExecutor,
        backend: FakeBackend | None = None,
        *,
        limits: Limits | None = None,
        batching: BatchingPolicy | None = None,
        decoding_bytes: int = DECODING_BYTES,
        small_photos_here: bool = True,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.observer = RecordingObserver()
        self.clock = ManualClock()
        self.room = DecodingRoom(decoding_bytes, self.clock)
        self.predictor = Predictor(
            backend=self.backend,
            router=Router(DEFAULT),
            observer=self.observer,
            clock=self.clock,
            workers=workers,
            batching=batching or BatchingPolicy(),
            limits=limits or Limits(),
            room=self.room,
            small_photos_here=small_photos_here,
        )


async def test_a_whole_image_is_one_hand_in_the_images_own_coordinates(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(picture(640, 480)), FAR))
    (hand,) = estimate.hands
    assert hand.box_in_image == Box(0, 0, 640, 480)
    # The image is letterboxed: 640 px become the input's width, and 80 px of grey lie above and below.
    expected = spread_keypoints(INPUT_SIZE) * (640 / INPUT_SIZE) - (0, 80)
    np.testing.assert_allclose(hand.keypoints_in_image, expected, atol=0.05 * 640 / INPUT_SIZE)
    assert (estimate.picture.width, estimate.picture.height) == (640, 480)
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
    assert (estimate.picture.width, estimate.picture.height) == (300, 200)
    np.testing.assert_allclose(estimate.hands[0].keypoints_in_image[0], upright, atol=1.0)


async def test_a_pictures_pixels_are_kept_only_where_they_are_wanted(workers: ThreadPoolExecutor) -> None:
    data = image_bytes(marked_picture(1600, 1200, (700, 500, 900, 700)), "JPEG")
    kitchen = Kitchen(workers, FakeBackend(answer=hand_where_crop_is_marked))
    quick = await kitchen.predictor.estimate(EstimateRequest(data, FAR))
    full = await kitchen.predictor.estimate(EstimateRequest(data, FAR, full_picture=True))
    assert quick.picture.pixels is None
    assert full.picture.pixels is not None
    assert full.picture.pixels.size == (1600, 1200)
    for estimate in (quick, full):
        assert (estimate.picture.width, estimate.picture.height) == (1600, 1200)
        np.testing.assert_allclose(estimate.hands[0].keypoints_in_image[0], (800, 600), atol=3)


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
    kitchen = Kitchen(workers, limits=Limits(max_pixels=100_000))
    with pytest.raises(error) as caught:
        await kitchen.predictor.estimate(EstimateRequest(data, FAR))
    assert caught.value.code == code
    assert kitchen.backend.calls == []


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (Box(60, 10, 40, 20), "must lie inside the image, which is 80 x 60 pixels"),
        (Box(-1, 0, 40, 20), "must lie inside"),
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
        assert (await Kitchen(workers).predictor.estimate(request)).hands[0].box_in_image == roi


async def test_too_many_rois_are_refused_before_any_work(workers: ThreadPoolExecutor) -> None:
    request = EstimateRequest(b"not even an image", FAR, rois=(Box(0, 0, 9, 9),) * 3)
    with pytest.raises(TooLargeError, match="3 rois were given; at most 2"):
        await Kitchen(workers, limits=Limits(max_rois=2)).predictor.estimate(request)


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
    with pytest.raises(InternalError, match="belief maps of shape"):
        await Kitchen(workers, backend).predictor.estimate(EstimateRequest(image_bytes(), FAR))


async def test_bulk_requests_let_interactive_ones_go_first(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, batching=BatchingPolicy(max_batch_size=1))
    kitchen.backend.hold()
    order: list[str] = []

    async def ask(name: str, priority: Priority) -> None:
        await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, priority=priority))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask("first", Priority.BULK))
        await kitchen.backend.arrived()
        for depth, (name, priority) in enumerate(
            [("bulk", Priority.BULK), ("interactive", Priority.INTERACTIVE)], start=2
        ):
            group.create_task(ask(name, priority))
            while len(kitchen.observer.depths) < depth:
                await settle(1)
        workers.submit(int).result()  # both images are decoded, in the one worker thread
        await settle()
        kitchen.backend.release()
    assert order == ["first", "interactive", "bulk"]


async def test_every_stage_of_an_answer_is_reported_once(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR))
    await settle(1)  # the answer comes first
    assert [stage for _, stage, _ in kitchen.observer.stages] == list(Stage)
    assert [model for model, _ in kitchen.observer.hands] == [estimate.model]
    assert [size for _, size, _ in kitchen.observer.batches] == [1]


class Counting(ThreadPoolExecutor):
    """One worker, which counts what it is given."""

    def __init__(self) -> None:
        super().__init__(1)
        self.given = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given += 1
        return super().submit(fn, *args, **kwargs)


SMALL_PHOTO = image_bytes(picture(640, 480), "JPEG")


def with_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    buffer = io.BytesIO()
    picture(64, 48).save(buffer, "JPEG", icc_profile=profile)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "turns"),
    [
        pytest.param(SMALL_PHOTO, 0, id="small photo"),
        pytest.param(image_bytes(picture(64, 48).convert("L"), "JPEG"), 0, id="grey"),
        pytest.param(image_bytes(picture(64, 48).convert("CMYK"), "JPEG"), 1, id="other colours"),
        pytest.param(with_profile(), 1, id="colour profile"),
        pytest.param(image_bytes(picture(640, 480)), 1, id="no JPEG"),
        pytest.param(image_bytes(picture(641, 480), "JPEG"), 1, id="more pixels"),
        pytest.param(SMALL_PHOTO + bytes(128 * 1024), 1, id="more bytes"),
        pytest.param(image_bytes(picture(1025, 8), "JPEG"), 1, id="a side too long"),
        pytest.param(jpeg_in_scans(picture(64, 48), 3), 1, id="several scans"),
    ],
)
async def test_only_a_small_photo_is_decoded_without_a_thread(image: bytes, turns: int) -> None:
    with Counting() as workers:
        estimate = await Kitchen(workers).predictor.estimate(EstimateRequest(image, FAR))
    assert workers.given == turns
    assert len(estimate.hands) == 1


@pytest.mark.parametrize(("rois", "turns"), [(4, 0), (5, 1)])
async def test_small_photo_of_many_hands_is_cropped_in_a_thread(rois: int, turns: int) -> None:
    with Counting() as workers:
        request = EstimateRequest(SMALL_PHOTO, FAR, rois=(Box(0, 0, 64, 48),) * rois)
        estimate = await Kitchen(workers).predictor.estimate(request)
    assert workers.given == turns
    assert len(estimate.hands) == rois


async def test_late_photo_is_not_decoded_where_it_waited_for_a_thread() -> None:
    with Counting() as workers:
        kitchen = Kitchen(workers)
        go_on = threading.Event()
        workers.submit(go_on.wait)
        larger = EstimateRequest(image_bytes(picture(641, 480), "JPEG"), kitchen.clock.time() + 1)
        asked = asyncio.create_task(kitchen.predictor.estimate(larger))
        await until(lambda: workers.given == 2)
        kitchen.clock.advance(2)
        go_on.set()
        with pytest.raises(DeadlineExceededError, match="before its image could be decoded"):
            await asked


async def test_small_photos_are_decoded_in_threads_where_all_cores_are_for_them() -> None:
    with Counting() as workers:
        kitchen = Kitchen(workers, small_photos_here=False)
        await kitchen.predictor.estimate(EstimateRequest(SMALL_PHOTO, FAR))
    assert workers.given == 1


async def test_others_have_their_turn_between_small_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, turns_of_crops = 0, list[int]()

    def noted(*arguments: Any) -> Any:
        turns_of_crops.append(turn)
        return crop(*arguments)

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr("service.inference.predictor.crop", noted)
    with Counting() as workers:
        kitchen = Kitchen(workers)
        others = asyncio.create_task(take_turns())
        request = EstimateRequest(SMALL_PHOTO, FAR)
        estimates = await asyncio.gather(*(kitchen.predictor.estimate(request) for _ in range(13)))
        others.cancel()
    assert len(estimates) == len(turns_of_crops) == 13
    assert max(Counter(turns_of_crops).values()) <= 4
    assert workers.given == 0


async def test_small_photo_whose_time_is_up_before_its_turn_is_not_decoded() -> None:
    with Counting() as workers:
        kitchen = Kitchen(workers)
        soon = EstimateRequest(SMALL_PHOTO, kitchen.clock.time() + 1)
        asked = [asyncio.create_task(kitchen.predictor.estimate(soon)) for _ in range(5)]
        await settle(1)  # four are decoded, and the fifth waits
        kitchen.clock.advance(2)
        with pytest.raises(DeadlineExceededError, match="before its image could be decoded"):
            await asked[-1]
        await asyncio.gather(*asked, return_exceptions=True)


async def test_broken_small_photo_is_told_so_without_a_thread() -> None:
    with Counting() as workers, pytest.raises(UndecodableImageError):
        await Kitchen(workers).predictor.estimate(EstimateRequest(SMALL_PHOTO[:-700], FAR))
    assert workers.given == 0


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
    for wish in ("lightweight@1", "lightweight@canary"):
        estimate = await kitchen.predictor.estimate(EstimateRequest(image_bytes(), FAR, asked_for=wish))
        assert str(estimate.model.version) in "12"
    assert [call.model.version for call in backend.calls] == [1, 2]


@pytest.fixture(scope="module")
def poster() -> bytes:
    """More than a small image takes to be decoded, and not to be had smaller."""
    return image_bytes(picture(5000, 4000), "PNG")


async def test_a_large_image_waits_for_room_and_is_answered(workers: ThreadPoolExecutor, poster: bytes) -> None:
    kitchen = Kitchen(workers)
    estimate = await kitchen.predictor.estimate(EstimateRequest(poster, FAR))
    assert (estimate.picture.width, estimate.picture.height) == (5000, 4000)
    assert kitchen.room.most_held >= 5000 * 4000 * 4


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


async def test_an_image_that_nobody_wants_any_more_keeps_its_room_until_its_thread_is_done(poster: bytes) -> None:
    with HeldThreads(2, at_once=1) as threads:
        kitchen = Kitchen(threads)
        gone = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(poster, FAR)))
        await until(lambda: threads.running == 1)  # it is being decoded
        for _ in range(2):
            gone.cancel()
            await settle()
        kept = (gone.done(), kitchen.room.held)
        threads.go_on()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert kept == (False, kitchen.room.most_held)
        assert kitchen.room.held == 0


async def test_an_image_that_no_thread_has_begun_with_is_forgotten_at_once(poster: bytes) -> None:
    with HeldThreads(1, at_once=0) as threads:
        kitchen = Kitchen(threads)
        first = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(IMAGE_640_480, FAR)))
        await until(lambda: threads.running == 1)
        image = bytes(bytearray(poster))  # nobody else has this one
        unheld = sys.getrefcount(image)
        gone = asyncio.ensure_future(kitchen.predictor.estimate(EstimateRequest(image, FAR)))
        await settle()
        gone.cancel()
        await settle()
        forgotten = gone.done()
        del gone
        held = sys.getrefcount(image) - unheld  # by the pool, for one: it keeps what it has not begun
        threads.go_on()
        await first
        assert forgotten
        assert held == 0
        assert len(threads.begun) == 1


async def test_a_large_image_that_there_can_be_no_room_for_is_too_large(
    workers: ThreadPoolExecutor, poster: bytes
) -> None:
    kitchen = Kitchen(workers, decoding_bytes=70_000_000)
    with pytest.raises(TooLargeError) as refused:
        await kitchen.predictor.estimate(EstimateRequest(poster, FAR))
    assert refused.value.code == "too_many_pixels"


async def test_a_large_photo_needs_little_room_because_it_is_decoded_smaller(workers: ThreadPoolExecutor) -> None:
    photo = image_bytes(picture(5000, 4000), "JPEG")
    kitchen = Kitchen(workers, decoding_bytes=1)
    await kitchen.predictor.estimate(EstimateRequest(photo, FAR))
    await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(0, 0, 2000, 2000), Box(9, 9, 1500, 1800))))
    with pytest.raises(TooLargeError):
        await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(0, 0, 100, 100),)))


async def test_a_roi_of_a_photo_that_is_decoded_smaller_comes_back_in_place(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, FakeBackend(answer=hand_where_crop_is_marked), decoding_bytes=1)
    photo = image_bytes(marked_picture(4800, 3600, (2380, 1780, 2420, 1820)), "JPEG")
    estimate = await kitchen.predictor.estimate(EstimateRequest(photo, FAR, rois=(Box(2000, 1400, 1000, 800),)))
    np.testing.assert_allclose(estimate.hands[0].keypoints_in_image[0], (2400, 1800), atol=4)


async def test_pixels_to_draw_on_give_their_room_back_when_they_are_forgotten(workers: ThreadPoolExecutor) -> None:
    kitchen = Kitchen(workers, decoding_bytes=1_500_000)
    request = EstimateRequest(IMAGE_640_480, FAR, full_picture=True)
    for _ in range(3):
        estimate = await kitchen.predictor.estimate(request)
        waiting = asyncio.ensure_future(kitchen.predictor.estimate(request))
        await settle()
        assert not waiting.done()
        del estimate
        await waiting
        del waiting
        await settle()
    assert kitchen.room.most_held <= 1_500_000
