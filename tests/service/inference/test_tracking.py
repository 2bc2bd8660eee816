"""Hands followed through a video whose every keypoint is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.errors import InvalidInputError, UndecodableImageError
from service.inference.estimates import EstimateRequest, Handedness
from service.inference.tracking import NOT_FOLLOWED, SEARCH_EVERY, HandTracker, TrackedEstimate
from service.pose.geometry import Box
from service.pose.preprocessing import CROP_PADDING
from service.pose.tracking import OneEuro
from tests.support.moving_hand import NOWHERE, VIDEO_SIZE, MovingHand, frame_bytes, hand_at

FRAME_S = 1 / 30


def request(frame: int, *rois: Box) -> EstimateRequest:
    return EstimateRequest(image=frame_bytes(frame), deadline=1e9, rois=rois)


async def follow(tracker: HandTracker, frames: range) -> list[TrackedEstimate]:
    return [await tracker.next(request(frame), time_s=frame * FRAME_S) for frame in frames]


def crossing(frames: int, pixels_a_frame: float = 6.0, y: float = 240.0, start: float = 100.0) -> NDArray[np.float64]:
    """A hand that crosses the picture from the left, or from the right where it goes backwards."""
    return np.stack([hand_at(start + pixels_a_frame * frame, y) for frame in range(frames)])


def ids_of(answers: list[TrackedEstimate], keypoints: NDArray[np.float64]) -> list[list[int | None]]:
    """For each frame, the id of each of the video's hands by where it is; None where it was not answered."""
    found = []
    for answer, frame in zip(answers, keypoints, strict=True):
        of_frame: list[int | None] = []
        for points in frame:
            near = [
                track
                for track, hand in zip(answer.track_ids, answer.estimate.hands, strict=True)
                if np.abs(hand.keypoints_in_image - points).max() < 1
            ]
            of_frame.append(near[0] if near else None)
        found.append(of_frame)
    return found


async def test_a_hand_is_followed_and_searched_for_every_so_often() -> None:
    video = MovingHand(crossing(60))
    answers = await follow(HandTracker(video), range(60))
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer.estimate.hands[0].keypoints_in_image, video.keypoints[index])
    assert {answer.track_ids for answer in answers} == {(1,)}
    assert video.searches() == list(range(0, 60, SEARCH_EVERY))
    assert [answer.tracked for answer in answers] == [frame % SEARCH_EVERY != 0 for frame in range(60)]


async def test_a_followed_hand_is_shown_upright_and_as_large_as_a_detection_is() -> None:
    video = MovingHand(np.stack([hand_at(200, 240)] * 2))
    await follow(HandTracker(video), range(2))
    (known,) = video.requests[1].known_hands
    assert known.shown_in_image.width == pytest.approx(120 * CROP_PADDING, rel=0.02)
    assert known.shown_in_image.centre == pytest.approx((200, 240), abs=2)
    wrist, middle_mcp = video.keypoints[0, 0], video.keypoints[0, 9]
    along = np.arctan2(*(middle_mcp - wrist)[::-1]) + known.radians
    assert np.sin(along) == pytest.approx(-1)  # up


async def test_a_hand_that_jumps_is_found_again_in_the_same_frame() -> None:
    points = np.stack([hand_at(100, 100), hand_at(500, 400), hand_at(505, 400)])
    video = MovingHand(points)
    answers = await follow(HandTracker(video), range(3))
    assert video.searches() == [0, 1]
    assert [len(answer.estimate.hands) for answer in answers] == [1, 1, 1]
    np.testing.assert_allclose(answers[1].estimate.hands[0].keypoints_in_image, points[1])


async def test_two_hands_that_cross_keep_their_ids() -> None:
    keypoints = np.stack([crossing(60, 7.0, y=215), crossing(60, -7.0, y=265, start=520)], axis=1)
    answers = await follow(HandTracker(MovingHand(keypoints)), range(60))
    ids = ids_of(answers, keypoints)
    assert sum(of_frame == [1, 2] for of_frame in ids) >= 0.98 * len(ids)


async def test_sides_tell_two_hands_apart_that_cross_while_they_are_searched_for() -> None:
    """Both hands are lost for a moment where they meet, and found again on the other's side."""
    left, right = hand_at(280, 240), hand_at(360, 240)
    keypoints = np.stack([np.stack([left, right]), np.stack([NOWHERE, NOWHERE]), np.stack([right, left])])
    video = MovingHand(keypoints, sides=(Handedness("left", 0.95), Handedness("right", 0.95)))
    answers = await follow(HandTracker(video), range(3))
    of_side = [
        {
            hand.handedness and hand.handedness.label: track
            for hand, track in zip(a.estimate.hands, a.track_ids, strict=True)
        }
        for a in answers
    ]
    assert of_side[0] == {"left": 1, "right": 2}
    assert of_side[2] == of_side[0]


async def test_a_hand_that_comes_in_gets_an_id_of_its_own_at_the_next_search() -> None:
    here = np.stack([hand_at(150, 240)] * 30)
    late = np.stack([NOWHERE] * 5 + [hand_at(480, 240)] * 25)
    video = MovingHand(np.stack([here, late], axis=1))
    answers = await follow(HandTracker(video), range(30))
    ids = ids_of(answers, video.keypoints)
    assert ids[:SEARCH_EVERY] == [[1, None]] * SEARCH_EVERY
    assert ids[SEARCH_EVERY:] == [[1, 2]] * (30 - SEARCH_EVERY)


async def test_a_hand_that_leaves_for_long_is_another_when_it_comes_back_and_for_a_moment_the_same() -> None:
    for away, expected in ((5, 1), (30, 2)):
        video = MovingHand(np.stack([*[hand_at(200, 240)] * 3, *[NOWHERE] * away, *[hand_at(210, 240)] * 3]))
        answers = await follow(HandTracker(video), range(6 + away))
        assert [answer.track_ids for answer in answers] == [(1,)] * 3 + [()] * away + [(expected,)] * 3


async def test_what_searches_do_not_find_is_not_followed_for_long() -> None:
    """The model sees keypoints in a face, the detector does not take it for a hand."""
    face = np.stack([hand_at(200, 240)] * 40)
    video = MovingHand(face, detection_scores=(0.9,))
    tracker = HandTracker(video)
    await follow(tracker, range(1))
    video.detection_scores = (0.05,)
    answers = await follow(tracker, range(1, 40))
    followed = [bool(answer.track_ids) for answer in answers]
    assert followed[: 2 * SEARCH_EVERY - 1] == [True] * (2 * SEARCH_EVERY - 1)
    assert not any(followed[2 * SEARCH_EVERY :])


async def test_a_face_alone_is_never_followed() -> None:
    video = MovingHand(np.stack([hand_at(200, 240)] * 5), detection_scores=(0.05,))
    assert [answer.track_ids for answer in await follow(HandTracker(video), range(5))] == [()] * 5


async def test_two_tracks_that_fall_onto_one_hand_become_one() -> None:
    keypoints = np.stack(
        [np.stack([hand_at(200, 240), hand_at(300, 240)]), *[np.stack([hand_at(200, 240), NOWHERE])] * 8]
    )
    answers = await follow(HandTracker(MovingHand(keypoints)), range(9))
    assert answers[0].track_ids == (1, 2)
    assert [len(answer.estimate.hands) for answer in answers[1:]] == [1] * 8


async def test_given_boxes_start_tracking_afresh() -> None:
    video = MovingHand(np.stack([hand_at(200, 240)] * 3))
    tracker = HandTracker(video)
    first = await tracker.next(request(0), time_s=0.0)
    second = await tracker.next(request(1, Box(140, 180, 120, 120)), time_s=1.0)
    third = await tracker.next(request(2), time_s=2.0)
    assert (first.track_ids, second.track_ids, third.track_ids) == ((1,), (2,), (2,))
    assert third.tracked
    assert len(video.requests[2].known_hands) == 1


async def test_a_frame_that_fails_leaves_the_track_where_it_was() -> None:
    video = MovingHand(np.stack([hand_at(200, 240)] * 3), failures={1: UndecodableImageError("broken")})
    tracker = HandTracker(video)
    first = await tracker.next(request(0), time_s=0.0)
    with pytest.raises(UndecodableImageError):
        await tracker.next(request(1), time_s=1.0)
    assert (await tracker.next(request(2), time_s=2.0)).track_ids == first.track_ids


async def test_time_must_go_forward() -> None:
    tracker = HandTracker(MovingHand(np.stack([hand_at(200, 240)] * 2)))
    await tracker.next(request(0), time_s=1.0)
    with pytest.raises(InvalidInputError, match=r"1 s came after 1 s"):
        await tracker.next(request(1), time_s=1.0)


@pytest.mark.parametrize("follow_hands", [True, False])
async def test_smoothing_halves_jitter_at_rest_and_nothing_is_smoothed_without_it(follow_hands: bool) -> None:
    rng = np.random.default_rng(0)
    still = hand_at(320, 240)
    video = MovingHand(np.stack([still + rng.normal(0, 1.0, still.shape) for _ in range(90)]))
    jitter = {}
    for smoothing in (OneEuro(), None):
        answers = await follow(HandTracker(video, smoothing=smoothing, follow=follow_hands), range(90))
        points = np.stack([answer.estimate.hands[0].keypoints_in_image for answer in answers[30:]])
        jitter[smoothing] = float(points.std(axis=0).mean())
    assert jitter[None] == pytest.approx(1.0, abs=0.1)
    assert jitter[OneEuro()] < 0.5 * jitter[None]


async def test_without_following_each_frame_is_looked_at_on_its_own() -> None:
    video = MovingHand(crossing(5))
    answers = await follow(HandTracker(video, follow=False), range(5))
    assert [answer.tracked for answer in answers] == [False] * 5
    assert {answer.track_ids for answer in answers} == {(NOT_FOLLOWED,)}
    assert video.searches() == list(range(5))


async def test_frames_that_are_one_hand_as_a_whole_are_not_followed() -> None:
    video = MovingHand(crossing(3))
    tracker = HandTracker(video)
    answers = [await tracker.next(replace(request(i), whole=True), time_s=float(i)) for i in range(3)]
    assert {answer.track_ids for answer in answers} == {(NOT_FOLLOWED,)}
    assert all(each.whole and not each.known_hands for each in video.requests)


async def test_a_followed_hand_keeps_its_side_and_how_sure_the_detector_was() -> None:
    video = MovingHand(crossing(8))
    for answer in await follow(HandTracker(video), range(8)):
        (hand,) = answer.estimate.hands
        assert hand.handedness is not None
        assert (hand.handedness.label, hand.detection_score) == ("right", 0.9)


async def test_a_hand_that_has_mostly_left_the_picture_is_not_followed() -> None:
    width, _ = VIDEO_SIZE
    video = MovingHand(np.stack([hand_at(width - 60 + 30 * frame, 240) for frame in range(6)]))
    answers = await follow(HandTracker(video), range(6))
    assert answers[0].track_ids == (1,)
    assert answers[-1].track_ids == (NOT_FOLLOWED,)
