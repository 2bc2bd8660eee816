"""The hand detector: a small network that finds every hand of a picture, where it points and which side it is.

It looks at the picture letterboxed into a square. Every cell of a grid with `GRID_STRIDE` pixels a side says how likely
the middle of a hand lies in it, and where exactly, how large, how turned and which side that hand is (after Zhou et
al., "Objects as Points", 2019, with a direction and a side added). `decode` turns the grid into a fixed number of rows
inside the graph; `service.pose.detections` describes them.

Plain 3 x 3 convolutions: at this size they train and run faster on processors than separable ones of as many
multiplications. Features are computed down to a thirty-second of the picture, where a cell has seen most of it, and
added back up to an eighth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import keras
from keras import ops

from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from trainer.models.normalization import BatchNormalization

NAME: Final = "hand_detector"
"""Of the network, its weights and its servable."""

GRID_STRIDE: Final = 8
"""Pixels of the input along a cell of the grid."""

INPUT_STRIDE: Final = 32
"""The input's side is a multiple of this."""

CHANNELS: Final = 7
"""Of a cell: score (a logit), x and y of the hand's middle from the cell's corner, log of the size, cosine and sine of
the direction, right (a logit). Lengths are in cells."""

_PRIOR: Final = 0.01  # share of cells that a new network takes for hands: focal losses start steadily from there


@dataclass(frozen=True)
class DetectorWidths:
    """Channels at each level, from half of the picture's size to a thirty-second, and of the grid."""

    levels: tuple[int, int, int, int, int] = (16, 24, 64, 96, 128)
    blocks: tuple[int, int, int, int, int] = (0, 1, 1, 2, 2)
    grid: int = 64

    def scaled(self, factor: float) -> DetectorWidths:
        """Every width times a factor, at least 4: narrow detectors are quick enough for tests."""
        one, two, three, four, five = (max(4, round(width * factor)) for width in self.levels)
        return DetectorWidths((one, two, three, four, five), self.blocks, max(4, round(self.grid * factor)))

    @classmethod
    def read(cls, channels: Mapping[str, int]) -> DetectorWidths:
        """The widths of a detector of which the convolutions' output channels are known, by layer."""
        one, two, three, four, five = (channels[f"down{level}"] for level in range(1, 6))
        first, second, third, fourth, fifth = (_blocks(channels, level) for level in range(1, 6))
        return cls((one, two, three, four, five), (first, second, third, fourth, fifth), channels["lateral5"])


def _blocks(channels: Mapping[str, int], level: int) -> int:
    return sum(name.startswith(f"level{level}_") and name.endswith("_conv1") for name in channels)


def build_detector(
    *, batch_norm: bool, input_size: int | None = None, widths: DetectorWidths | None = None
) -> keras.Model:
    """The detector with fresh random weights.

    Input "image": float32 [N, S, S, 3] RGB in [-0.5, 0.5], S a multiple of 32, free unless `input_size` fixes it.
    Output float32 [N, S/8, S/8, 7]: `CHANNELS` says what.

    Raises ValueError for an input size that is no multiple of 32.
    """
    if input_size is not None and (input_size < INPUT_STRIDE or input_size % INPUT_STRIDE):
        raise ValueError(f"input size {input_size} is not a positive multiple of {INPUT_STRIDE}")
    widths = widths or DetectorWidths()
    image = keras.Input(shape=(input_size, input_size, 3), dtype="float32", name="image")
    x, levels = image, []
    for level, (channels, blocks) in enumerate(zip(widths.levels, widths.blocks, strict=True), start=1):
        x = _convolution(x, f"down{level}", channels, strides=2, batch_norm=batch_norm)
        for block in range(1, blocks + 1):
            x = _residual(x, f"level{level}_block{block}", batch_norm=batch_norm)
        levels.append(x)
    _, _, eighth, sixteenth, thirty_second = levels
    up = _convolution(thirty_second, "lateral5", widths.grid, kernel_size=1, batch_norm=batch_norm)
    for level, features in ((4, sixteenth), (3, eighth)):
        lateral = _convolution(features, f"lateral{level}", widths.grid, kernel_size=1, batch_norm=batch_norm)
        up = keras.layers.Add(name=f"merge{level}")([lateral, keras.layers.UpSampling2D(2, name=f"up{level}")(up)])
        up = _convolution(up, f"smooth{level}", widths.grid, batch_norm=batch_norm)
    grid = keras.layers.Conv2D(
        CHANNELS,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name="grid",
    )(up)
    model = keras.Model(inputs=image, outputs=grid, name=NAME)
    kernel, bias = model.get_layer("grid").get_weights()
    bias[0] = -ops.log((1 - _PRIOR) / _PRIOR)
    model.get_layer("grid").set_weights([kernel, bias])
    return model


def is_detector(model: keras.Model) -> bool:
    """Whether the model was made by `build_detector`, rather than by `trainer.models.build`."""
    return bool(model.name == NAME)


def widths_of(model: keras.Model) -> DetectorWidths:
    """The widths of a model made by `build_detector`."""
    return DetectorWidths.read(
        {layer.name: int(layer.filters) for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    )


def decode(grid: Any, detections: int = DETECTIONS) -> Any:
    """The best hands of a grid: float32 [N, `detections`, 7], by falling score; `service.pose.detections` says what.

    A cell counts if none of its eight neighbours is more of a hand; the rows that are left over have score 0.
    """
    batch, height, width = (ops.shape(grid)[axis] for axis in range(3))
    scores = ops.sigmoid(grid[..., 0])
    highest = ops.max_pool(scores[..., None], 3, strides=1, padding="same")[..., 0]
    peaks = ops.where(scores >= highest, scores, ops.zeros_like(scores))
    best, cells = ops.top_k(ops.reshape(peaks, (batch, height * width)), detections)
    rows = ops.take_along_axis(ops.reshape(grid, (batch, height * width, CHANNELS)), cells[..., None], axis=1)
    x = (ops.cast(cells % width, "float32") + rows[..., 1]) * GRID_STRIDE
    y = (ops.cast(cells // width, "float32") + rows[..., 2]) * GRID_STRIDE
    size = ops.exp(rows[..., 3]) * GRID_STRIDE
    length = ops.sqrt(ops.square(rows[..., 4]) + ops.square(rows[..., 5]) + 1e-12)
    columns = {
        "score": best,
        "x": x,
        "y": y,
        "size": size,
        "cos": rows[..., 4] / length,
        "sin": rows[..., 5] / length,
        "right": ops.sigmoid(rows[..., 6]),
    }
    return ops.stack([columns[name] for name in DETECTION_COLUMNS], axis=-1)


def _convolution(
    x: keras.KerasTensor,
    name: str,
    channels: int,
    *,
    kernel_size: int = 3,
    strides: int = 1,
    batch_norm: bool,
    relu: bool = True,
) -> keras.KerasTensor:
    """A convolution with 'same' padding as a network that trains has it, or with the normalisation folded in."""
    x = keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=not batch_norm,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    if batch_norm:
        x = BatchNormalization(name=f"{name}_bn", momentum=0.97)(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _residual(x: keras.KerasTensor, name: str, *, batch_norm: bool) -> keras.KerasTensor:
    """Two convolutions whose result is added to what they see."""
    channels = x.shape[-1]
    y = _convolution(x, f"{name}_conv1", channels, batch_norm=batch_norm)
    y = _convolution(y, f"{name}_conv2", channels, batch_norm=batch_norm, relu=False)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))
