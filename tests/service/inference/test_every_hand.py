"""Hands that are looked for: every one in the picture with its own keypoints, or none."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.inference.errors import InvalidInputError, OverloadedError, UnavailableError
from service.inference.estimates import Estimate, EstimateRequest
from service.inference.model_queue import BatchingPolicy
from service.inference.predictor import Predictor
from service.inference.regions import Region
from service.pose.detections import Detection
from service.pose.geometry import Box
from service.pose.preprocessing import CROP_PADDING
from tests.support.backend import (
    Crops,
    FakeBackend,
    Maps,
    detection,
    hand_where_crop_is_marked,
    maps_of,
    spread_keypoints,
)
from tests.support.images import image_bytes, marked_picture, picture
from tests.support.models import INPUT_SIZE
from tests.support.predictor import make_predictor

FAR = math.inf
SQUARE = image_bytes(picture(400, 400))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def predictor(backend: FakeBackend, workers: ThreadPoolExecutor) -> Predictor:
    return make_predictor(backend, workers=workers)


async def look(predictor: Predictor, image: bytes = SQUARE, **options: object) -> Estimate:
    return await predictor.estimate(EstimateRequest(image, FAR, **options))  # type: ignore[arg-type]


async def test_a_picture_without_hands_has_none(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = ()
    estimate = await look(predictor)
    assert estimate.hands == ()
    assert (len(backend.searches), len(backend.calls)) == (1, 0)


async def test_each_hand_is_seen_in_a_crop_of_its_own_size(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = (detection(0.25, 0.5, 0.25, score=0.9, right=0.9), detection(0.75, 0.5, 0.5, right=0.2))
    small, large = (await look(predictor)).hands[::-1]
    for hand, (x, size) in ((small, (100.0, 100.0)), (large, (300.0, 200.0))):
        scale = size * CROP_PADDING / INPUT_SIZE
        expected = (spread_keypoints(INPUT_SIZE) - INPUT_SIZE / 2) * scale + (x, 200.0)
        np.testing.assert_allclose(hand.keypoints_in_image, expected, atol=0.05 * size)
        assert hand.box_in_image == Box.around(hand.keypoints_in_image)
    assert (small.handedness and small.handedness.label, large.handedness and large.handedness.label) == (
        "right",
        "left",
    )
    assert large.handedness is not None
    assert large.handedness.score == pytest.approx(0.8)
    assert small.detection_score == pytest.approx(0.9)


async def test_a_turned_hand_is_shown_upright_and_comes_back_turned(
    workers: ThreadPoolExecutor, backend: FakeBackend
) -> None:
    backend.answer = hand_where_crop_is_marked
    backend.detections = (detection(0.5, 0.5, 0.5, degrees=90),)  # its fingers point to the right
    image = image_bytes(marked_picture(400, 400, (250, 190, 270, 210)))
    (hand,) = (await look(make_predictor(backend, workers=workers), image)).hands
    np.testing.assert_allclose(hand.keypoints_in_image, np.full((21, 2), (260.0, 200.0)), atol=2.0)
    (call,) = backend.calls
    red = (call.crops[0][..., 0] > 128) & (call.crops[0][..., 1] < 64)
    rows, columns = np.nonzero(red)
    assert rows.mean() < INPUT_SIZE * 0.4  # what was to the right is above
    assert columns.mean() == pytest.approx(INPUT_SIZE / 2, abs=1)


async def test_a_wide_picture_is_letterboxed_for_the_detector(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = (detection(0.5, 0.5, 0.2),)
    (hand,) = (await look(predictor, image_bytes(picture(640, 160)))).hands
    middle = hand.keypoints_in_image.mean(axis=0)
    np.testing.assert_allclose(middle, (320, 80), atol=3)
    (search,) = backend.searches
    assert search.crops[0][0, 0].tolist() == [128, 128, 128]


async def test_hands_come_best_first_and_no_more_than_asked_for(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = tuple(
        detection(0.1 + 0.2 * i, 0.5, 0.1, score=score) for i, score in enumerate((0.95, 0.9, 0.8, 0.7))
    )
    scores = [hand.score for hand in (await look(predictor)).hands]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    assert len((await look(predictor, max_hands=2)).hands) == 2
    assert [len(call.crops) for call in backend.calls] == [4, 2]


async def test_a_hand_that_scores_less_than_asked_for_is_left_out(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = (detection(0.3, 0.5, 0.2, score=0.9), detection(0.7, 0.5, 0.2, score=0.15))
    (likely, unlikely) = (await look(predictor, min_score=0.0)).hands
    between = (likely.score + unlikely.score) / 2
    (kept,) = (await look(predictor, min_score=between)).hands
    assert kept.score == likely.score


async def test_a_hand_that_is_detected_twice_is_told_once(predictor: Predictor, backend: FakeBackend) -> None:
    backend.detections = (detection(0.5, 0.5, 0.4, score=0.9), detection(0.52, 0.5, 0.4, score=0.8))
    assert len((await look(predictor)).hands) == 1


async def test_a_keypoint_on_the_hand_beside_it_is_looked_for_in_its_own(
    workers: ThreadPoolExecutor, backend: FakeBackend
) -> None:
    """The left hand's crop shows the right hand's thumb tip more strongly than its own."""
    thumb_tip = 4

    def two_peaks(crops: Crops) -> Maps:
        maps = maps_of(np.repeat(spread_keypoints(INPUT_SIZE)[None], len(crops), axis=0), INPUT_SIZE)
        if len(crops) == 2:
            own = spread_keypoints(INPUT_SIZE)
            beside = own + np.array((INPUT_SIZE / CROP_PADDING, 0.0))
            other = maps_of(beside[None], INPUT_SIZE)[0, ..., thumb_tip]
            maps[0, ..., thumb_tip] = np.maximum(0.8 * maps[0, ..., thumb_tip], other)
        return maps

    backend.answer = two_peaks
    backend.detections = (detection(0.3, 0.5, 0.4, score=0.9), detection(0.7, 0.5, 0.4, score=0.8))
    left, right = (await look(make_predictor(backend, workers=workers))).hands
    shift = (right.keypoints_in_image - left.keypoints_in_image)[thumb_tip]
    np.testing.assert_allclose(shift, (160, 0), atol=8)
    assert left.scores[thumb_tip] < left.scores[0]


async def test_hands_known_from_before_are_looked_at_where_they_were(
    predictor: Predictor, backend: FakeBackend
) -> None:
    before = Detection(0.7, (100.0, 100.0), 80.0, 0.0, 0.9)
    square = before.square_in_image
    known = Region(square, square.scaled(CROP_PADDING), 0.0, before)
    (hand,) = (await look(predictor, known_hands=(known,))).hands
    assert backend.searches == []
    assert hand.handedness is not None
    assert hand.handedness.label == "right"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_hands": 0}, "max_hands"),
        ({"max_hands": 17}, "max_hands"),
        ({"min_score": -0.1}, "min_score"),
        ({"min_score": math.nan}, "min_score"),
        ({"whole": True, "rois": (Box(0, 0, 9, 9),)}, "whole"),
    ],
)
async def test_options_out_of_range_are_refused_by_name(
    options: dict[str, object], field: str, predictor: Predictor
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await look(predictor, **options)
    assert [each.field for each in caught.value.errors] == [field]


async def test_without_a_detector_only_requests_that_name_their_hands_are_answered(
    predictor: Predictor, backend: FakeBackend
) -> None:
    backend.without_detector = True
    with pytest.raises(UnavailableError) as caught:
        await look(predictor)
    assert caught.value.code == "no_detector"
    assert len((await look(predictor, whole=True)).hands) == 1
    assert len((await look(predictor, rois=(Box(0, 0, 90, 90),))).hands) == 1


async def test_a_full_queue_of_the_detector_refuses_before_decoding(
    workers: ThreadPoolExecutor, backend: FakeBackend
) -> None:
    predictor = make_predictor(backend, workers=workers, batching=BatchingPolicy(max_queue=1))
    with predictor.queues.of(backend.detector()).place(), pytest.raises(OverloadedError):
        await look(predictor, b"not even an image")
    assert len((await look(predictor)).hands) == 1
