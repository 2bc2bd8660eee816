"""The loss of one stage: squared error of belief maps, summed over a map's cells.

Summing over cells, not averaging, keeps the size of the loss independent of how much empty map surrounds a
hand. The training sums this loss over the stages (intermediate supervision). `keras.ops` only.
"""

from typing import Any

import keras
from keras import ops


class BeliefMapLoss(keras.losses.Loss):
    """Squared error per belief map, summed over its cells.

    Takes targets and predictions float32 [N, H, W, 22]. `call` returns one value a map, [N, 22], of which Keras takes
    the mean, each multiplied by its sample weight [N, 22] where these are given (`Batch.weights`).
    """

    def __init__(self, name: str = "belief_map_loss") -> None:
        super().__init__(name=name, reduction="sum_over_batch_size")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        errors = ops.square(ops.cast(y_pred, "float32") - ops.cast(y_true, "float32"))
        return ops.sum(errors, axis=(1, 2))
