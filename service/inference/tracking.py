"""Estimates for the frames of one video, where each frame tells the next one where to look.

A `HandTracker` sends each frame to the predictor with the boxes that follow from the keypoints of the frame before.
When no hand can be followed any more, the same frame is asked about as a whole, and the better answer counts. It knows
nothing of protocols, buffers or connections (`service.inference.streaming`).
"""

from dataclasses import dataclass, replace
from itertools import count

from service.inference.errors import InvalidInputError
from service.inference.estimates import Estimate, EstimateRequest, Estimator, Hand
from service.pose.geometry import Box
from service.pose.tracking import FollowPolicy, OneEuro, OneEuroFilter, box_to_follow, next_box

NOT_FOLLOWED = 0
"""The track id of a hand that the next frame will not follow."""


@dataclass(frozen=True, slots=True)
class TrackedEstimate:
    """The answer to one frame.

    Attributes:
        estimate: the hands, smoothed where smoothing is on.
        tracked: whether the boxes came from the frame before.
        track_ids: one for each hand; `NOT_FOLLOWED` for a hand that was lost.
    """

    estimate: Estimate
    tracked: bool
    track_ids: tuple[int, ...]


@dataclass(slots=True)
class _Track:
    """One hand that is being followed: where to look for it next, and where it was seen last."""

    id: int
    look_in_image: Box
    seen_in_image: Box
    filter: OneEuroFilter | None


class HandTracker:
    """Follows hands through one video. Frames must come one after the other, each when the last has its answer.

    Args:
        estimate: answers one image.
        smoothing: parameters of the filter; None leaves the keypoints as they are found.
        follow: off, every frame is asked about on its own. Smoothing works either way.
        policy: when a hand is lost.
    """

    def __init__(
        self,
        estimate: Estimator,
        *,
        smoothing: OneEuro | None = None,
        follow: bool = True,
        policy: FollowPolicy | None = None,
    ) -> None:
        self._estimate = estimate
        self._smoothing = smoothing
        self._follow = follow
        self._policy = policy or FollowPolicy()
        self._tracks: list[_Track] = []
        self._ids = count(NOT_FOLLOWED + 1)
        self._last_time_s: float | None = None

    async def next(self, request: EstimateRequest, *, time_s: float) -> TrackedEstimate:
        """Answer the next frame.

        Args:
            request: the frame. Its rois start tracking afresh; without rois, tracking goes on.
            time_s: when the frame was taken, later than the one before.

        Raises:
            ServiceError: as the predictor does. The frame before stays the last one.
        """
        if self._last_time_s is not None and not time_s > self._last_time_s:
            raise InvalidInputError(
                f"frames must be in order of time: {time_s:g} s came after {self._last_time_s:g} s",
                code="time_not_increasing",
            )
        known = [] if request.rois or not self._follow else self._tracks
        estimate, tracked = await self._look(request, known)
        # Without boxes a whole image shows one hand: with `follow` off its filter goes on as long as the hand is there.
        before = self._tracks if tracked or not (self._follow or request.rois) else []
        self._last_time_s = time_s
        return self._update(estimate, before, tracked=tracked, time_s=time_s)

    async def _look(self, request: EstimateRequest, known: list[_Track]) -> tuple[Estimate, bool]:
        """The better of what the known boxes and, where they show no hand, the whole frame give."""
        if not known:
            return await self._estimate(request), False
        near = None
        try:
            near = await self._estimate(replace(request, rois=tuple(track.look_in_image for track in known)))
        except InvalidInputError as error:
            if error.code != "invalid_roi":  # frames became smaller than the boxes: look at the whole frame
                raise
        if near is not None and any(self._box(hand, near) is not None for hand in near.hands):
            return near, True
        whole = await self._estimate(request)
        if near is None or _best_score(whole) >= _best_score(near):
            return whole, False
        return near, True

    def _update(self, estimate: Estimate, before: list[_Track], *, tracked: bool, time_s: float) -> TrackedEstimate:
        """Move the tracks to the hands of this frame and smooth their keypoints."""
        tracks: list[_Track] = []
        hands: list[Hand] = []
        ids: list[int] = []
        for index, hand in enumerate(estimate.hands):
            track = before[index] if index < len(before) else None
            seen = self._box(hand, estimate)
            if seen is None:
                hands.append(hand)
                ids.append(NOT_FOLLOWED)
                continue
            if track is None:
                track = _Track(next(self._ids), seen, seen, OneEuroFilter(self._smoothing) if self._smoothing else None)
            elif tracked:
                track.look_in_image = next_box(
                    track.look_in_image, track.seen_in_image, seen, estimate.image_size, policy=self._policy
                )
            track.seen_in_image = seen
            tracks.append(track)
            ids.append(track.id)
            hands.append(_smoothed(hand, track, time_s))
        self._tracks = tracks
        return TrackedEstimate(replace(estimate, hands=tuple(hands)), tracked, tuple(ids))

    def _box(self, hand: Hand, estimate: Estimate) -> Box | None:
        return box_to_follow(hand.keypoints_in_image, hand.scores, estimate.image_size, policy=self._policy)


def _smoothed(hand: Hand, track: _Track, time_s: float) -> Hand:
    if track.filter is None:
        return hand
    size = max(track.seen_in_image.width, track.seen_in_image.height)
    return replace(hand, keypoints_in_image=track.filter.smooth(hand.keypoints_in_image, time_s, size))


def _best_score(estimate: Estimate) -> float:
    return max((hand.score for hand in estimate.hands), default=0.0)
