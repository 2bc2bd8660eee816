"""A video without pictures: a stand-in for the predictor that knows where the hands are in each frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.inference.errors import ServiceError
from service.inference.estimates import Estimate, EstimateRequest, Hand, Handedness, Timings
from service.inference.regions import Region, regions_of_rois, whole_picture
from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_COUNT
from tests.support.models import served_model

VIDEO_SIZE = (640, 480)
NOWHERE = np.full((KEYPOINT_COUNT, 2), np.nan)


def hand_at(centre_x: float, centre_y: float, size: float = 120.0) -> NDArray[np.float64]:
    """21 keypoints around a centre, in a square of this size: float64 [21, 2], (x, y) in the image."""
    angles = np.linspace(0.0, 2 * np.pi, KEYPOINT_COUNT, endpoint=False)
    return np.stack((centre_x + np.cos(angles) * size / 2, centre_y + np.sin(angles) * size / 2), axis=-1)


def frame_bytes(index: int) -> bytes:
    """What stands for the image file of this frame."""
    return index.to_bytes(4, "big")


@dataclass
class MovingHand:
    """Stands in for `Predictor.estimate`: sees a hand where the crop shows most of it, and nothing where it does not.

    Attributes:
        keypoints: [F, 21, 2] of one hand, or [F, H, 21, 2] of several, in pixels of the image; NaN: it is not there.
        size: (width, height) of the frames.
        sides: of each hand, as a search tells them.
        detection_scores: of each hand, of a search; those below the request's `min_score` are not found.
        failures: what to raise, by frame.
        requests: what was asked, in order.
    """

    keypoints: NDArray[np.float64]
    size: tuple[int, int] = VIDEO_SIZE
    sides: Sequence[Handedness] = (Handedness("right", 0.9), Handedness("left", 0.9))
    detection_scores: Sequence[float] = (0.9, 0.9)
    failures: dict[int, ServiceError] = field(default_factory=dict)
    requests: list[EstimateRequest] = field(default_factory=list)

    async def __call__(self, request: EstimateRequest) -> Estimate:
        self.requests.append(request)
        index = int.from_bytes(request.image, "big")
        if index in self.failures:
            raise self.failures[index]
        frame = self.keypoints[index].reshape(-1, KEYPOINT_COUNT, 2)
        if request.searches:
            hands = self._search(frame, request)
        elif request.known_hands:
            hands = [self._look(frame, region) for region in request.known_hands]
        else:
            regions = regions_of_rois(request.rois, self.size) if request.rois else [whole_picture(self.size)]
            hands = [self._look(frame, region) for region in regions]
        return Estimate(
            model=served_model("lightweight"),
            routed_by="default",
            image_size=self.size,
            hands=tuple(hands),
            timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        )

    def searches(self) -> list[int]:
        """The frames that were searched as a whole."""
        return [int.from_bytes(each.image, "big") for each in self.requests if each.searches]

    def _search(self, frame: NDArray[np.float64], request: EstimateRequest) -> list[Hand]:
        found = [
            Hand(
                Box.around(points),
                points,
                scores(0.9),
                np.ones(KEYPOINT_COUNT),
                self.detection_scores[i],
                self.sides[i],
            )
            for i, points in enumerate(frame)
            if np.isfinite(points).all()
        ]
        enough = [hand for hand in found if hand.score >= request.min_score]
        return sorted(enough, key=lambda hand: -hand.score)[: request.max_hands]

    def _look(self, frame: NDArray[np.float64], region: Region) -> Hand:
        """The hand of which the region shows most; a guess in its middle where it shows none."""
        shown, told = region.shown_in_image, region.detection
        corner = np.array((shown.x + shown.width, shown.y + shown.height))
        inside = np.asarray((frame >= (shown.x, shown.y)) & (frame <= corner)).all(axis=-1).reshape(len(frame), -1)
        middles = np.linalg.norm(np.nan_to_num(frame, nan=1e6).mean(axis=1) - shown.centre, axis=-1)
        best = int(np.lexsort((middles, -inside.sum(axis=-1)))[0])
        guess = np.tile(np.array(shown.centre), (KEYPOINT_COUNT, 1))
        points = np.where(inside[best][:, None], frame[best], guess)
        return Hand(
            region.box_in_image if told is None else Box.around(points),
            points,
            np.where(inside[best], 0.9, 0.02).astype(np.float32),
            np.ones(KEYPOINT_COUNT),
            None if told is None else told.score,
            None
            if told is None
            else Handedness("right" if told.right >= 0.5 else "left", max(told.right, 1 - told.right)),
        )


def scores(value: float) -> NDArray[np.float32]:
    """The same score for each keypoint."""
    return np.full(KEYPOINT_COUNT, value, np.float32)
