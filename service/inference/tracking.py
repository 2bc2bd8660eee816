"""Estimates for the frames of one video: every hand is followed, and keeps an id of its own.

A `HandTracker` asks the predictor about the hands where they were a moment ago. It has the whole frame searched where
nothing is followed, where a hand was lost, and every so often for hands that came in. It knows nothing of protocols,
buffers or connections (`service.inference.streaming`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import count
from typing import Final

import numpy as np

from service.inference.errors import InvalidInputError
from service.inference.estimates import Estimate, EstimateRequest, Estimator, Hand, Handedness, Timings
from service.inference.regions import Region
from service.pose.detections import Detection
from service.pose.hands_apart import duplicates
from service.pose.preprocessing import hand_box_to_crop
from service.pose.tracking import (
    FollowPolicy,
    HandSquare,
    OneEuro,
    OneEuroFilter,
    assigned,
    next_square,
    square_to_follow,
)

NOT_FOLLOWED = 0
"""The track id of a hand that the next frame will not follow."""

SEARCH_EVERY: Final = 10
"""Frames from one search of the whole frame to the next, while all hands are followed. A search costs a fifth of what a
followed hand does; a newcomer waits a third of a second for it at 30 frames a second."""

_UNCONFIRMED: Final = 2  # searches in a row that do not find a followed hand: it was none
_REMEMBERED_S: Final = 0.5  # a hand that was lost, and is found again as soon as this, is still the same
_SAME_HAND_IN_A_FRAME: Final = 0.4  # sizes of the hand between two looks at one hand in one frame, at the most
_OTHER_SIDE: Final = 0.3  # sizes of the hand by which two hands of different sides count as further apart


@dataclass(frozen=True, slots=True)
class TrackedEstimate:
    """The answer to one frame.

    Attributes:
        estimate: the hands, smoothed where smoothing is on.
        tracked: whether all hands were found where they were a moment ago, without a search of the whole frame.
        track_ids: one for each hand; `NOT_FOLLOWED` for a hand that is not followed.
    """

    estimate: Estimate
    tracked: bool
    track_ids: tuple[int, ...]


@dataclass(eq=False, slots=True)
class _Track:
    """One hand that is being followed, or was until a moment ago.

    Attributes:
        look: where to look for it next.
        seen: where it was seen last.
        hand: as it was seen last, before smoothing.
        at_s: when that was.
        unconfirmed: searches in a row that did not find it.
        sides: how often it was told to be which hand.
    """

    id: int
    look: HandSquare
    seen: HandSquare
    hand: Hand
    at_s: float
    filter: OneEuroFilter | None
    unconfirmed: int = 0
    sides: Counter[str] = field(default_factory=Counter)

    def region(self) -> Region:
        """What the predictor is asked to look at."""
        side = self.handedness
        right = 0.5 if side is None else side.score if side.label == "right" else 1 - side.score
        score = self.hand.detection_score
        detection = Detection(
            1.0 if score is None else score, self.look.centre, self.look.side, self.look.radians, right
        )
        return Region(self.look.box, hand_box_to_crop(self.look.box), self.look.radians, detection)

    @property
    def handedness(self) -> Handedness | None:
        """By the votes of all searches."""
        if not self.sides:
            return None
        (label, votes), *_ = self.sides.most_common(1)
        return Handedness("right" if label == "right" else "left", votes / self.sides.total())


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a frame shows.

    Attributes:
        estimate: its hands.
        searched: whether the whole frame was searched.
        confirmed: for each hand, whether a search found it.
    """

    estimate: Estimate
    searched: bool
    confirmed: tuple[bool, ...]


class HandTracker:
    """Follows the hands of one video. Frames must come one after the other, each when the last has its answer.

    Args:
        estimate: answers one image.
        smoothing: parameters of the filter; None leaves the keypoints as they are found.
        follow: off, every frame is asked about on its own. Smoothing works either way.
        policy: when a hand is lost, and which hand is which.
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
        self._lost: list[_Track] = []
        self._ids = count(NOT_FOLLOWED + 1)
        self._last_time_s = -math.inf
        self._frames_since_search = 0

    async def next(self, request: EstimateRequest, *, time_s: float) -> TrackedEstimate:
        """Answer the next frame.

        Args:
            request: the frame. Its rois start tracking afresh; without rois, tracking goes on. With `whole` every frame
                shows one hand, and nothing is followed.
            time_s: when the frame was taken, later than the one before.

        Raises:
            ServiceError: as the predictor does. The frame before stays the last one.
        """
        if not time_s > self._last_time_s:
            raise InvalidInputError(
                f"frames must be in order of time: {time_s:g} s came after {self._last_time_s:g} s",
                code="time_not_increasing",
            )
        sight = await self._look(request)
        self._last_time_s = time_s
        self._frames_since_search = 0 if sight.searched else self._frames_since_search + 1
        return self._update(request, sight, time_s=time_s)

    async def _look(self, request: EstimateRequest) -> _Sight:
        if not self._follow or not request.searches:
            estimate = await self._estimate(request)
            return _Sight(estimate, request.searches, (request.searches,) * len(estimate.hands))
        near = None
        if self._tracks:
            near = await self._estimate(replace(request, known_hands=tuple(track.region() for track in self._tracks)))
            seen = [hand for hand in near.hands if self._square(hand, near) is not None]
            again = duplicates([hand.keypoints_in_image for hand in seen], [hand.score for hand in seen])
            near = replace(near, hands=tuple(hand for index, hand in enumerate(seen) if index not in again))
            if len(near.hands) == len(self._tracks) and self._frames_since_search + 1 < SEARCH_EVERY:
                return _Sight(near, False, (False,) * len(near.hands))
        found = await self._estimate(request)
        if near is None:
            return _Sight(found, True, (True,) * len(found.hands))
        return _together(near, found)

    def _update(self, request: EstimateRequest, sight: _Sight, *, time_s: float) -> TrackedEstimate:
        """Say which hand is which, move the tracks to where the hands are, and smooth their keypoints."""
        estimate = sight.estimate
        known = [] if request.rois else self._tracks + [t for t in self._lost if time_s - t.at_s <= _REMEMBERED_S]
        which = self._which(known, estimate.hands)
        tracks, hands, ids = [], [], []
        for index, (hand, confirmed) in enumerate(zip(estimate.hands, sight.confirmed, strict=True)):
            seen = self._square(hand, estimate)
            if seen is None:
                hands.append(hand)
                ids.append(NOT_FOLLOWED)
                continue
            track = which.get(index)
            if track is None:
                smoother = OneEuroFilter(self._smoothing) if self._smoothing else None
                track = _Track(next(self._ids), seen, seen, hand, time_s, smoother)
            else:
                track.look = next_square(track.look, track.seen, seen, policy=self._policy)
            track.seen, track.hand, track.at_s = seen, hand, time_s
            if sight.searched:
                track.unconfirmed = 0 if confirmed else track.unconfirmed + 1
            if track.unconfirmed >= _UNCONFIRMED:
                continue
            if confirmed and hand.handedness is not None:
                track.sides[hand.handedness.label] += 1
            tracks.append(track)
            hands.append(replace(_smoothed(hand, track, time_s), handedness=track.handedness or hand.handedness))
            ids.append(track.id if self._follow and not request.whole else NOT_FOLLOWED)
        self._lost = [track for track in known if track not in tracks and track.unconfirmed < _UNCONFIRMED]
        self._tracks = tracks
        tracked = self._follow and not sight.searched and request.searches
        return TrackedEstimate(replace(estimate, hands=tuple(hands)), tracked, tuple(ids))

    def _which(self, known: Sequence[_Track], hands: Sequence[Hand]) -> dict[int, _Track]:
        """The track of each hand, by its place among the hands."""
        penalties = np.array([[_OTHER_SIDE * _differ(track, hand) for hand in hands] for track in known])
        pairs = assigned(
            [track.hand.keypoints_in_image for track in known],
            [hand.keypoints_in_image for hand in hands],
            penalties=penalties.reshape(len(known), len(hands)),
            policy=self._policy,
        )
        return {hand: known[track] for track, hand in pairs.items()}

    def _square(self, hand: Hand, estimate: Estimate) -> HandSquare | None:
        return square_to_follow(hand.keypoints_in_image, hand.scores, estimate.image_size, policy=self._policy)


def _together(near: Estimate, found: Estimate) -> _Sight:
    """The hands that are where they were a moment ago, and what a search of the same frame found besides."""
    pairs = assigned(
        [hand.keypoints_in_image for hand in near.hands],
        [hand.keypoints_in_image for hand in found.hands],
        policy=FollowPolicy(same_hand=_SAME_HAND_IN_A_FRAME),
    )
    hands = []
    for index, hand in enumerate(near.hands):
        told = found.hands[pairs[index]] if index in pairs else hand
        hands.append(replace(hand, detection_score=told.detection_score, handedness=told.handedness))
    newcomers = [hand for index, hand in enumerate(found.hands) if index not in pairs.values()]
    confirmed = (*(index in pairs for index in range(len(near.hands))), *(True for _ in newcomers))
    seconds = zip(astuple(near.timings), astuple(found.timings), strict=True)
    timings = Timings(*(one + other for one, other in seconds))
    return _Sight(replace(found, hands=(*hands, *newcomers), timings=timings), True, confirmed)


def _differ(track: _Track, hand: Hand) -> bool:
    """Whether a track and a hand are told to be of different sides."""
    side = track.handedness
    return side is not None and hand.handedness is not None and side.label != hand.handedness.label


def _smoothed(hand: Hand, track: _Track, time_s: float) -> Hand:
    if track.filter is None:
        return hand
    return replace(hand, keypoints_in_image=track.filter.smooth(hand.keypoints_in_image, time_s, track.seen.side))
