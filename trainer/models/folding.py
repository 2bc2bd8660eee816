"""Folds batch normalisation into the convolutions, so that what is served has the paper's parameter count.

In inference y = gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta is linear in the convolution's
kernel, so a scaled kernel and a bias give the same result. Folding is exact up to float32 rounding; it
changes no training model.

The inverse serves training that goes on from weights of which only the folded form is left: any mean and
variance do, if gamma and beta undo them. Those of real pictures are the ones with which training goes on smoothly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from trainer.models.detector import NAME, DetectorWidths, build_detector, is_detector, widths_of
from trainer.models.layers import Widths
from trainer.models.network import architecture_of, build_architecture


def variant_and_widths(model: keras.Model) -> tuple[str, Widths | DetectorWidths]:
    """Which network it is and how wide; ValueError if neither `trainer.models.build` nor `build_detector` made it."""
    if is_detector(model):
        return NAME, widths_of(model)
    architecture = architecture_of(model)
    return architecture.variant, architecture.widths


def fold_batch_norm(training_model: keras.Model) -> keras.Model:
    """A new model without batch normalisation that computes what `training_model` computes in inference mode.

    Same variant, widths, input size and choice of outputs. A model that has no batch normalisation is copied.
    Raises ValueError if the model was not built by `trainer.models.build` or `build_detector`.
    """
    if is_detector(training_model):
        deploy_model = build_detector(
            batch_norm=False, input_size=training_model.inputs[0].shape[1], widths=widths_of(training_model)
        )
    else:
        deploy_model = build_architecture(replace(architecture_of(training_model), batch_norm=False))
    for layer in deploy_model.layers:
        if not layer.weights:
            continue
        convolution = training_model.get_layer(layer.name)
        without = _is_without_norm(training_model, layer.name)
        norm = None if without else training_model.get_layer(f"{layer.name}_bn")
        layer.set_weights(_folded_weights(convolution, norm))
    return deploy_model


def unfold_batch_norm(folded: keras.Model, training_model: keras.Model, images: npt.NDArray[np.float32]) -> None:
    """Gives `training_model` the weights of `folded`, in place: in inference mode it computes what `folded` does.

    Its normalisation holds the statistics of `images`, float32 [N, H, W, 3] as the network takes them, and undoes them
    again; on such pictures it computes nearly the same in training mode too. Both models must come from
    `trainer.models.build` or `build_detector`, of one variant and width, `folded` without batch normalisation,
    `training_model` with it; else ValueError.
    """
    source, target = variant_and_widths(folded), variant_and_widths(training_model)
    if source != target:
        raise ValueError(f"the models differ: {source[0]} of {source[1]} and {target[0]} of {target[1]}")
    if _has_norm(folded) or not _has_norm(training_model):
        raise ValueError("expected a model without batch normalisation and one with it")
    normalised = []
    for layer in folded.layers:
        if not layer.weights:
            continue
        *kernels, bias = layer.get_weights()
        convolution = training_model.get_layer(layer.name)
        convolution.set_weights([*kernels, bias] if convolution.use_bias else kernels)
        if not _is_without_norm(training_model, layer.name):
            norm = training_model.get_layer(f"{layer.name}_bn")
            _undo(norm, bias, np.zeros_like(bias), np.ones_like(bias))
            normalised.append((convolution, norm, bias))

    probe = keras.Model(
        training_model.inputs[0],
        [
            part
            for convolution, _, _ in normalised
            for part in ops.moments(ops.cast(convolution.output, "float32"), axes=(0, 1, 2))
        ],
    )
    seen = [ops.convert_to_numpy(each) for each in probe(images, training=False)]
    for (_, norm, bias), mean, variance in zip(normalised, seen[::2], seen[1::2], strict=True):
        _undo(norm, bias, mean, np.maximum(variance, 0.0))


def _undo(norm: Any, bias: Any, mean: Any, variance: Any) -> None:
    """Has `norm` add `bias` and nothing else, with these averages."""
    norm.set_weights([np.sqrt(variance + norm.epsilon), bias + mean, mean, variance])


def _has_norm(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)


def _is_without_norm(model: keras.Model, layer_name: str) -> bool:
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
