"""The detector's loss: a focal loss for where hands are, and how far off the values of each hand are."""

from __future__ import annotations

from typing import Any, Final

from keras import ops

_WEIGHTS: Final = (1.0, 1.0, 2.0, 2.0, 2.0, 0.5)
"""Of x, y, log size, cosine, sine and right."""


def detector_loss(grid: Any, heat: Any, counted: Any, values: Any, weights: Any) -> tuple[Any, Any, Any]:
    """The loss of a batch as (total, heat's part, values' part); arguments as `trainer.detection.targets.Targets`.

    The focal loss is that of Law and Deng, "CornerNet" (2018): cells near a hand's middle count less as background.
    """
    logits = grid[..., 0]
    belief = ops.clip(ops.sigmoid(logits), 1e-6, 1 - 1e-6)
    is_middle = ops.cast(heat >= 0.9999, "float32")
    hands = ops.maximum(ops.sum(is_middle), 1.0)
    found = is_middle * ops.square(1 - belief) * ops.log(belief)
    background = (1 - is_middle) * ops.power(1 - heat, 4) * ops.square(belief) * ops.log(1 - belief)
    of_heat = -ops.sum(counted * (found + background)) / hands
    off = ops.abs(grid[..., 1:6] - values[..., :5])
    right = grid[..., 6]
    side = ops.maximum(right, 0.0) - right * values[..., 5] + ops.log1p(ops.exp(-ops.abs(right)))
    errors = ops.concatenate([off, side[..., None]], axis=-1) * ops.convert_to_tensor(_WEIGHTS, "float32")
    of_values = ops.sum(errors * weights) / ops.maximum(ops.sum(weights[..., 2]), 1.0)
    return of_heat + of_values, of_heat, of_values


def packed_loss(targets: Any, grid: Any) -> Any:
    """`detector_loss` of targets as `trainer.detection.batches.DetectorBatch` holds them."""
    total, _, _ = detector_loss(grid, targets[..., 0], targets[..., 1], targets[..., 2:8], targets[..., 8:14])
    return total
