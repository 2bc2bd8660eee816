"""Following hands from frame to frame: where to look next, which hand is which, and points that are steady at rest.

Pure state and arithmetic. Asking a model, and what to do when a hand is lost, are not decided here
(`service.inference.tracking`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box, turn_to_upright

LARGEST_PARAMETER: Final = 1e6
"""Of a one-euro filter: far above any sense, and its products stay finite."""

_WRIST, _MIDDLE_MCP = 0, 9

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
        dead_zone: how far the square may move before what is looked at follows, over its side. A square that trembles
            would shake the keypoints that are found in it.
        lead: how far the square goes ahead of a moving hand, as a share of its last step; half a hand at the most.
        same_hand: distance of two hands' keypoints, over their size, above which they are not one hand in two frames.
    """

    least_score: float = 0.25
    least_keypoint_score: float = 0.15
    least_keypoints: int = 8
    least_side: float = 12.0
    dead_zone: float = 0.06
    lead: float = 1.0
    same_hand: float = 1.0


@dataclass(frozen=True, slots=True)
class HandSquare:
    """Where a hand is, as a detection says it: the square that it fills once it is turned upright.

    Attributes:
        centre: (x, y) in continuous pixels of the image.
        side: in pixels.
        radians: the turn that makes it upright, clockwise on the screen.
    """

    centre: tuple[float, float]
    side: float
    radians: float

    @property
    def box(self) -> Box:
        """The square as it is before the turn about its centre."""
        return Box(self.centre[0] - self.side / 2, self.centre[1] - self.side / 2, self.side, self.side)


def square_to_follow(
    keypoints_in_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    image_size: tuple[int, int],
    *,
    policy: FollowPolicy | None = None,
) -> HandSquare | None:
    """The square of the hand that these keypoints show, or None if they show no hand, or most of it left the image.

    Args:
        keypoints_in_image: [21, 2], (x, y) in continuous pixels.
        scores: [21] in [0, 1].
        image_size: (width, height) in pixels.
        policy: thresholds.
    """
    policy = policy or FollowPolicy()
    telling = scores >= policy.least_keypoint_score
    if float(scores.mean()) < policy.least_score or np.count_nonzero(telling) < policy.least_keypoints:
        return None
    tight = Box.around(keypoints_in_image[telling])
    inside = tight.clipped(*image_size)
    if max(tight.width, tight.height) < policy.least_side or inside.width * inside.height < 0.25 * (
        tight.width * tight.height
    ):
        return None
    radians = turn_to_upright(keypoints_in_image[_MIDDLE_MCP] - keypoints_in_image[_WRIST])
    turn = Affine.rotation(radians)
    upright = Box.around(turn.apply(keypoints_in_image[telling]))
    x, y = turn.inverse().apply(np.array(upright.centre)).tolist()
    return HandSquare((x, y), max(upright.width, upright.height), radians)


def next_square(
    last_look: HandSquare, last_seen: HandSquare, seen: HandSquare, *, policy: FollowPolicy | None = None
) -> HandSquare:
    """Where to look in the next frame: where we looked while the hand is at rest, else ahead of it.

    Args:
        last_look: the square in which the hand was looked for in this frame.
        last_seen: its own square in the frame before, from `square_to_follow`.
        seen: its own square in this frame.
        policy: the dead zone and the lead.
    """
    policy = policy or FollowPolicy()
    if _largest_move(last_look, seen) <= policy.dead_zone:
        return last_look
    if _largest_move(last_seen, seen) <= policy.dead_zone:
        return seen
    # The hand has moved since the frame before, and will as likely as not move on as it did.
    step = (seen.centre[0] - last_seen.centre[0], seen.centre[1] - last_seen.centre[1])
    length = math.hypot(*step)
    ahead = policy.lead * min(1.0, seen.side / 2 / length) if length else 0.0
    centre = (seen.centre[0] + ahead * step[0], seen.centre[1] + ahead * step[1])
    return HandSquare(centre, seen.side, seen.radians)


def _largest_move(one: HandSquare, other: HandSquare) -> float:
    """How far an edge of the square has moved, by shift, size or turn, over the side of the other one."""
    shift = math.dist(one.centre, other.centre) + abs(one.side - other.side) / 2
    turn = abs(math.remainder(one.radians - other.radians, 2 * math.pi))
    return shift / other.side + turn / 2


def assigned(
    before: Sequence[NDArray[np.floating]],
    now: Sequence[NDArray[np.floating]],
    *,
    penalties: NDArray[np.floating] | None = None,
    policy: FollowPolicy | None = None,
) -> dict[int, int]:
    """Which hand of now is which of before, as {before: now}: pairs by growing distance, none above the policy's.

    Args:
        before, now: keypoints [21, 2] of each hand, in pixels of the image.
        penalties: [len(before), len(now)], added to the distances, which are in sizes of the hand.
        policy: from where on two hands are not one.
    """
    policy = policy or FollowPolicy()
    if not before or not now:
        return {}
    old, new = np.stack(before).astype(np.float64), np.stack(now).astype(np.float64)
    sizes = np.ptp(old, axis=1).max(axis=1)[:, None].clip(1.0)
    distances = np.linalg.norm(old[:, None] - new[None], axis=-1).mean(axis=-1) / sizes
    if penalties is not None:
        distances = distances + penalties
    pairs: dict[int, int] = {}
    for flat in np.argsort(distances, axis=None, kind="stable").tolist():
        one, other = divmod(flat, len(now))
        if distances[one, other] > policy.same_hand:
            break
        if one not in pairs and other not in pairs.values():
            pairs[one] = other
    return pairs


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
