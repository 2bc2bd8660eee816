"""Following a hand from frame to frame: which box to look at next, and points that are steady at rest.

Pure state and arithmetic. Asking a model about a box, and what to do when a hand is lost, are not decided here
(`service.inference.tracking`).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Box

LARGEST_PARAMETER: Final = 1e6
"""Of a one-euro filter: far above any sense, and its products stay finite."""

_ELAPSED_S: Final = (1e-6, 1e6)  # what time between two frames counts as; likewise


@dataclass(frozen=True, slots=True)
class FollowPolicy:
    """When a hand counts as found, and how its box moves.

    Attributes:
        least_score: mean keypoint score under which a hand is lost.
        least_keypoint_score: score under which a keypoint says nothing about where the hand is.
        least_keypoints: keypoints that must reach that score.
        least_side: shortest sensible longer side of the keypoints' box, in pixels of the image; a model that sees no
            hand may put all points in one place.
        dead_zone: how far an edge of the box may move before the box follows, as a share of its longer side. A box that
            trembles would shake the keypoints that are found in it.
        lead: how far the box goes ahead of a moving hand, as a share of its last step; half a hand at the most.
    """

    least_score: float = 0.25
    least_keypoint_score: float = 0.15
    least_keypoints: int = 8
    least_side: float = 12.0
    dead_zone: float = 0.06
    lead: float = 1.0


def box_to_follow(
    keypoints_in_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    image_size: tuple[int, int],
    *,
    policy: FollowPolicy | None = None,
) -> Box | None:
    """The box of the hand that these keypoints show, or None if they show no hand.

    Args:
        keypoints_in_image: [21, 2], (x, y) in continuous pixels.
        scores: [21] in [0, 1].
        image_size: (width, height) in pixels.
        policy: thresholds.

    Returns:
        A box inside the image with edges on whole pixels and sides of at least 1 pixel.
    """
    policy = policy or FollowPolicy()
    telling = scores >= policy.least_keypoint_score
    if float(scores.mean()) < policy.least_score or np.count_nonzero(telling) < policy.least_keypoints:
        return None
    tight = Box.around(keypoints_in_image[telling])
    side = max(tight.width, tight.height)
    if side < policy.least_side:
        return None
    box = _on_whole_pixels(tight, image_size)
    if box is None or box.width * box.height < 0.25 * tight.width * tight.height:
        return None  # most of the hand has left the image
    return box


def next_box(
    last_look: Box, last_seen: Box, seen: Box, image_size: tuple[int, int], *, policy: FollowPolicy | None = None
) -> Box:
    """Where to look in the next frame: where we looked while the hand is at rest, else ahead of it.

    Args:
        last_look: the box in which the hand was looked for in this frame.
        last_seen: its own box in the frame before, from `box_to_follow`.
        seen: its own box in this frame.
        image_size: (width, height) in pixels.
        policy: the dead zone and the lead.

    Returns:
        A box inside the image with edges on whole pixels and sides of at least 1 pixel.
    """
    policy = policy or FollowPolicy()
    still = policy.dead_zone * max(seen.width, seen.height)
    if _largest_move(last_look, seen) <= still:
        return last_look
    if _largest_move(last_seen, seen) <= still:
        return seen
    # The hand has moved since the frame before, and will as likely as not move on as it did.
    (x, y), (last_x, last_y) = seen.centre, last_seen.centre
    ahead = Box(
        seen.x + policy.lead * _within(x - last_x, seen.width / 2),
        seen.y + policy.lead * _within(y - last_y, seen.height / 2),
        seen.width,
        seen.height,
    )
    return _on_whole_pixels(ahead, image_size) or seen


def _on_whole_pixels(box: Box, image_size: tuple[int, int]) -> Box | None:
    """The part of the box inside the image, grown to whole pixels; None if there is none."""
    left, right = max(math.floor(box.x), 0), min(math.ceil(box.x + box.width), image_size[0])
    top, bottom = max(math.floor(box.y), 0), min(math.ceil(box.y + box.height), image_size[1])
    if left >= right or top >= bottom:
        return None
    return Box(float(left), float(top), float(right - left), float(bottom - top))


def _within(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def _largest_move(one: Box, other: Box) -> float:
    """How far apart the edges that are furthest apart lie."""
    return max(
        abs(one.x - other.x),
        abs(one.y - other.y),
        abs(one.x + one.width - other.x - other.width),
        abs(one.y + one.height - other.y - other.height),
    )


@dataclass(frozen=True, slots=True)
class OneEuro:
    """Parameters of a one-euro filter (Casiez, Roussel and Vogel, CHI 2012).

    Speed counts in sizes of the hand a second, so one setting suits every resolution.

    Attributes:
        min_cutoff_hz: cut-off frequency at rest; lower is steadier.
        beta: how much the cut-off rises with speed, in hertz per (hand size a second); higher lags less.
        derivative_cutoff_hz: cut-off frequency of the speed estimate.
    """

    min_cutoff_hz: float = 1.0
    beta: float = 12.0
    derivative_cutoff_hz: float = 1.0

    def __post_init__(self) -> None:
        values = (self.min_cutoff_hz, self.beta, self.derivative_cutoff_hz)
        if not np.isfinite(values).all() or self.beta < 0 or min(self.min_cutoff_hz, self.derivative_cutoff_hz) <= 0:
            raise ValueError(f"the cut-off frequencies must be positive, beta not negative, and all finite: {self}")
        if max(values) > LARGEST_PARAMETER:
            raise ValueError(f"the cut-off frequencies and beta must be at most {LARGEST_PARAMETER:g}: {self}")


class OneEuroFilter:
    """Smooths one hand's keypoints over time.

    A low-pass filter whose cut-off frequency rises with each keypoint's own speed. The speed is that of the point in
    the plane, not of each coordinate, so the result does not depend on how the camera is turned.
    """

    def __init__(self, parameters: OneEuro) -> None:
        self._parameters = parameters
        self._time_s: float | None = None
        self._points: NDArray[np.float64] = np.empty(0)
        self._velocities: NDArray[np.float64] = np.empty(0)

    def smooth(self, points_in_image: NDArray[np.floating], time_s: float, hand_size: float) -> NDArray[np.float64]:
        """The smoothed points of the next frame, float64 [K, 2].

        Args:
            points_in_image: [K, 2], (x, y) in pixels; the same K every time.
            time_s: when the frame was taken; only differences count.
            hand_size: the longer side of the hand's box, in pixels, positive.

        Raises:
            ValueError: if time did not go forward.
        """
        points = np.asarray(points_in_image, np.float64)
        if self._time_s is None:
            self._time_s, self._points, self._velocities = time_s, points.copy(), np.zeros_like(points)
            return points.copy()
        elapsed = time_s - self._time_s
        if not elapsed > 0:
            raise ValueError(f"frames must be in order of time: {time_s:g} s came after {self._time_s:g} s")
        elapsed = min(max(elapsed, _ELAPSED_S[0]), _ELAPSED_S[1])
        velocities = (points - self._points) / elapsed
        weight = _weight(np.float64(self._parameters.derivative_cutoff_hz), elapsed)
        self._velocities = self._velocities + weight * (velocities - self._velocities)
        speeds = np.linalg.norm(self._velocities, axis=-1, keepdims=True) / hand_size
        weights = _weight(self._parameters.min_cutoff_hz + self._parameters.beta * speeds, elapsed)
        self._points = self._points + weights * (points - self._points)
        self._time_s = time_s
        return self._points.copy()


def _weight(cutoff_hz: NDArray[np.float64] | np.float64, elapsed_s: float) -> NDArray[np.float64] | np.float64:
    """Share of the newest sample in an exponential average with this cut-off frequency."""
    turn = 2 * math.pi * cutoff_hz * elapsed_s
    return turn / (turn + 1)
