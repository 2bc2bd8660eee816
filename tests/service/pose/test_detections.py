"""The detector's rows in the picture, and hands that are said twice."""

import math

import numpy as np
import pytest

from service.pose.detections import LEAST_SCORE, Detection, detections_in_image, distinct
from service.pose.geometry import Affine, Box, crop_affine


def test_rows_are_mapped_through_the_letterbox() -> None:
    to_input = crop_affine(Box(0, 0, 400, 200), (100, 100))
    row = (0.9, 50, 50, 20, 0.0, -1.0, 0.25)
    (found,) = detections_in_image(np.array([row]), to_input)
    assert found.centre_in_image == pytest.approx((200, 100))
    assert (found.score, found.size, found.radians, found.right) == pytest.approx((0.9, 80, 0, 0.25))
    assert found.square_in_image == Box(160, 60, 80, 80)


@pytest.mark.parametrize(("cos", "sin", "degrees"), [(0, -1, 0), (1, 0, -90), (0, 1, 180), (-1, 0, 90)])
def test_the_turn_makes_the_direction_point_up(cos: float, sin: float, degrees: float) -> None:
    (found,) = detections_in_image(np.array([(1, 5, 5, 5, cos, sin, 1)]), Affine.identity())
    assert math.degrees(found.radians) % 360 == pytest.approx(degrees % 360)
    np.testing.assert_allclose(Affine.rotation(found.radians).apply(np.array((cos, sin))), (0, -1), atol=1e-12)


def test_rows_that_are_no_hands_are_left_out_and_the_others_come_best_first() -> None:
    rows = [
        (0.0, 0, 0, 0, 0, 0, 0),
        (LEAST_SCORE / 2, 5, 5, 5, 1, 0, 1),
        (0.4, 1, 1, 5, 1, 0, 1),
        (0.8, 9, 9, 5, 1, 0, 1),
        (math.nan, 5, 5, 5, 1, 0, 1),
        (0.9, 5, 5, math.inf, 1, 0, 1),
        (0.9, 5, 5, -1, 1, 0, 1),
    ]
    assert [each.score for each in detections_in_image(np.array(rows), Affine.identity())] == [0.8, 0.4]


def at(x: float, y: float, size: float = 100.0, score: float = 1.0) -> Detection:
    return Detection(score, (x, y), size, 0.0, 1.0)


def test_of_two_detections_of_one_hand_the_better_stays() -> None:
    best, again, beside, small = at(0, 0, score=0.9), at(20, 20, score=0.8), at(60, 0, score=0.7), at(0, 30, 20)
    assert distinct([best, again, beside, small]) == [best, beside]
