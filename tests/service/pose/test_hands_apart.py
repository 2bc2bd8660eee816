"""Several hands of a picture: duplicates, and keypoints that lie on another hand."""

import numpy as np
from numpy.typing import NDArray

from service.pose.hands_apart import claimed_twice, duplicates, sizes_of, without


def hand_at(x: float, y: float, size: float = 100.0) -> NDArray[np.float64]:
    """21 keypoints spread over a square of this size about a middle."""
    steps = np.arange(21) / 20 - 0.5
    return np.stack((x + size * steps, y + size * steps[(np.arange(21) * 8) % 21]), axis=-1)


def test_the_size_of_a_hand_is_its_boxs_longer_side() -> None:
    np.testing.assert_allclose(sizes_of(np.stack([hand_at(0, 0), hand_at(9, 9, 30)])), (100, 30))


def test_a_hand_again_is_the_one_that_scores_less() -> None:
    assert duplicates([hand_at(0, 0), hand_at(5, 5), hand_at(300, 0)], [0.7, 0.9, 0.8]) == {0}
    assert duplicates([], []) == set()


def test_hands_side_by_side_are_no_duplicates() -> None:
    assert duplicates([hand_at(0, 0), hand_at(60, 0)], [0.9, 0.9]) == set()


def test_a_keypoint_on_another_hand_is_that_of_the_hand_further_away() -> None:
    left, right = hand_at(0, 0), hand_at(110, 0)
    stray = left.copy()
    stray[4] = right[4] + (1.0, -1.0)
    keypoints = np.stack([stray, right])
    centres = np.array([(0.0, 0.0), (110.0, 0.0)])
    assert claimed_twice(keypoints, centres, np.array([100.0, 100.0])) == [(0, 4)]
    assert claimed_twice(keypoints[::-1], centres[::-1], np.array([100.0, 100.0])) == [(1, 4)]
    assert claimed_twice(np.stack([left, right]), centres, np.array([100.0, 100.0])) == []


def test_a_place_can_be_taken_out_of_a_map() -> None:
    belief = np.ones((6, 8), np.float32)
    kept = without(belief, np.array((2.5, 3.5)), 1.0)
    assert kept[3, 2] == kept[3, 1] == kept[2, 2] == 0
    assert kept.sum() == 48 - 5
    assert belief.min() == 1
