"""How likely it is that a hand is there, and that its 21 keypoints are this one hand's."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hand_score(keypoint_scores: NDArray[np.floating] | Sequence[float], detection_score: float | None = None) -> float:
    """The score of a hand.

    Args:
        keypoint_scores: [21], each in [0, 1].
        detection_score: the detector's, in [0, 1]; None where it was not asked.

    Returns:
        A number in [0, 1].
    """
    mean = math.fsum(np.asarray(keypoint_scores, np.float64).tolist()) / len(keypoint_scores)
    return mean if detection_score is None else math.sqrt(mean * detection_score)
