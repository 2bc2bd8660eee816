"""The networks on Keras: parameter counts, shapes, names, folding of batch normalisation, warm start."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from trainer.models import (
    VARIANTS,
    architecture_of,
    build,
    fold_batch_norm,
    unfold_batch_norm,
    warm_start,
)

TINY = 1 / 16
PAPER_PARAMETERS = {"standard": 24_316_162, "lightweight": 6_892_930}


def random_images(height: int = 32, width: int = 32, count: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-0.5, 0.5, (count, height, width, 3)).astype(np.float32)


def run(model: Any, images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def randomise(model: Any, seed: int = 5) -> None:
    """Random kernels that keep the signal's size, and normalisation statistics such as training leaves."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, shape),
                    rng.normal(0, 0.3, shape),
                    rng.normal(0, 0.3, shape),
                    rng.uniform(0.3, 2.0, shape),
                ]
            )
        elif layer.weights:
            layer.set_weights(
                [
                    rng.normal(0, 0.2, weight.shape)
                    if weight.path.endswith("bias")
                    else rng.normal(
                        0,
                        np.sqrt(1.0 / max(1, np.prod(weight.shape[:-1]))),
                        weight.shape,
                    )
                    if "depthwise" not in weight.path
                    else rng.normal(0, 1 / 3, weight.shape)
                    for weight in layer.weights
                ]
            )


def scale_of(array: npt.NDArray[np.float32]) -> float:
    scale = float(np.abs(array).max())
    assert scale > 0.01, "the comparison would mean nothing on outputs that are all zero"
    return scale


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_without_batch_norm_has_exactly_the_papers_parameters(
    variant: str,
) -> None:
    assert build(variant, batch_norm=False).count_params() == PAPER_PARAMETERS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_stage_gives_belief_maps_at_an_eighth_of_any_input_size(variant: str, batch_norm: bool) -> None:
    model = build(variant, batch_norm=batch_norm, width_multiplier=TINY)
    assert model.inputs[0].name == "image"
    assert model.output_names == [
        "belief_maps_stage1",
        "belief_maps_stage2",
        "belief_maps_stage3",
    ]
    for height, width in [(32, 32), (64, 40)]:
        shapes = [maps.shape for maps in run(model, random_images(height, width))]
        assert shapes == [(2, height // 8, width // 8, 22)] * 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_output_is_the_last_stage(variant: str) -> None:
    every_stage = build(variant, batch_norm=False, width_multiplier=TINY)
    last_stage = build(variant, batch_norm=False, all_stages=False, width_multiplier=TINY)
    randomise(every_stage)
    last_stage.set_weights(every_stage.get_weights())
    images = random_images()
    expected = run(every_stage, images)[2]
    (actual,) = run(last_stage, images)
    assert np.abs(actual - expected).max() <= 1e-5 * scale_of(expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_fresh_networks_start_near_zero_belief_but_pass_the_signal_on(variant: str, batch_norm: bool) -> None:
    keras.utils.set_random_seed(11)
    model = build(variant, batch_norm=batch_norm, input_size=64, width_multiplier=0.25)
    features = keras.Model(model.inputs[0], model.get_layer("stage2_input").input[1])
    images = random_images(64, 64)
    assert all(np.abs(maps).max() < 0.2 for maps in run(model, images))
    (image_features,) = run(features, images)
    assert 0.02 < float(image_features.std()) < 5.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_convolutions_are_linear_only_at_the_end_of_a_stage(variant: str) -> None:
    model = build(variant, batch_norm=False, width_multiplier=TINY)
    linear = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.SeparableConv2D)
        and layer.activation is keras.activations.linear
    ]
    assert linear == ["stage1_conv2", "stage2_conv7", "stage3_conv7"]


def test_belief_maps_stay_float32_when_the_network_computes_in_bfloat16() -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("lightweight", batch_norm=True, width_multiplier=TINY)
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.get_layer("conv5_1").compute_dtype == "bfloat16"
    assert [maps.dtype for maps in run(model, random_images())] == [np.float32] * 3


def test_unknown_variant_and_unfit_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown variant 'heavy'; allowed: standard, lightweight"):
        build("heavy", batch_norm=False)
    with pytest.raises(ValueError, match="input size 100 is not a positive multiple of 8"):
        build("standard", batch_norm=False, input_size=100, width_multiplier=TINY)
    with pytest.raises(ValueError, match="width multiplier 0"):
        build("standard", batch_norm=False, width_multiplier=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("all_stages", [False, True])
def test_folded_network_computes_what_the_training_network_computes(variant: str, all_stages: bool) -> None:
    training_model = build(variant, batch_norm=True, all_stages=all_stages, width_multiplier=0.25)
    randomise(training_model)
    deploy_model = fold_batch_norm(training_model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in deploy_model.layers)
    images = random_images(64, 64)
    expected, actual = run(training_model, images), run(deploy_model, images)
    assert len(expected) == len(actual) == (3 if all_stages else 1)
    for before, after in zip(expected, actual, strict=True):
        assert np.abs(before - after).max() <= 1e-4 * min(1.0, scale_of(before))


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_width_network_folds_to_the_papers_parameters_within_1e_4(
    variant: str,
) -> None:
    training_model = build(variant, batch_norm=True)
    randomise(training_model)
    deploy_model = fold_batch_norm(training_model)
    assert deploy_model.count_params() == PAPER_PARAMETERS[variant]
    images = random_images(64, 64, count=1)
    for before, after in zip(run(training_model, images), run(deploy_model, images), strict=True):
        assert np.abs(before - after).max() <= 1e-4 * min(1.0, scale_of(before))


@pytest.mark.parametrize("variant", VARIANTS)
def test_unfolded_network_computes_what_the_folded_one_computes_in_both_modes(variant: str) -> None:
    trained = build(variant, batch_norm=True, width_multiplier=0.25)
    randomise(trained)
    folded = fold_batch_norm(trained)
    unfolded = build(variant, batch_norm=True, width_multiplier=0.25)
    images = random_images(64, 64)
    unfold_batch_norm(folded, unfolded, images)
    expected = run(folded, images)
    by_batch = [keras.ops.convert_to_numpy(maps) for maps in unfolded(images, training=True)]
    for outputs in (run(unfolded, images), by_batch):
        for before, after in zip(expected, outputs, strict=True):
            assert np.abs(before - after).max() <= 1e-3 * min(1.0, scale_of(before))


def test_unfolding_refuses_models_that_do_not_fit_together() -> None:
    def tiny(variant: str, *, batch_norm: bool, width_multiplier: float = TINY) -> Any:
        return build(variant, batch_norm=batch_norm, width_multiplier=width_multiplier)

    images = random_images()
    with pytest.raises(ValueError, match=r"the models differ: lightweight of .* and standard of"):
        unfold_batch_norm(tiny("lightweight", batch_norm=False), tiny("standard", batch_norm=True), images)
    narrow = tiny("standard", batch_norm=False, width_multiplier=1 / 8)
    with pytest.raises(ValueError, match="the models differ"):
        unfold_batch_norm(narrow, tiny("standard", batch_norm=True), images)
    with pytest.raises(ValueError, match="without batch normalisation and one with it"):
        unfold_batch_norm(tiny("standard", batch_norm=True), tiny("standard", batch_norm=True), images)


def test_folding_refuses_a_foreign_model() -> None:
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="not a Convolutional Pose Machine"):
        fold_batch_norm(keras.Model(x, keras.layers.Conv2D(2, 3)(x)))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_warm_started_standard_network_has_the_lightweight_features_and_stage_1(
    batch_norm: bool,
) -> None:
    lightweight = build("lightweight", batch_norm=batch_norm, width_multiplier=0.25)
    standard = build("standard", batch_norm=batch_norm, width_multiplier=0.25)
    randomise(lightweight, seed=1)
    randomise(standard, seed=2)
    own_stage_3 = standard.get_layer("stage3_conv1").get_weights()[0]
    warm_start.standard_from_lightweight(lightweight, standard)

    images = random_images(64, 64)
    for layer_name in ("stage2_input", "belief_maps_stage1"):
        expected, actual = (
            run(keras.Model(model.inputs[0], model.get_layer(layer_name).output), images)[0]
            for model in (lightweight, standard)
        )
        assert np.abs(expected - actual).max() <= 1e-5 * scale_of(expected)
    assert np.array_equal(standard.get_layer("stage3_conv1").get_weights()[0], own_stage_3)


def test_warm_start_refuses_models_that_do_not_fit_together() -> None:
    def tiny(variant: str, *, batch_norm: bool = False, width_multiplier: float = TINY) -> Any:
        return build(variant, batch_norm=batch_norm, width_multiplier=width_multiplier)

    with pytest.raises(ValueError, match="got a standard and a standard one"):
        warm_start.standard_from_lightweight(tiny("standard"), tiny("standard"))
    with pytest.raises(ValueError, match="batch normalisation"):
        warm_start.standard_from_lightweight(tiny("lightweight"), tiny("standard", batch_norm=True))
    with pytest.raises(ValueError, match="widths differ"):
        warm_start.standard_from_lightweight(tiny("lightweight", width_multiplier=1 / 8), tiny("standard"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_architecture_is_read_back_from_a_model(variant: str) -> None:
    model = build(variant, batch_norm=True, all_stages=False, input_size=64, width_multiplier=TINY)
    architecture = architecture_of(model)
    assert (architecture.variant, architecture.batch_norm) == (variant, True)
    assert (architecture.all_stages, architecture.input_size) == (False, 64)
    assert architecture.widths.block4 == 32
