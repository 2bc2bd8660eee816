"""Batch normalisation in one kernel gives what Keras's own gives: values, gradients, and what it remembers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.normalization import BatchNormalization

IMAGES = np.random.default_rng(0).normal(0.7, 1.9, (3, 4, 5, 6)).astype(np.float32)


def twins(dtype: str = "float32") -> tuple[Any, Any]:
    """Ours and Keras's, with the same weights, none of which is what it begins with."""
    rng = np.random.default_rng(1)
    layers = (BatchNormalization(dtype=dtype), keras.layers.BatchNormalization(dtype=dtype))
    weights = [rng.uniform(0.5, 1.5, 6), rng.normal(size=6), rng.normal(size=6), rng.uniform(0.5, 1.5, 6)]
    for layer in layers:
        layer.build(IMAGES.shape)
        layer.set_weights(weights)
    return layers


@pytest.mark.parametrize("training", [False, True])
def test_values_gradients_and_averages_are_those_of_keras(training: bool) -> None:
    results = []
    for layer in twins():
        images = tf.constant(IMAGES)
        with tf.GradientTape() as tape:
            tape.watch(images)
            normalised = layer(images, training=training)
            something = tf.reduce_sum(tf.sin(normalised))
        gradients = tape.gradient(something, [images, layer.gamma.value, layer.beta.value])
        results.append([normalised, *gradients, *layer.get_weights()])
    for ours, reference in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(reference), rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_neither_uses_nor_remembers_the_batch() -> None:
    ours, reference = twins()
    ours.trainable = False
    before = ours.get_weights()
    np.testing.assert_allclose(
        np.asarray(ours(IMAGES, training=True)), np.asarray(reference(IMAGES, training=False)), rtol=1e-4, atol=1e-5
    )
    for value, now in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(now, value)


def test_half_precision_goes_in_and_comes_out_and_statistics_stay_whole() -> None:
    ours, reference = twins("mixed_bfloat16")
    normalised, expected = (layer(IMAGES, training=True) for layer in (ours, reference))
    assert normalised.dtype == expected.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(normalised, np.float32), np.asarray(expected, np.float32), atol=0.05)
    assert ours.moving_mean.dtype == "float32"
    np.testing.assert_allclose(ours.get_weights()[3], reference.get_weights()[3], rtol=0.02)
