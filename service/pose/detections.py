"""Hands in a whole picture: what the hand detector says of them, and what it means in the picture.

The detector sees the picture letterboxed into a square. It answers with a fixed number of rows, best first; rows of
score 0 are no hands. It may say the same hand twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box, turn_to_upright

DETECTION_COLUMNS: Final = ("score", "x", "y", "size", "cos", "sin", "right")
"""The values of a row.

    score     in [0, 1], how likely it is a hand
    x, y      middle of the hand's upright box, in continuous pixels of the input
    size      longer side of that box, in pixels of the input; the box is tight around the 21 keypoints after the hand
              was turned so that wrist -> middle_mcp points up
    cos, sin  direction of wrist -> middle_mcp in the input (x right, y down), a unit vector
    right     in [0, 1], how likely it is a right hand, as literally seen
"""

DETECTIONS: Final = 16
"""Rows for each picture."""

LEAST_SCORE: Final = 0.1
"""Of rows that are looked at."""

_SAME_HAND: Final = 0.4  # distance of two middles over the larger size, below which both are one hand


@dataclass(frozen=True, slots=True)
class Detection:
    """A hand that the detector sees in a picture.

    Attributes:
        score: in [0, 1], how likely it is a hand.
        centre_in_image: (x, y), the middle of the hand, in continuous pixels.
        size: longer side of the hand's upright box, in pixels of the image.
        radians: how far the picture has to be turned, clockwise on the screen, for wrist -> middle_mcp to point up.
        right: in [0, 1], how likely it is a right hand, as literally seen.
    """

    score: float
    centre_in_image: tuple[float, float]
    size: float
    radians: float
    right: float

    @property
    def square_in_image(self) -> Box:
        """The square about the hand's middle with its size; the hand fills it once it is turned upright."""
        x, y = self.centre_in_image
        return Box(x - self.size / 2, y - self.size / 2, self.size, self.size)


def detections_in_image(rows: NDArray[np.floating], image_to_input: Affine) -> list[Detection]:
    """The detector's rows [N, 7] as hands in the picture, best first; rows below `LEAST_SCORE` are left out.

    Rows that are no hand by their numbers (not finite, without a size) are left out as well.

    Args:
        rows: `DETECTION_COLUMNS` says what.
        image_to_input: the map by which the picture was letterboxed: it scales and shifts only.
    """
    to_image = image_to_input.inverse()
    found = []
    for score, x, y, size, cos, sin, right in np.asarray(rows, np.float64).tolist():
        if score >= LEAST_SCORE and size > 0 and all(map(math.isfinite, (score, x, y, size, cos, sin, right))):
            centre_x, centre_y = to_image.apply(np.array((x, y))).tolist()
            turn = turn_to_upright(np.array((cos, sin)))
            found.append(Detection(score, (centre_x, centre_y), size * to_image.scale, turn, right))
    return sorted(found, key=lambda each: -each.score)


def distinct(detections: Sequence[Detection]) -> list[Detection]:
    """The detections without those of a hand that a better one has said already.

    Two hands are told apart by how far their middles lie apart and not by how much their boxes overlap: folded hands
    overlap nearly wholly, and the squares about a long hand and a small one before it tell little.

    Args:
        detections: best first.
    """
    kept: list[Detection] = []
    for each in detections:
        if all(
            math.dist(each.centre_in_image, other.centre_in_image) > _SAME_HAND * max(each.size, other.size)
            for other in kept
        ):
            kept.append(each)
    return kept
