"""What is asked and what is answered: values only."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.inference.models import ModelReference, ServedModel
from service.inference.regions import Region
from service.inference.routing import RoutedBy
from service.pose.detections import DETECTIONS
from service.pose.geometry import Box, turn_to_upright
from service.pose.hand_score import hand_score

DEFAULT_MAX_HANDS: Final = 4
"""How many hands are looked for, unless a request says otherwise."""

DEFAULT_MIN_SCORE: Final = 0.5
"""Hands that are looked for and score less are left out, unless a request says otherwise."""

MOST_HANDS: Final = DETECTIONS
"""How many hands a request may ask to look for."""


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
        rois: boxes in pixels of the upright image, one per hand.
        whole: whether the whole image shows one hand, as in the paper's protocol.
        known_hands: where hands were a moment ago, in a stream; they are looked for there and nowhere else.
        max_hands: how many hands to look for, where neither rois, nor `whole`, nor known hands say where they are.
        min_score: hands that are looked for and score less are left out.
        asked_for: the model that the request names, such as "lightweight" or "standard@2".
        client_id: the sender, if known; all requests of a client take the same route.
        priority: whether a person waits for the answer.
        copy_to: the model that must answer, if this is a shadow's copy of a request that was answered before.
    """

    image: bytes
    deadline: float
    rois: tuple[Box, ...] = ()
    whole: bool = False
    known_hands: tuple[Region, ...] = ()
    max_hands: int = DEFAULT_MAX_HANDS
    min_score: float = DEFAULT_MIN_SCORE
    asked_for: str | None = None
    client_id: str | None = None
    priority: Priority = Priority.INTERACTIVE
    copy_to: ModelReference | None = None

    @property
    def searches(self) -> bool:
        """Whether hands have to be looked for: nothing says where they are."""
        return not (self.rois or self.whole or self.known_hands)

    @property
    def hands_named(self) -> int:
        """How many hands are asked about; 1 where they have to be looked for, as most pictures hold one."""
        return len(self.rois) or len(self.known_hands) or 1


@dataclass(frozen=True, slots=True)
class Handedness:
    """Which hand it is: the anatomical side as literally seen, so that a mirrored left hand is a right one.

    Attributes:
        label: "left" or "right".
        score: in [0.5, 1], how sure that is.
    """

    label: Literal["left", "right"]
    score: float


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand's keypoints in the upright image.

    Attributes:
        box_in_image: where the hand was looked for if the request said so: the roi inside the image, or the whole
            image; for a hand that was detected or is followed, the tight box around its keypoints.
        keypoints_in_image: float64 [21, 2], (x, y) in continuous pixels; may lie outside the image.
        scores: float32 [21] in [0, 1].
        sigmas: float64 [21], spread of the belief about each keypoint, in pixels of the image.
        detection_score: in [0, 1], how sure the detector is of it; None where it was not asked.
        handedness: which hand it is; None where the detector was not asked.
    """

    box_in_image: Box
    keypoints_in_image: NDArray[np.float64]
    scores: NDArray[np.float32]
    sigmas: NDArray[np.float64]
    detection_score: float | None = None
    handedness: Handedness | None = None

    @property
    def score(self) -> float:
        """How likely a hand is there and all 21 keypoints are this one hand's, in [0, 1]."""
        return hand_score(self.scores, self.detection_score)

    @property
    def rotation_degrees(self) -> float:
        """How far wrist -> middle_mcp is turned from upright, clockwise on the screen, in [-180, 180)."""
        wrist, middle_mcp = self.keypoints_in_image[0], self.keypoints_in_image[9]
        return -math.degrees(turn_to_upright(middle_mcp - wrist))


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; with several hands, the longest of each."""

    decode: float
    detection: float
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
        hands: with rois or known hands one for each, in their order; with `whole` one; else those that were found,
            best first: none, one or several.
        timings: where the time went.
    """

    model: ServedModel
    routed_by: RoutedBy
    image_size: tuple[int, int]
    hands: tuple[Hand, ...]
    timings: Timings


Estimator = Callable[[EstimateRequest], Awaitable[Estimate]]
"""`Predictor.estimate`, or a stand-in."""
