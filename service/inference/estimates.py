"""What is asked and what is answered: values only."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from service.inference.models import ModelReference, ServedModel
from service.inference.routing import RoutedBy
from service.pose.geometry import Box


class Priority(IntEnum):
    """Order of service: a waiting request of a lower value goes first."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    """One image, and how to answer it.

    Attributes:
        image: the bytes of an image file.
        deadline: the clock's time after which the answer is of no use.
        rois: boxes in pixels of the upright image, one per hand; none: the whole image shows one hand.
        asked_for: the model that the request names, such as "lightweight" or "standard@2".
        client_id: the sender, if known; all requests of a client take the same route.
        priority: whether a person waits for the answer.
        copy_to: the model that must answer, if this is a shadow's copy of a request that was answered before.
    """

    image: bytes
    deadline: float
    rois: tuple[Box, ...] = ()
    asked_for: str | None = None
    client_id: str | None = None
    priority: Priority = Priority.INTERACTIVE
    copy_to: ModelReference | None = None


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand's keypoints in the upright image.

    Attributes:
        box_in_image: the region that was asked about: the roi, or the whole image.
        keypoints_in_image: float64 [21, 2], (x, y) in continuous pixels; may lie outside the image.
        scores: float32 [21] in [0, 1].
        sigmas: float64 [21], spread of the belief about each keypoint, in pixels of the image.
    """

    box_in_image: Box
    keypoints_in_image: NDArray[np.float64]
    scores: NDArray[np.float32]
    sigmas: NDArray[np.float64]

    @property
    def score(self) -> float:
        """Confidence in the hand as a whole: the mean over its keypoints."""
        return math.fsum(self.scores.tolist()) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; with several hands, the longest of each."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The answer.

    Attributes:
        model: what answered.
        routed_by: why that model.
        image_size: (width, height) of the upright image in pixels.
        hands: one for each roi, in the order of the rois; without rois, one for the whole image.
        timings: where the time went.
    """

    model: ServedModel
    routed_by: RoutedBy
    image_size: tuple[int, int]
    hands: tuple[Hand, ...]
    timings: Timings


Estimator = Callable[[EstimateRequest], Awaitable[Estimate]]
"""`Predictor.estimate`, or a stand-in."""
