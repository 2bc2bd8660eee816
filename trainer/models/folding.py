"""Folds batch normalisation into the convolutions, so that what is served has the paper's parameter count.

In inference y = gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta is linear in the convolution's
kernel, so a scaled kernel and a bias give the same result. Folding is exact up to float32 rounding; it
changes no training model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.models.network import architecture_of, build_architecture


def fold_batch_norm(training_model: keras.Model) -> keras.Model:
    """A new model without batch normalisation that computes what `training_model` computes in inference mode.

    Same variant, widths, input size and choice of outputs. A model that has no batch normalisation is copied.
    Raises ValueError if the model was not built by `trainer.models.build`.
    """
    architecture = architecture_of(training_model)
    deploy_model = build_architecture(replace(architecture, batch_norm=False))
    for layer in deploy_model.layers:
        if not layer.weights:
            continue
        convolution = training_model.get_layer(layer.name)
        has_norm = architecture.batch_norm and not _is_stage_output(training_model, layer.name)
        norm = training_model.get_layer(f"{layer.name}_bn") if has_norm else None
        layer.set_weights(_folded_weights(convolution, norm))
    return deploy_model


def _is_stage_output(model: keras.Model, layer_name: str) -> bool:
    return all(layer.name != f"{layer_name}_bn" for layer in model.layers)


def _folded_weights(convolution: Any, norm: Any | None) -> list[npt.NDArray[np.float32]]:
    """Kernels and bias in the layer's order; the last kernel (pointwise, if separable) takes the scale."""
    weights = [np.asarray(weight, dtype=np.float32) for weight in convolution.get_weights()]
    if norm is None:
        return weights
    *kernels, bias = weights if convolution.use_bias else [*weights, np.zeros(convolution.filters, np.float32)]
    gamma, beta, mean, variance = (np.asarray(w, dtype=np.float64) for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return [
        *kernels[:-1],
        (kernels[-1] * scale).astype(np.float32),
        (beta + (bias - mean) * scale).astype(np.float32),
    ]
