"""Both Convolutional Pose Machines and the hand detector: build one, fold its batch normalisation, start one from
another.

`keras` and `keras.ops` only, so they run on Keras's TensorFlow, torch and JAX backends alike.
"""

from trainer.models.folding import fold_batch_norm, unfold_batch_norm, variant_and_widths
from trainer.models.layers import BELIEF_MAP_CHANNELS, Variant
from trainer.models.network import (
    STAGES,
    VARIANTS,
    Architecture,
    architecture_of,
    build,
    checked_variant,
)

__all__ = [
    "BELIEF_MAP_CHANNELS",
    "STAGES",
    "VARIANTS",
    "Architecture",
    "Variant",
    "architecture_of",
    "build",
    "checked_variant",
    "fold_batch_norm",
    "unfold_batch_norm",
    "variant_and_widths",
]
