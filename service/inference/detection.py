"""Where the hands of a picture are: named by the request, or found by the hand detector."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.decoding import UprightImage
from service.inference.estimates import EstimateRequest
from service.inference.model_queue import Place
from service.inference.models import ServedDetector, ServedModel
from service.inference.regions import (
    Region,
    longest_side_needed,
    longest_side_to_search,
    region_of,
    regions_of_rois,
    whole_picture,
)
from service.pose.detections import detections_in_image, distinct

ModelPlace = Place[NDArray[np.uint8], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Search:
    """The detector, and a request's place in its queue."""

    detector: ServedDetector
    place: ModelPlace


async def regions_of(image: UprightImage, request: EstimateRequest, search: Search | None) -> list[Region]:
    """What to show of a picture: one region for each hand that the request names, or that the detector finds.

    Raises:
        InvalidInputError: a roi is not in the picture.
        ServiceError: the picture cannot be decoded, or the detector fails.
    """
    if search is None:
        return _named(request, image.size)
    (picture,) = await image.crops([whole_picture(image.size)], search.detector.input_size)
    answer = await search.place.run([picture.pixels])
    found = distinct(detections_in_image(answer.results[0], picture.image_to_input))
    return [region_of(each) for each in found[: request.max_hands]]


def longest_side(
    request: EstimateRequest, model: ServedModel, search: Search | None, image_size: tuple[int, int]
) -> int:
    """How many pixels the longer side of a picture of this (width, height) needs.

    Raises:
        InvalidInputError: a roi is not in the picture; so it is known before the picture is decoded.
    """
    if search is None:
        return longest_side_needed(_named(request, image_size), image_size, model.input_size)
    return longest_side_to_search(model.input_size, search.detector.input_size)


def _named(request: EstimateRequest, image_size: tuple[int, int]) -> list[Region]:
    if request.rois:
        return regions_of_rois(request.rois, image_size)
    return list(request.known_hands) or [whole_picture(image_size)]
