"""Several hands of one picture: each keeps its own keypoints, and none is told twice.

A crop about one hand shows parts of those beside it, and a belief map may be higher on the wrong one. What gives that
away is a keypoint that two hands claim at the same place.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SAME_PLACE: Final = 0.15  # of the smaller hand's size: two hands do not have the same keypoint nearer together
_SAME_HAND: Final = 0.25  # mean distance of all keypoints over the smaller hand's size


def sizes_of(keypoints: NDArray[np.floating]) -> NDArray[np.float64]:
    """The longer side of the box around each hand's keypoints [N, 21, 2]: float64 [N]."""
    sides: NDArray[np.float64] = np.ptp(np.asarray(keypoints, np.float64), axis=1).max(axis=1)
    return sides


def duplicates(keypoints: Sequence[NDArray[np.floating]], scores: Sequence[float]) -> set[int]:
    """Which hands are a better one again.

    Args:
        keypoints: of each hand [21, 2], in one frame.
        scores: of each hand; of two that are the same, the lower one is the duplicate.
    """
    if not len(keypoints):
        return set()
    sizes = sizes_of(np.stack(keypoints))
    again: set[int] = set()
    for one, other in combinations(np.argsort(-np.asarray(scores), kind="stable").tolist(), 2):
        if one in again or other in again:
            continue
        apart = float(np.linalg.norm(keypoints[one] - keypoints[other], axis=-1).mean())
        if apart < _SAME_HAND * min(sizes[one], sizes[other]):
            again.add(other)
    return again


def claimed_twice(
    keypoints: NDArray[np.floating], centres: NDArray[np.floating], sizes: NDArray[np.floating]
) -> list[tuple[int, int]]:
    """The keypoints that lie on another hand, as (hand, keypoint).

    Where two hands have the same keypoint at the same place, it is not that of the hand whose middle is further away.

    Args:
        keypoints: [N, 21, 2] in one frame.
        centres: [N, 2], the middles of the hands.
        sizes: [N], how large they are.
    """
    astray = []
    for one, other in combinations(range(len(keypoints)), 2):
        apart = np.linalg.norm(keypoints[one] - keypoints[other], axis=-1)
        for index in np.flatnonzero(apart < _SAME_PLACE * min(sizes[one], sizes[other])).tolist():
            from_one = np.linalg.norm(keypoints[one, index] - centres[one]) / sizes[one]
            from_other = np.linalg.norm(keypoints[other, index] - centres[other]) / sizes[other]
            astray.append((one if from_one > from_other else other, index))
    return astray


def without(belief_map: NDArray[np.float32], place: NDArray[np.floating], radius: float) -> NDArray[np.float32]:
    """The map [height, width] with no belief within a radius (cells) of a place (x, y in heatmap coordinates)."""
    rows, columns = np.mgrid[0 : belief_map.shape[0], 0 : belief_map.shape[1]] + 0.5
    near = np.hypot(columns - place[0], rows - place[1]) <= radius
    return np.where(near, np.float32(0), belief_map)
