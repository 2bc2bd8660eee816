"""A hand found in a whole picture is looked at again in a crop of its own, and the better answer counts."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.inference.errors import InternalError
from service.inference.estimates import Estimate, EstimateRequest
from service.pose.geometry import Box
from tests.support.backend import Crops, FakeBackend, Maps, maps_of, spread_keypoints
from tests.support.clock import ManualClock
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.predictor import make_predictor

FAR = math.inf
PICTURE = image_bytes(picture(640, 640))
PIXELS = 640 / INPUT_SIZE
"""Pixels of the picture to one of the input, when the whole is looked at."""

SPREAD = spread_keypoints(INPUT_SIZE)
SMALL = 20 + SPREAD * 0.5
"""A hand about (52, 52) in the input; its points span a quarter of it."""


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Scripted(FakeBackend):
    """Finds in its first batch the first hand it was given, in the second the second, each with its score.

    A score below 0 is a failure.
    """

    def __init__(self, *looks: tuple[np.ndarray, float], clock: ManualClock, takes_s: float = 0.0) -> None:
        super().__init__(answer=self._next)
        self._looks = looks
        self._clock = clock
        self._takes_s = takes_s

    def _next(self, crops: Crops) -> Maps:
        self._clock.advance(self._takes_s)
        points, score = self._looks[len(self.calls) - 1]
        if score < 0:
            raise InternalError("the model has gone")
        maps = maps_of(np.repeat(points[None], len(crops), axis=0), INPUT_SIZE)
        return (maps * score).astype(np.float32)


async def look(
    workers: ThreadPoolExecutor,
    *looks: tuple[np.ndarray, float],
    rois: Sequence[Box] = (),
    seconds: float = FAR,
    takes_s: float = 0.0,
) -> tuple[Estimate, int]:
    """The answer to one picture, and how many crops the model was shown for it."""
    clock = ManualClock()
    backend = Scripted(*looks, clock=clock, takes_s=takes_s)
    predictor = make_predictor(backend, workers=workers, clock=clock, second_look=True)
    request = EstimateRequest(PICTURE, clock.time() + seconds, rois=tuple(rois))
    return await predictor.estimate(request), len(backend.calls)


async def test_a_small_hand_is_answered_from_a_crop_of_its_own(workers: ThreadPoolExecutor) -> None:
    estimate, looks = await look(workers, (SMALL, 0.5), (SPREAD, 0.9))
    (hand,) = estimate.hands
    assert looks == 2
    assert hand.box_in_image == Box(0, 0, 640, 640)
    # The second crop is about the first look's points: their centre is the input's, and it is about 1.25 times as wide.
    centre = (SMALL.min(axis=0) + SMALL.max(axis=0)) / 2 * PIXELS
    side = np.ptp(SMALL, axis=0).max() * PIXELS * 1.25
    expected = centre + (SPREAD - INPUT_SIZE / 2) * (side / INPUT_SIZE)
    np.testing.assert_allclose(hand.keypoints_in_image, expected, atol=2.5)
    assert 0.8 < hand.score < 0.9  # the second look's; a peak between cells is a little lower
    assert estimate.image_size == (640, 640)


@pytest.mark.parametrize(
    ("why", "looks", "extra"),
    [
        ("it fills the picture", [(64 + (SPREAD - 64) * 1.6, 0.9)], {}),
        ("no hand is seen", [(SMALL, 0.05)], {}),
        ("the caller drew a box", [(SMALL, 0.5)], {"rois": [Box(0, 0, 640, 640)]}),
        ("there is no time", [(SMALL, 0.5)], {"seconds": 2.5, "takes_s": 1.0}),
    ],
)
async def test_a_hand_is_looked_at_once_where(
    why: str, looks: list[tuple[np.ndarray, float]], extra: dict[str, object], workers: ThreadPoolExecutor
) -> None:
    estimate, number = await look(workers, *looks, **extra)  # type: ignore[arg-type]  # a table's row
    assert number == 1
    (points, _score), (hand,) = looks[0], estimate.hands
    if "rois" not in extra:
        np.testing.assert_allclose(hand.keypoints_in_image, points * PIXELS, atol=1.0)


@pytest.mark.parametrize(("second", "why"), [((SPREAD, 0.2), "sees less"), ((SPREAD, -1.0), "fails")])
async def test_the_first_look_stands_where_the_second(
    second: tuple[np.ndarray, float], why: str, workers: ThreadPoolExecutor
) -> None:
    estimate, looks = await look(workers, (SMALL, 0.5), second)
    assert looks == 2
    np.testing.assert_allclose(estimate.hands[0].keypoints_in_image, SMALL * PIXELS, atol=1.0)


async def test_the_time_of_both_looks_is_told(workers: ThreadPoolExecutor) -> None:
    estimate, _ = await look(workers, (SMALL, 0.5), (SPREAD, 0.9), takes_s=1.0)
    assert estimate.timings.inference == pytest.approx(2.0)
    assert estimate.timings.total == pytest.approx(2.0)
