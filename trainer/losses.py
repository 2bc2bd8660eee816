"""The loss of one stage: squared error of belief maps, summed over a map's cells.

Summing over cells, not averaging, keeps the size of the loss independent of how much empty map surrounds a
hand. The training sums this loss over the stages (intermediate supervision). `keras.ops` only.
"""

from typing import Any

import keras
from keras import ops


class BeliefMapLoss(keras.losses.Loss):
    """Squared error per belief map, summed over its cells, averaged over a sample's known maps.

    Targets: float32 [N, H, W, 22]; a map filled with negative values is unknown and leaves the loss
    untouched. The result is one value a sample, [N], which Keras averages over the batch.
    """

    def __init__(self, name: str = "belief_map_loss") -> None:
        super().__init__(name=name, reduction="sum_over_batch_size")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        targets = ops.cast(y_true, "float32")
        known = ops.cast(ops.greater_equal(targets, 0.0), "float32")
        errors = ops.square(ops.cast(y_pred, "float32") - targets) * known
        known_maps = ops.sum(ops.max(known, axis=(1, 2)), axis=-1)
        return ops.sum(errors, axis=(1, 2, 3)) / ops.maximum(known_maps, 1.0)
