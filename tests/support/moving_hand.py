"""A video without pictures: a stand-in for the predictor that knows where the hand is in each frame."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.inference.errors import InvalidInputError, ServiceError
from service.inference.estimates import Estimate, EstimateRequest, Hand, Timings
from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_COUNT
from service.pose.preprocessing import hand_box_to_crop
from tests.support.models import served_model

VIDEO_SIZE = (640, 480)


def hand_at(centre_x: float, centre_y: float, size: float = 120.0) -> NDArray[np.float64]:
    """21 keypoints around a centre, in a square of this size: float64 [21, 2], (x, y) in the image."""
    angles = np.linspace(0.0, 2 * np.pi, KEYPOINT_COUNT, endpoint=False)
    return np.stack((centre_x + np.cos(angles) * size / 2, centre_y + np.sin(angles) * size / 2), axis=-1)


def frame_bytes(index: int) -> bytes:
    """What stands for the image file of this frame."""
    return index.to_bytes(4, "big")


@dataclass
class MovingHand:
    """Stands in for `Predictor.estimate`: sees a keypoint where the crop shows it, and nothing where it does not.

    Attributes:
        keypoints: [F, 21, 2] in pixels of the image; a frame of NaN shows no hand.
        size: (width, height) of the frames.
        whole_frame_score: score of a hand that is looked for in the whole frame.
        failures: what to raise, by frame.
        requests: what was asked, in order.
    """

    keypoints: NDArray[np.float64]
    size: tuple[int, int] = VIDEO_SIZE
    whole_frame_score: float = 0.6
    failures: dict[int, ServiceError] = field(default_factory=dict)
    requests: list[EstimateRequest] = field(default_factory=list)

    async def __call__(self, request: EstimateRequest) -> Estimate:
        self.requests.append(request)
        index = int.from_bytes(request.image, "big")
        if index in self.failures:
            raise self.failures[index]
        width, height = self.size
        whole = Box(0.0, 0.0, float(width), float(height))
        for roi in request.rois:
            if roi.clipped(width, height) != roi:
                raise InvalidInputError("the roi lies outside", code="invalid_roi")
        hands = tuple(self._hand(index, roi, hand_box_to_crop(roi), 0.9) for roi in request.rois)
        return Estimate(
            model=served_model("lightweight"),
            routed_by="default",
            image_size=(width, height),
            hands=hands or (self._hand(index, whole, whole, self.whole_frame_score),),
            timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        )

    def _hand(self, index: int, box: Box, shown: Box, score: float) -> Hand:
        points = self.keypoints[index]
        inside = ((points >= (shown.x, shown.y)) & (points <= (shown.x + shown.width, shown.y + shown.height))).all(
            axis=-1
        )
        guess = np.tile(np.array(shown.centre), (KEYPOINT_COUNT, 1))
        return Hand(
            box_in_image=box,
            keypoints_in_image=np.where(inside[:, None], points, guess),
            scores=np.where(inside, score, 0.02).astype(np.float32),
            sigmas=np.ones(KEYPOINT_COUNT),
        )
