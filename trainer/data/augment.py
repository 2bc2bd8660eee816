"""Random variation of a training sample: one affine map for pixels and labels, one photometric pass over the crop.

`draw` decides everything from a random generator and returns plain values; `photometric` alone touches pixels. The
crop itself is made by `service.pose.preprocessing.warp`, the same function that serving uses. A mirrored left hand is a
right hand: `handedness_after`.
"""

import io
import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from service.pose.geometry import Affine, Box, crop_affine, turn_to_upright
from service.pose.preprocessing import hand_box_to_crop
from trainer.data.sample import Handedness, Sample

_WRIST, _MIDDLE_MCP = 0, 9


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How much samples vary. A chance is a share of samples; the all-zero config changes nothing.

    Attributes:
        shrink: largest factor by which the crop is wider than serving's own, so that whole pictures with a small hand
            are learned too.
        shrink_skew: above 1, most samples stay near serving's crop.
        enlarge: largest factor by which the crop is tighter than serving's own.
        shift: largest displacement of the crop, as a share of its side.
        turn: standard deviation of the rotation of most samples, in degrees.
        any_turn_chance: chance of a rotation by any angle at all, of samples that are not upright.
        upright_chance: chance that the hand is first turned upright (wrist below middle_mcp) and its box taken anew, as
            where a detection gives the turn.
        mirror_chance, colour_chance, grey_chance, blur_chance, noise_chance, patch_chance: chances of each.
        shake_chance: chance that the hand or the camera moved along a line while the picture was taken.
        coarse_chance: chance that the hand was small in its picture, and that this was compressed, as in a video.
    """

    shrink: float = 2.5
    shrink_skew: float = 3.0
    enlarge: float = 1.15
    shift: float = 0.1
    turn: float = 20.0
    any_turn_chance: float = 0.2
    mirror_chance: float = 0.5
    colour_chance: float = 0.8
    grey_chance: float = 0.05
    blur_chance: float = 0.15
    noise_chance: float = 0.25
    patch_chance: float = 0.2
    shake_chance: float = 0.0  # records of older runs lack this field and those after it
    coarse_chance: float = 0.0
    upright_chance: float = 0.0


NO_AUGMENTATION = AugmentConfig(
    shrink=1.0,
    enlarge=1.0,
    shift=0.0,
    turn=0.0,
    any_turn_chance=0.0,
    mirror_chance=0.0,
    colour_chance=0.0,
    grey_chance=0.0,
    blur_chance=0.0,
    noise_chance=0.0,
    patch_chance=0.0,
    shake_chance=0.0,
    coarse_chance=0.0,
)
"""Serving's crop of a box without a turn: what validation looks at."""

UPRIGHT: Final = replace(NO_AUGMENTATION, upright_chance=1.0)
"""Serving's crop of a hand whose turn is known."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to one sample: where the crop lies, and the map from image to input that follows from it."""

    image_to_input: Affine
    mirrored: bool


def upright_turn(sample: Sample) -> float | None:
    """The turn, in radians clockwise on the screen, after which wrist -> middle_mcp points up.

    None if either is not labelled, or both are at one place.
    """
    if not (sample.labelled[_WRIST] and sample.labelled[_MIDDLE_MCP]):
        return None
    along = sample.keypoints_in_image[_MIDDLE_MCP] - sample.keypoints_in_image[_WRIST]
    return turn_to_upright(along) if along.any() else None


def draw(rng: np.random.Generator, sample: Sample, input_size: tuple[int, int], config: AugmentConfig) -> Augmentation:
    """Draws the affine part: where the crop lies, how it is turned and whether it is mirrored.

    Args:
        rng: always advanced by the same number of draws, whatever comes out.
        sample: the hand; its box decides where the crop lies, unless it is turned upright.
        input_size: (width, height) of the input in pixels.
        config: how much may vary.
    """
    uniform = rng.random(7)
    normal = float(rng.standard_normal())
    upright = upright_turn(sample) if uniform[6] < config.upright_chance else None
    to_upright = Affine.rotation(upright or 0.0)
    box = sample.box_in_image
    if upright is not None:
        box = Box.around(to_upright.apply(sample.keypoints_in_image[sample.labelled]))
    region = hand_box_to_crop(box)
    wider = math.exp(math.log(config.shrink) * uniform[0] ** config.shrink_skew)
    tighter = math.exp(-math.log(config.enlarge) * uniform[1])
    region = region.scaled(wider * tighter)
    # A hand that fills the crop may move by `shift`; in a wide crop it may be anywhere near the middle.
    reach = region.width * (config.shift + (0.5 * (1.0 - 1.0 / wider) if wider > 1.0 else 0.0))
    region = Box(
        region.x + reach * (2.0 * uniform[2] - 1.0),
        region.y + reach * (2.0 * uniform[3] - 1.0),
        region.width,
        region.height,
    )
    if upright is None and uniform[4] < config.any_turn_chance:
        radians = math.pi * (2.0 * uniform[4] / config.any_turn_chance - 1.0)
    else:
        radians = math.radians(config.turn * normal)
    mirrored = bool(uniform[5] < config.mirror_chance)
    to_input = crop_affine(region, input_size, radians=radians, mirrored=mirrored)
    return Augmentation(to_upright.then(to_input) if upright is not None else to_input, mirrored)


def handedness_after(handedness: Handedness | None, mirrored: bool) -> Handedness | None:
    """Which hand the picture shows after the augmentation: a mirrored left hand is a right hand."""
    if handedness is None or not mirrored:
        return handedness
    return "right" if handedness == "left" else "left"


def photometric(crop: NDArray[np.uint8], rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.uint8]:
    """Varies colour, sharpness, noise and occlusion of a crop; never where anything is.

    Args:
        crop: uint8 RGB [H, W, 3].
        rng: source of chance.
        config: how much may vary.

    Returns:
        uint8 RGB [H, W, 3].
    """
    chances = rng.random(7)
    if chances[0] < config.blur_chance:
        radius = float(rng.uniform(0.4, 1.6)) * crop.shape[0] / 128
        crop = np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(radius)))
    if chances[1] < config.patch_chance:
        crop = _with_patch(crop, rng)
    if chances[5] < config.shake_chance:
        crop = _shaken(crop, rng)
    if chances[6] < config.coarse_chance:
        crop = _coarse(crop, rng)
    colour, grey, noise = (
        chances[2] < config.colour_chance,
        chances[3] < config.grey_chance,
        chances[4] < config.noise_chance,
    )
    if not (colour or grey or noise):
        return crop
    values = crop.astype(np.float32)
    if grey:
        values[:] = values.mean(axis=-1, keepdims=True)
    if colour:
        values = _with_colour(values, rng)
    if noise:
        values += rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(2.0, 12.0))
    varied: NDArray[np.uint8] = np.clip(values, 0.0, 255.0).astype(np.uint8)
    return varied


def _with_colour(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Light, contrast, saturation and white balance as one affine map of colours, then gamma."""
    gains = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.65, 1.35)
    saturation, contrast = rng.uniform(0.6, 1.4), rng.uniform(0.7, 1.3)
    mix = saturation * np.eye(3) + (1.0 - saturation) / 3.0
    matrix = (contrast * mix * gains[:, None]).astype(np.float32)
    middle = np.float32(values.mean())
    mapped = values @ matrix.T + middle * np.float32(1.0 - contrast)
    gamma = np.float32(math.exp(rng.uniform(-0.3, 0.3)))
    coloured: NDArray[np.float32] = np.power(np.clip(mapped, 0.0, 255.0) / np.float32(255.0), gamma) * np.float32(255.0)
    return coloured


def _with_patch(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Covers a rectangle with one colour or with another part of the same crop."""
    height, width = crop.shape[:2]
    patch_height, patch_width = (int(side) for side in rng.uniform(0.08, 0.3, 2) * (height, width))
    top, left = int(rng.integers(height - patch_height)), int(rng.integers(width - patch_width))
    patched = crop.copy()
    target = patched[top : top + patch_height, left : left + patch_width]
    if rng.random() < 0.5:
        target[:] = rng.integers(0, 256, 3, dtype=np.uint8)
    else:
        from_top = int(rng.integers(height - patch_height))
        from_left = int(rng.integers(width - patch_width))
        target[:] = crop[from_top : from_top + patch_height, from_left : from_left + patch_width]
    return patched


def _shaken(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The mean of copies along a line through where it is, as a moving camera leaves it."""
    height, width = crop.shape[:2]
    reach = rng.uniform(0.5, 3.5) * height / 128  # to either side
    radians = rng.uniform(0.0, math.pi)
    edge = math.ceil(reach)
    padded = np.pad(crop, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    total = np.zeros(crop.shape, np.float32)
    places = np.linspace(-reach, reach, 2 * edge + 1)
    for row, column in np.rint(places[:, None] * (math.sin(radians), math.cos(radians))).astype(int) + edge:
        total += padded[row : row + height, column : column + width]
    shaken: NDArray[np.uint8] = np.rint(total / np.float32(len(places))).astype(np.uint8)
    return shaken


def _coarse(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The crop as it comes out of a picture in which it is up to three times smaller, mostly a JPEG."""
    height, width = crop.shape[:2]
    factor = math.exp(math.log(3.0) * rng.random())
    small = Image.fromarray(crop).resize((round(width / factor), round(height / factor)), Image.Resampling.BILINEAR)
    if rng.random() < 0.7:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=int(rng.integers(25, 90)))
        small = Image.open(buffer)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
