"""Does a version answer as its model card says?"""

import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from service.backends.repository import read_card
from service.backends.tensorflow_serving.backend import TensorFlowServingBackend
from service.backends.tensorflow_serving.config_file import ManagementError
from service.inference.errors import ServiceError
from service.inference.models import ModelReference
from service.pose.detections import detections_in_image
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import ImageError, decode_image
from service.pose.keypoints import KEYPOINT_COUNT
from service.pose.preprocessing import Crop, crop

SURE: Final = 0.5
"""Score of the detections that golden answers hold."""

_ANSWER_S: Final = 30.0


class GoldenImage(BaseModel):
    """An image, and what is in it: the keypoints of the one hand, or the hands that are detected."""

    model_config = ConfigDict(frozen=True)

    image: Base64Bytes
    """An image file."""
    keypoints: list[tuple[float, float]] | None = Field(None, min_length=KEYPOINT_COUNT, max_length=KEYPOINT_COUNT)
    """(x, y) in pixels of the upright image."""
    hands: list[tuple[float, float, float, float, float, float]] | None = None
    """Of each hand x, y, size (pixels of the upright image), cos, sin, right; `service.pose.detections` says what."""


class Golden(BaseModel):
    """What a model card says that its version answers: `golden` in `model_card.json`."""

    model_config = ConfigDict(frozen=True)

    images: list[GoldenImage] = Field(min_length=1)
    tolerance: float = Field(0.02, gt=0, le=1)
    """Largest distance of a keypoint, or of a hand's middle or size, from what it is, over the image's longer side."""


class _Card(BaseModel):
    golden: Golden | None = None


def golden_of(folder: Path) -> Golden:
    """The golden answers in a version's card.

    Raises:
        ManagementError: the card holds none.
        ServableError: the card cannot be read, or they do not fit.
    """
    if (golden := read_card(folder, _Card).golden) is None:
        raise ManagementError(f"{folder}: holds no golden answers to check against; --without-check skips the check")
    return golden


async def check_golden(backend: TensorFlowServingBackend, candidate: ModelReference, golden: Golden) -> None:
    """Raise ManagementError unless the version answers as its card says."""
    for number, expected in enumerate(golden.images, 1):
        try:
            image = decode_image(expected.image)
            model = backend.model(candidate)
            shown = crop(image, Box(0.0, 0.0, float(image.width), float(image.height)), model.input_size)
            answer = await backend.predict(model, [shown.pixels], timeout_s=_ANSWER_S)
        except ImageError as error:
            raise ManagementError(f"a golden image cannot be read: {error}") from error
        except ServiceError as error:
            raise ManagementError(f"a golden image got no answer: {error.detail}") from error
        what, off = _hands_off(answer, shown, expected) if expected.keypoints is None else _off(answer, shown, expected)
        distance = off / max(image.width, image.height)
        if not distance <= golden.tolerance:
            raise ManagementError(
                f"{candidate} is not what its card says: on golden image {number} {what} lies {distance:.3f} of the"
                f" image's side from its place; {golden.tolerance:g} is allowed"
            )


def _off(maps: NDArray[np.float32], shown: Crop, expected: GoldenImage) -> tuple[str, float]:
    """How far the keypoint that is furthest off lies from its place, in pixels of the image."""
    offsets = shown.to_image(decode(maps).in_input[0]) - np.array(expected.keypoints)
    return "a keypoint", float(np.linalg.norm(offsets, axis=-1).max())


def _hands_off(rows: NDArray[np.float32], shown: Crop, expected: GoldenImage) -> tuple[str, float]:
    """How far off the middle or the size of a hand is; infinitely far where one is missing or too many are there."""
    found = [each for each in detections_in_image(rows[0], shown.image_to_input) if each.score >= SURE]
    wanted = expected.hands or []
    if not wanted and not found:
        return "a hand", 0.0
    if not wanted or not found:
        return "a hand", math.inf
    distances = [
        [max(math.dist(each.centre_in_image, (x, y)), abs(each.size - size)) for each in found]
        for x, y, size, *_ in wanted
    ]
    # Each of the one has its own near it among the other; the detector may say a hand twice.
    return "a hand", max(*(min(row) for row in distances), *(min(column) for column in zip(*distances, strict=True)))
