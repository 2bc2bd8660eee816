"""Builds both Convolutional Pose Machines as functional Keras models, on any Keras 3 backend.

A feature extractor, then three stages, each of which writes belief maps; stages 2 and 3 see the image
features together with the belief maps of the stage before. The variants differ in their layer tables only
(`trainer.models.layers`). No training, no weights files, no TensorFlow: see `trainer.train`,
`trainer.weights` and `trainer.export`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import keras

from service.pose.heatmaps import STRIDE
from trainer.models.layers import Variant, Widths, apply_table, feature_extractor_table, stage_table

STAGES = 3
PAPER_WIDTHS = Widths()
VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True)
class Architecture:
    """What has to be known to build a network again."""

    variant: Variant
    batch_norm: bool
    all_stages: bool = True
    input_size: int | None = None
    widths: Widths = PAPER_WIDTHS


def checked_variant(variant: str) -> Variant:
    """`variant` itself; ValueError with the allowed names if it is none of them."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; allowed: {', '.join(VARIANTS)}")
    return variant


def build_architecture(architecture: Architecture) -> keras.Model:
    """Builds the network that `architecture` describes, with fresh random weights; see `build`."""
    size = architecture.input_size
    if size is not None and (size < STRIDE or size % STRIDE != 0):
        raise ValueError(f"input size {size} is not a positive multiple of {STRIDE}")
    variant, widths, batch_norm = (
        architecture.variant,
        architecture.widths,
        architecture.batch_norm,
    )

    image = keras.Input(shape=(size, size, 3), dtype="float32", name="image")
    features = apply_table(image, feature_extractor_table(variant, widths), batch_norm=batch_norm)
    belief_maps: list[keras.KerasTensor] = []
    for stage in range(1, STAGES + 1):
        stage_input = features
        if belief_maps:
            stage_input = keras.layers.Concatenate(name=f"stage{stage}_input")([belief_maps[-1], features])
        x = apply_table(stage_input, stage_table(variant, stage, widths), batch_norm=batch_norm)
        belief_maps.append(keras.layers.Identity(dtype="float32", name=f"belief_maps_stage{stage}")(x))

    outputs = belief_maps if architecture.all_stages else belief_maps[-1]
    return keras.Model(inputs=image, outputs=outputs, name=f"cpm_{variant}")


def build(
    variant: str,
    *,
    batch_norm: bool,
    all_stages: bool = True,
    input_size: int | None = None,
    width_multiplier: float = 1.0,
) -> keras.Model:
    """One of the paper's networks with fresh random weights.

    Without batch normalisation, "standard" has 24,316,162 parameters and "lightweight" 6,892,930.

    Input "image": float32 [N, H, W, 3] RGB in [-0.5, 0.5] (x / 255 - 0.5), H and W multiples of 8, both
    free unless `input_size` fixes them. Outputs float32 [N, H/8, W/8, 22], no range enforced: a list of the
    belief maps of stages 1, 2, 3 (layers belief_maps_stage1 ...) with `all_stages`, else stage 3's alone,
    not in a list.

    `width_multiplier` < 1 narrows every layer but the outputs: same structure, quick enough for tests.
    Raises ValueError for an unknown variant, an input size that is no multiple of 8, or a multiplier
    outside (0, 1].
    """
    return build_architecture(
        Architecture(
            variant=checked_variant(variant),
            batch_norm=batch_norm,
            all_stages=all_stages,
            input_size=input_size,
            widths=PAPER_WIDTHS.scaled(width_multiplier),
        )
    )


def architecture_of(model: keras.Model) -> Architecture:
    """Reads back the architecture of a model made by `build`; ValueError if the model is not one of them."""
    names = {layer.name for layer in model.layers}
    if not {"conv1_1", "conv5_3", "stage1_conv1", "stage2_conv6"} <= names:
        raise ValueError(f"model {model.name!r} is not a Convolutional Pose Machine of trainer.models")

    def channels(layer_name: str) -> int:
        return int(model.get_layer(layer_name).filters)

    separable = isinstance(model.get_layer("conv1_2"), keras.layers.SeparableConv2D)
    height = model.inputs[0].shape[1]
    return Architecture(
        variant="lightweight" if separable else "standard",
        batch_norm="conv1_1_bn" in names,
        all_stages=len(model.outputs) == STAGES,
        input_size=None if height is None else int(height),
        widths=Widths(
            block1=channels("conv1_1"),
            block2=channels("conv2_1"),
            block3=channels("conv3_1"),
            block4=channels("conv4_1"),
            block5=channels("conv5_1"),
            features=channels("conv5_3"),
            stage1=channels("stage1_conv1"),
            refinement=channels("stage2_conv6"),
        ),
    )
