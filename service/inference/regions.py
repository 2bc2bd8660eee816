"""Which regions of a picture to show to the model: the rois, the whole picture, or where hands were detected."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from service.inference.errors import FieldError, InvalidInputError
from service.pose.detections import Detection
from service.pose.geometry import Box
from service.pose.preprocessing import CROP_PADDING, hand_box_to_crop

SHARP_HAND: Final = 0.08
"""Of the picture's longer side: hands of at least this size are seen as sharp as the picture has them."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where a hand is looked for.

    Attributes:
        box_in_image: the box that was asked about: the part of the roi inside the picture, or the whole picture.
        shown_in_image: what the model sees of the picture: the box and some room around it.
        radians: how far the picture is turned about the middle of what is shown, clockwise on the screen, so that the
            hand stands upright.
        detection: what the detector says of the hand; None where it was not asked.
    """

    box_in_image: Box
    shown_in_image: Box
    radians: float = 0.0
    detection: Detection | None = None


def whole_picture(image_size: tuple[int, int]) -> Region:
    """All of a picture of this (width, height)."""
    whole = Box(0.0, 0.0, float(image_size[0]), float(image_size[1]))
    return Region(whole, whole)


def region_of(detection: Detection) -> Region:
    """What the model sees of a hand that was detected: upright, and as large as hands are in training."""
    square = detection.square_in_image
    return Region(square, hand_box_to_crop(square), detection.radians, detection)


def regions_of_rois(rois: Sequence[Box], image_size: tuple[int, int]) -> list[Region]:
    """One region for each roi.

    Args:
        rois: boxes in pixels of the upright picture.
        image_size: (width, height) of the picture in pixels.

    Raises:
        InvalidInputError: a roi is not a box, or less than a pixel of it is in the picture.
    """
    clipped, wrong = [], []
    for index, roi in enumerate(rois):
        if (message := _fault_of(roi, image_size)) is not None:
            wrong.append(FieldError(f"roi[{index}]", message))
        else:
            clipped.append(roi.clipped(*image_size))
    if wrong:
        raise InvalidInputError(f"{wrong[0].field}: {wrong[0].message}", code="invalid_roi", errors=wrong)
    return [Region(box, hand_box_to_crop(box)) for box in clipped]


def longest_side_needed(regions: Sequence[Region], image_size: tuple[int, int], input_size: tuple[int, int]) -> int:
    """How many pixels the picture's longer side needs for its crops to fill the model's input with detail."""
    smallest = min(max(region.shown_in_image.width, region.shown_in_image.height) for region in regions)
    return math.ceil(max(input_size) * max(image_size) / smallest)


def longest_side_to_search(input_size: tuple[int, int], detector_size: tuple[int, int]) -> int:
    """The same where hands have yet to be detected: small ones, too, are to fill the model's input with detail."""
    return max(*detector_size, math.ceil(max(input_size) / (CROP_PADDING * SHARP_HAND)))


def _fault_of(roi: Box, image_size: tuple[int, int]) -> str | None:
    width, height = image_size
    if not np.isfinite((roi.x, roi.y, roi.width, roi.height)).all():
        return "x, y, width and height must be finite numbers"
    if roi.width < 1 or roi.height < 1:
        return f"width and height must be at least 1 pixel, got {roi.width:g} x {roi.height:g}"
    inside = roi.clipped(width, height)
    if min(inside.width, inside.height) < 1:
        return (
            f"it lies outside the image, which is {width} x {height} pixels;"
            f" got x={roi.x:g}, y={roi.y:g}, width={roi.width:g}, height={roi.height:g}"
        )
    return None
