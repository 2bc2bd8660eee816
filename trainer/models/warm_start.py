"""Starts the standard network from a trained lightweight one.

A separable kernel is a standard kernel, K[i, j, c, m] = D[i, j, c] * P[c, m], so the feature extractor can
be carried over exactly, and stage 1 is the same in both variants. Stages 2 and 3 cannot be copied: five 7 x
7 convolutions stand where the lightweight network has units of 1 x 1 and 3 x 3 ones with a ReLU between
them. They keep the weights that the standard model already has.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import numpy.typing as npt

from trainer.models.layers import Convolution, feature_extractor_table, stage_table
from trainer.models.network import architecture_of


def standard_from_lightweight(lightweight: keras.Model, standard: keras.Model) -> None:
    """Copies the feature extractor and stage 1 of `lightweight` into `standard`, in place.

    Afterwards both compute the same image features and the same belief maps in stage 1, up to float32
    rounding, with equal batch-normalisation state; `standard` keeps its own stages 2 and 3. Both models
    must come from `trainer.models.build`, with equal widths and both with or both without batch
    normalisation; else ValueError.
    """
    source, target = architecture_of(lightweight), architecture_of(standard)
    if (source.variant, target.variant) != ("lightweight", "standard"):
        raise ValueError(
            f"expected a lightweight and a standard model, got a {source.variant} and a {target.variant} one"
        )
    if source.batch_norm != target.batch_norm:
        raise ValueError(
            "one model has batch normalisation and the other has not; build both alike, or fold the lightweight one"
        )
    if source.widths != target.widths:
        raise ValueError(f"widths differ: lightweight {source.widths}, standard {target.widths}")

    for row in _shared_convolutions(lightweight):
        weights = lightweight.get_layer(row.name).get_weights()
        if row.separable:
            depthwise, pointwise, *bias = weights
            weights = [as_standard_kernel(depthwise, pointwise), *bias]
        standard.get_layer(row.name).set_weights(weights)
        if source.batch_norm and not row.linear:
            norm_name = f"{row.name}_bn"
            standard.get_layer(norm_name).set_weights(lightweight.get_layer(norm_name).get_weights())


def _shared_convolutions(lightweight: keras.Model) -> Iterator[Convolution]:
    widths = architecture_of(lightweight).widths
    for row in (
        *feature_extractor_table("lightweight", widths),
        *stage_table("lightweight", 1, widths),
    ):
        if isinstance(row, Convolution):
            yield row


def as_standard_kernel(
    depthwise: npt.NDArray[np.float32], pointwise: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[k, k, C, 1] and [1, 1, C, M] to the equal standard kernel [k, k, C, M]."""
    kernel: npt.NDArray[np.float32] = depthwise[:, :, :, 0, None] * pointwise[0, 0][None, None]
    return kernel
