"""Does a version answer as its model card says?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, model_validator

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

    @model_validator(mode="after")
    def _says_what_is_in_it(self) -> Self:
        if (self.keypoints is None) is (self.hands is None):
            raise ValueError("either keypoints or hands are needed")
        return self


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
        side = max(image.width, image.height)
        if expected.hands is not None:
            difference = _of_hands(expected.hands, shown, answer, side, golden.tolerance)
        else:
            difference = _of_keypoints(expected.keypoints or (), shown, answer, side, golden.tolerance)
        if difference is not None:
            raise ManagementError(f"{candidate} is not what its card says: on golden image {number} {difference}")


def _of_keypoints(
    expected: Sequence[tuple[float, float]], shown: Crop, maps: NDArray[np.float32], side: int, tolerance: float
) -> str | None:
    """In what the belief maps [1, H, W, 22] of an image with this longer side say something else, in words."""
    offsets = shown.to_image(decode(maps).in_input[0]) - np.array(expected)
    distance = float(np.linalg.norm(offsets, axis=-1).max()) / side
    if distance <= tolerance:
        return None
    return f"a keypoint lies {distance:.3f} of the image's side from its place; {tolerance:g} is allowed"


def _of_hands(
    expected: Sequence[tuple[float, ...]], shown: Crop, rows: NDArray[np.float32], side: int, tolerance: float
) -> str | None:
    """As `_of_keypoints`, for the detector's rows [1, N, 7]; each hand is compared with the nearest that is left."""
    found = [each for each in detections_in_image(rows[0], shown.image_to_input) if each.score >= SURE]
    if len(found) != len(expected):
        return f"it finds {len(found)} hands instead of {len(expected)}"
    for x, y, size, *_ in expected:
        distance, number = min((math.dist(each.centre_in_image, (x, y)), at) for at, each in enumerate(found))
        larger = abs(found.pop(number).size - size)
        if not max(distance, larger) / side <= tolerance:
            return (
                f"a hand lies {distance / side:.3f} of the image's side from its place, with a size that is"
                f" {larger / side:.3f} of it off; {tolerance:g} is allowed"
            )
    return None
