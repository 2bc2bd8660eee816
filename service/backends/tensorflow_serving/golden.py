"""Does a version answer as its model card says?"""

from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from service.backends.repository import read_card
from service.backends.tensorflow_serving.backend import TensorFlowServingBackend
from service.backends.tensorflow_serving.config_file import ManagementError
from service.inference.errors import ServiceError
from service.inference.models import ModelReference
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import ImageError, decode_image
from service.pose.keypoints import KEYPOINT_COUNT
from service.pose.preprocessing import crop

_ANSWER_S: Final = 30.0


class GoldenImage(BaseModel):
    """An image, and where its keypoints are."""

    model_config = ConfigDict(frozen=True)

    image: Base64Bytes
    """An image file."""
    keypoints: list[tuple[float, float]] = Field(min_length=KEYPOINT_COUNT, max_length=KEYPOINT_COUNT)
    """(x, y) in pixels of the upright image."""


class Golden(BaseModel):
    """What a model card says that its version answers: `golden` in `model_card.json`."""

    model_config = ConfigDict(frozen=True)

    images: list[GoldenImage] = Field(min_length=1)
    tolerance: float = Field(0.02, gt=0, le=1)
    """Largest distance of a keypoint from its place, over the image's longer side."""


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
            model = backend.resolve(candidate)
            shown = crop(image, Box(0.0, 0.0, float(image.width), float(image.height)), model.input_size)
            maps = await backend.predict(model, [shown.pixels], timeout_s=_ANSWER_S)
        except ImageError as error:
            raise ManagementError(f"a golden image cannot be read: {error}") from error
        except ServiceError as error:
            raise ManagementError(f"a golden image got no answer: {error.detail}") from error
        offsets = shown.to_image(decode(maps).in_input[0]) - np.array(expected.keypoints)
        distance = float(np.linalg.norm(offsets, axis=-1).max() / max(image.width, image.height))
        if not distance <= golden.tolerance:
            raise ManagementError(
                f"{candidate} is not what its card says: on golden image {number} a keypoint lies {distance:.3f} of the"
                f" image's side from its place; {golden.tolerance:g} is allowed"
            )
