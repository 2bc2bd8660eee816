"""Targets: a grid that says what they say decodes to the hands they were made of."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.pose.detections import DETECTIONS, detections_in_image, distinct
from service.pose.geometry import Affine, Box, turn_to_upright
from tests.trainer.detection.pictures import hand, picture
from trainer.detection.labels import LabelledHand
from trainer.detection.targets import Targets, make_targets
from trainer.models.detector import decode

SIZE = 256


def grid_of(targets: Targets) -> NDArray[np.float32]:
    """The grid [1, S, S, 7] of a network that has learned these targets by heart."""
    heat = np.clip(targets.heat, 0.001, 0.999)
    right = np.where(targets.values[..., 5:] > 0.5, 5.0, -5.0)
    grid = np.concatenate([np.log(heat / (1 - heat))[..., None], targets.values[..., :5], right], axis=-1)
    return grid[None].astype(np.float32)


def test_a_grid_of_targets_decodes_to_the_hands_they_were_made_of() -> None:
    hands = [hand(60, 70, 50), hand(180, 60, 24, degrees=75, side="left"), hand(120, 190, 90, degrees=-160)]
    rows = np.asarray(decode(grid_of(make_targets(hands, (), SIZE))))
    assert rows.shape == (1, DETECTIONS, 7)
    found = distinct(detections_in_image(rows[0], Affine.identity()))
    sure = sorted((each for each in found if each.score > 0.9), key=lambda each: each.centre_in_image[1])
    assert len(sure) == 3
    for each, true in zip(sure, sorted(hands, key=lambda one: one.upright_square()[0][1]), strict=True):
        centre, size = true.upright_square()
        assert true.along is not None
        np.testing.assert_allclose(each.centre_in_image, centre, atol=0.01)
        assert each.size == pytest.approx(size, rel=1e-4)
        assert each.radians == pytest.approx(turn_to_upright(true.along), abs=1e-3)
        assert (each.right > 0.5) == (true.handedness == "right")


def test_rows_without_a_hand_have_a_low_score_and_best_come_first() -> None:
    rows = np.asarray(decode(grid_of(make_targets([hand(60, 70, 50)], (), SIZE))))[0]
    assert (np.diff(rows[:, 0]) <= 0).all()
    assert rows[0, 0] > 0.9
    assert (rows[1:, 0] < 0.1).all()


@pytest.mark.parametrize(
    "excused", [hand(60, 70, 8), hand(-4, 70, 60), hand(270, 70, 60)], ids=["too small", "left of it", "right of it"]
)
def test_hands_that_cannot_be_taught_are_neither_hands_nor_background(excused: LabelledHand) -> None:
    targets = make_targets([excused], (), SIZE)
    assert targets.heat.max() < 1
    assert targets.weights.sum() == 0
    inside = excused.keypoints[((excused.keypoints >= 0) & (excused.keypoints < SIZE)).all(axis=1)]
    for x, y in inside // 8:
        assert targets.counted[int(y), int(x)] == 0
    assert targets.counted.mean() > 0.8


def test_ignored_regions_do_not_count_but_a_hand_in_them_does() -> None:
    targets = make_targets([hand(60, 70, 40)], (Box(30, 30, 100, 100),), SIZE)
    assert targets.counted[4, 15] == 0
    assert targets.counted[20, 20] == 1
    middle = hand(60, 70, 40).upright_square()[0] // 8
    assert targets.counted[int(middle[1]), int(middle[0])] == 1


def test_a_hand_of_unknown_side_and_direction_teaches_neither() -> None:
    known = hand(60, 70, 50, side=None)
    targets = make_targets([LabelledHand(known.keypoints, None, None)], (), SIZE)
    assert targets.weights[..., :3].sum() > 0
    assert targets.weights[..., 3:].sum() == 0


def test_mirrored_pictures_show_the_other_side() -> None:
    before = picture(hand(60, 70, 50, degrees=30), hand(150, 70, 50, side=None))
    mirrored = before.moved(Affine.mirror(256))
    assert [each.handedness for each in mirrored.hands] == ["left", None]
    first, second = before.hands[0].along, mirrored.hands[0].along
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(second, first * (-1, 1), atol=1e-9)
    np.testing.assert_allclose(
        mirrored.hands[0].upright_square()[0], before.hands[0].upright_square()[0] * (-1, 1) + (256, 0), atol=1e-9
    )
