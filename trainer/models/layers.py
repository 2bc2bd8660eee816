"""The layer tables of both Convolutional Pose Machines and how one table row becomes Keras layers.

The tables are data, so that what the paper prints as a table can be read as one here. Joining the tables
into a network is `trainer.models.network`'s task.

Layout of the trained network. With batch normalisation a row becomes convolution, `<name>_bn`,
`<name>_relu`, and the convolution has no bias: the normalisation's shift does its work, and leaving it out
saves a pass over the activations in each direction. Without batch normalisation the convolution has a bias
and its ReLU built in; that is the layout that is counted, exported and served. `trainer.models.folding`
turns the first into the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import keras

from service.pose.keypoints import CHANNEL_COUNT
from trainer.models.normalization import BatchNormalization

Variant = Literal["standard", "lightweight"]

BELIEF_MAP_CHANNELS = CHANNEL_COUNT
"""The keypoints in the order of `service.pose.keypoints`, then the background: 22."""


FEATURE_BLOCKS = 5
"""Blocks of the feature extractor. The layers of block b are named conv<b>_1, conv<b>_2 ..."""


@dataclass(frozen=True)
class Convolution:
    """One row of the layer table: a convolution with 'same' padding and, unless `linear`, a ReLU.

    `separable` rows are a depthwise `kernel_size` x `kernel_size` convolution followed, with nothing in
    between, by a pointwise one. `linear` rows are a stage's output: no normalisation and no ReLU.
    """

    name: str
    kernel_size: int
    channels: int
    separable: bool = False
    linear: bool = False


@dataclass(frozen=True)
class Pooling:
    """Maximum over 2 x 2 cells, halving height and width."""

    name: str


Row = Convolution | Pooling


@dataclass(frozen=True)
class Widths:
    """Channels of each block. The defaults are the paper's; smaller ones give quick networks of its shape."""

    block1: int = 64
    block2: int = 128
    block3: int = 256
    block4: int = 512
    block5: int = 512
    features: int = 128
    stage1: int = 512
    refinement: int = 128

    def scaled(self, multiplier: float) -> Widths:
        """These widths times `multiplier` (0 < multiplier <= 1), rounded, at least 2 channels each."""
        if not 0.0 < multiplier <= 1.0:
            raise ValueError(f"width multiplier {multiplier} is outside (0, 1]")

        def scale(channels: int) -> int:
            return max(2, round(channels * multiplier))

        return Widths(
            block1=scale(self.block1),
            block2=scale(self.block2),
            block3=scale(self.block3),
            block4=scale(self.block4),
            block5=scale(self.block5),
            features=scale(self.features),
            stage1=scale(self.stage1),
            refinement=scale(self.refinement),
        )


def feature_extractor_table(variant: Variant, widths: Widths) -> tuple[Row, ...]:
    """The VGG-style feature extractor, conv1_1 to conv5_3; its output is the image features all stages share.

    The lightweight variant keeps conv1_1 and conv5_1 as standard convolutions and makes the others separable.
    """
    light = variant == "lightweight"

    def row(name: str, channels: int, *, separable: bool = light) -> Convolution:
        return Convolution(name, 3, channels, separable=separable)

    return (
        row("conv1_1", widths.block1, separable=False),
        row("conv1_2", widths.block1),
        Pooling("pool1"),
        row("conv2_1", widths.block2),
        row("conv2_2", widths.block2),
        Pooling("pool2"),
        row("conv3_1", widths.block3),
        row("conv3_2", widths.block3),
        row("conv3_3", widths.block3),
        row("conv3_4", widths.block3),
        Pooling("pool3"),
        row("conv4_1", widths.block4),
        row("conv4_2", widths.block4),
        row("conv4_3", widths.block4),
        row("conv4_4", widths.block4),
        row("conv5_1", widths.block5, separable=False),
        row("conv5_2", widths.block5),
        row("conv5_3", widths.features),
    )


def stage_table(variant: Variant, stage: int, widths: Widths) -> tuple[Convolution, ...]:
    """The convolutions of stage 1, 2 or 3. Stage 1 is the same in both variants.

    Stages 2 and 3 are five 7 x 7 convolutions in the standard variant. The lightweight variant has five
    units of 1 x 1 and 3 x 3 convolutions in their place. Both end with a 1 x 1 convolution and the 1 x 1
    output.
    """
    prefix = f"stage{stage}"
    if stage == 1:
        return (
            Convolution(f"{prefix}_conv1", 1, widths.stage1),
            Convolution(f"{prefix}_conv2", 1, BELIEF_MAP_CHANNELS, linear=True),
        )
    if variant == "standard":
        body = tuple(Convolution(f"{prefix}_conv{i}", 7, widths.refinement) for i in range(1, 6))
    else:
        kernel_sizes_of_units = ((3, 1), *([(1, 3, 3)] * 4))
        body = tuple(
            Convolution(f"{prefix}_unit{unit}_conv{i}", kernel_size, widths.refinement)
            for unit, kernel_sizes in enumerate(kernel_sizes_of_units, start=1)
            for i, kernel_size in enumerate(kernel_sizes, start=1)
        )
    return (
        *body,
        Convolution(f"{prefix}_conv6", 1, widths.refinement),
        Convolution(f"{prefix}_conv7", 1, BELIEF_MAP_CHANNELS, linear=True),
    )


def apply_table(x: keras.KerasTensor, table: Sequence[Row], *, batch_norm: bool) -> keras.KerasTensor:
    """Runs `x`, [N, H, W, C], through the rows of a table in order."""
    for row in table:
        if isinstance(row, Pooling):
            x = keras.layers.MaxPooling2D(2, name=row.name)(x)
        else:
            x = _apply_convolution(x, row, batch_norm=batch_norm)
    return x


def _apply_convolution(x: keras.KerasTensor, row: Convolution, *, batch_norm: bool) -> keras.KerasTensor:
    if row.linear:
        # Near-zero output weights: the first belief maps are close to 0, which is what nearly every cell of a
        # target holds. float32 whatever the policy: belief maps are decoded to a fraction of a cell.
        return keras.layers.Conv2D(
            row.channels,
            row.kernel_size,
            padding="same",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
            dtype="float32",
            name=row.name,
        )(x)
    normalised = batch_norm
    layer = _separable(row, normalised) if row.separable else _standard(row, normalised)
    x = layer(x)
    if normalised:
        x = BatchNormalization(name=f"{row.name}_bn")(x)
        x = keras.layers.ReLU(name=f"{row.name}_relu")(x)
    return x


def _standard(row: Convolution, normalised: bool) -> keras.layers.Layer:
    return keras.layers.Conv2D(
        row.channels,
        row.kernel_size,
        padding="same",
        use_bias=not normalised,
        activation=None if normalised else "relu",
        kernel_initializer="he_normal",
        name=row.name,
    )


def _separable(row: Convolution, normalised: bool) -> keras.layers.Layer:
    # Keras takes a depthwise kernel's fan-in to be kernel area x channels, but every output sees one
    # channel only. He's rule with the true fan-in, and gain 1 because no ReLU follows the depthwise half,
    # is this deviation.
    depthwise = keras.initializers.RandomNormal(stddev=1.0 / row.kernel_size)
    return keras.layers.SeparableConv2D(
        row.channels,
        row.kernel_size,
        padding="same",
        use_bias=not normalised,
        activation=None if normalised else "relu",
        depthwise_initializer=depthwise,
        pointwise_initializer="he_normal",
        name=row.name,
    )
