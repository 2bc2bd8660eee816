"""From an upright picture to the model's input and back: the only place where pixels are resampled.

Serving and training both use `warp`, so a network sees the same sampling in both. A `Crop` keeps the affine map that
moved its pixels; `Crop.to_image` carries keypoints back through the inverse.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.geometry import Affine, Box, crop_affine
from service.pose.images import DecodedImage

CROP_PADDING: Final = 1.25
"""How much larger than the hand's box the crop is: room for a box that is a little off."""

PADDING_GREY: Final = 128
"""What fills the input beyond the picture's edge; about 0 once the model has normalised it."""

_SLACK: Final = 1e-6  # pixels by which sums of fractions may miss an edge


def hand_box_to_crop(box_in_image: Box) -> Box:
    """The square region that is shown to the model for a hand in this box."""
    return box_in_image.squared().scaled(CROP_PADDING)


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A region of a picture as the model sees it.

    Attributes:
        pixels: uint8 RGB [height, width, 3], the model's input.
        image_to_input: affine map from continuous pixels of the picture to those of the input.
    """

    pixels: NDArray[np.uint8]
    image_to_input: Affine

    def to_image(self, points_in_input: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points [..., 2], (x, y) in continuous pixels of the input, in those of the picture: float64 [..., 2]."""
        return self.image_to_input.inverse().apply(points_in_input)

    @property
    def image_pixels_per_input_pixel(self) -> float:
        """How long a pixel of the input is in the picture; above 1 where the crop shrinks it."""
        return 1 / self.image_to_input.scale


def crop(image: DecodedImage, region_in_image: Box, input_size: tuple[int, int], *, radians: float = 0.0) -> Crop:
    """Letterbox a region of the picture into the model's input.

    Args:
        image: the picture.
        region_in_image: what to show, in pixels of the full picture; it may reach over the edges.
        input_size: (width, height) of the input in pixels.
        radians: how far the picture is turned about the region's middle, clockwise on the screen.
    """
    image_to_input = crop_affine(region_in_image, input_size, radians=radians)
    return Crop(show(image, image_to_input, input_size), image_to_input)


def show(image: DecodedImage, image_to_input: Affine, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """The input, uint8 RGB [height, width, 3], that a map from image coordinates makes of a picture."""
    return warp(image.pixels, image.image_to_pixels.inverse().then(image_to_input), input_size)


def warp(pixels: Image.Image, pixels_to_input: Affine, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample a picture through an affine map, bilinearly, after averaging whole pixels where it shrinks a lot.

    A map that neither turns nor mirrors, such as that of a roi, is resampled by rows and then by columns, which is
    quicker.

    Args:
        pixels: RGB picture.
        pixels_to_input: map from the picture's continuous pixel coordinates to those of the result; invertible.
        input_size: (width, height) of the result.

    Returns:
        uint8 RGB [height, width, 3]; grey (128) where the map reaches outside the picture. A pixel that the picture's
        edge runs through is grey or not.
    """
    to_pixels = pixels_to_input.inverse()
    factor = math.floor(to_pixels.scale)
    if factor > 1:
        region = _region_seen(to_pixels, input_size, pixels.size, factor)
        if region is None:
            return np.full((input_size[1], input_size[0], 3), PADDING_GREY, np.uint8)
        pixels = pixels.reduce(factor, box=region)
        to_pixels = to_pixels.then(Affine.translation(-region[0], -region[1])).then(Affine.scaling(1 / factor))
    x_of_x, x_of_y, _, y_of_x, y_of_y, _ = to_pixels.coefficients()
    if x_of_y == y_of_x == 0 and min(x_of_x, y_of_y) > 0:
        return _resized(pixels, to_pixels, input_size)
    warped = pixels.transform(
        input_size,
        Image.Transform.AFFINE,
        to_pixels.coefficients(),
        resample=Image.Resampling.BILINEAR,
        fillcolor=(PADDING_GREY,) * 3,
    )
    return np.asarray(warped)


def _resized(pixels: Image.Image, to_pixels: Affine, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """`warp` for a map that scales and shifts only: the pixels that lie inside the picture, and grey about them."""
    x_scale, _, x_shift, _, y_scale, y_shift = to_pixels.coefficients()
    columns = _covered(x_scale, x_shift, pixels.width, input_size[0])
    rows = _covered(y_scale, y_shift, pixels.height, input_size[1])
    inside: NDArray[np.uint8] | None = None
    if columns and rows:
        box = (
            max(0.0, x_scale * columns.start + x_shift),
            max(0.0, y_scale * rows.start + y_shift),
            min(float(pixels.width), x_scale * columns.stop + x_shift),
            min(float(pixels.height), y_scale * rows.stop + y_shift),
        )
        inside = np.asarray(pixels.resize((len(columns), len(rows)), Image.Resampling.BILINEAR, box=box))
        if (len(columns), len(rows)) == input_size:
            return inside
    canvas = np.full((input_size[1], input_size[0], 3), PADDING_GREY, np.uint8)
    if inside is not None:
        canvas[rows.start : rows.stop, columns.start : columns.stop] = inside
    return canvas


def _covered(scale: float, shift: float, length: int, size: int) -> range:
    """The pixels of a line of `size` that a line of `length` covers wholly, where pixel x shows scale * x + shift."""
    first = max(0, math.ceil(-shift / scale - _SLACK))
    return range(first, max(first, min(size, math.floor((length - shift) / scale + _SLACK))))


def _region_seen(
    to_pixels: Affine, input_size: tuple[int, int], size: tuple[int, int], factor: int
) -> tuple[int, int, int, int] | None:
    """The part of the picture that the result shows, as (left, top, right, bottom), or None if it shows nothing.

    One block of `factor` pixels is added all round for interpolation at the edges.
    """
    width, height = input_size
    corners = to_pixels.apply(np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64))
    left, top = np.floor(corners.min(axis=0) - factor).astype(int)
    right, bottom = np.ceil(corners.max(axis=0) + factor).astype(int)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    return (int(left), int(top), int(right), int(bottom)) if left < right and top < bottom else None
