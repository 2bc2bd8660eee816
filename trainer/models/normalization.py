"""Batch normalisation in one kernel where the backend has one.

Keras writes batch normalisation out as a dozen operations, each of which goes through all activations. Compilers join
them again (XLA, which JAX always uses); TensorFlow without XLA, which is how a processor trains these networks fastest,
does not, and then spends more time there than in the convolutions. TensorFlow has the whole of it, statistics and
gradient included, as one operation.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the channels of [N, H, W, C]: the same variables, names and results.

    On other backends it is Keras's own, which is the reference.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """float [N, H, W, C] of the layer's compute type, normalised by the batch in training, else by the averages."""
        if keras.backend.backend() != "tensorflow" or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        by_batch = bool(training) and self.trainable
        # In training the operation wants the averages to be empty: it takes the batch's statistics and returns them.
        averages = ([], []) if by_batch else (self.moving_mean, self.moving_variance)
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=ops.cast(inputs, self.compute_dtype),
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=ops.cast(averages[0], "float32"),
            variance=ops.cast(averages[1], "float32"),
            epsilon=self.epsilon,
            is_training=by_batch,
        )
        if by_batch:
            values = ops.cast(ops.prod(ops.shape(inputs)[:-1]), "float32")
            biased = variance * (values - 1.0) / values  # it estimates the population's variance, Keras the batch's
            for average, now in ((self.moving_mean, mean), (self.moving_variance, biased)):
                average.assign(average * self.momentum + now * (1.0 - self.momentum))
        return normalised
