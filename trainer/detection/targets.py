"""What the grid should say of a picture whose hands are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Box
from trainer.detection.labels import LabelledHand, excused
from trainer.models.detector import GRID_STRIDE

SMALLEST_HAND: Final = 10.0
"""Size in pixels of the input below which a hand is excused: it is hardly more than a cell."""

LEAST_INSIDE: Final = 0.5
"""Share of a hand's keypoints that must be in the picture for it to be taught."""

_SPREAD: Final = 0.09  # of the Gaussian about a hand's middle, over its size
_NARROWEST: Final = 0.7  # cells
_NEAR: Final = 0.25  # cells where the Gaussian is above this are taught the hand's other values, too


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one picture; S is the side of the grid.

    Attributes:
        heat: float32 [S, S] in [0, 1], 1 in the cell that holds a hand's middle.
        counted: float32 [S, S], 0 where nothing is known.
        values: float32 [S, S, 6], x, y, log size, cosine, sine, right, as `trainer.models.detector.CHANNELS`.
        weights: float32 [S, S, 6], how much each of them counts.
    """

    heat: NDArray[np.float32]
    counted: NDArray[np.float32]
    values: NDArray[np.float32]
    weights: NDArray[np.float32]


def make_targets(hands: Sequence[LabelledHand], ignored: Sequence[Box], input_size: int) -> Targets:
    """Targets for a square input. Hands and boxes are in its continuous pixels.

    Hands that are too small, or mostly outside, are excused: they count neither as hands nor as background.
    """
    cells = input_size // GRID_STRIDE
    heat = np.zeros((cells, cells), np.float32)
    counted = np.ones((cells, cells), np.float32)
    values = np.zeros((cells, cells, 6), np.float32)
    weights = np.zeros((cells, cells, 6), np.float32)
    rows, columns = np.mgrid[0:cells, 0:cells]
    taught = []
    for hand in hands:
        centre, size = hand.upright_square()
        inside = ((hand.keypoints >= 0) & (hand.keypoints < input_size)).all(axis=1).mean()
        if inside >= LEAST_INSIDE and size >= SMALLEST_HAND and (centre >= 0).all() and (centre < input_size).all():
            taught.append((hand, centre / GRID_STRIDE, size / GRID_STRIDE))
        elif inside > 0:
            ignored = [*ignored, excused(hand)]
    for box in ignored:
        left, top = (max(0, math.floor(edge / GRID_STRIDE)) for edge in (box.x, box.y))
        right, bottom = (math.ceil(edge / GRID_STRIDE) for edge in (box.x + box.width, box.y + box.height))
        counted[top : max(0, bottom), left : max(0, right)] = 0.0
    for hand, (x, y), size in sorted(taught, key=lambda each: -each[2]):  # small ones last: they win shared cells
        sigma = max(_NARROWEST, _SPREAD * size)
        column, row = int(x), int(y)
        gaussian = np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / (2 * sigma**2)).astype(np.float32)
        near = (gaussian > _NEAR) & (gaussian >= heat)
        np.maximum(heat, gaussian, out=heat)
        counted[gaussian > _NEAR] = 1.0
        side = {"right": 1.0, "left": 0.0, None: 0.5}[hand.handedness]
        direction = (0.0, 0.0) if hand.along is None else hand.along / np.linalg.norm(hand.along).clip(1e-9)
        values[near] = (0.0, 0.0, math.log(size), *direction, side)
        values[near, 0] = x - columns[near]
        values[near, 1] = y - rows[near]
        weights[near] = gaussian[near, None]
        weights[near, 3:5] *= hand.along is not None
        weights[near, 5] *= hand.handedness is not None
    return Targets(heat, counted, values, weights)
