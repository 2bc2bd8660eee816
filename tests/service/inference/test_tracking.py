"""Hands followed through a video whose every keypoint is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.errors import InvalidInputError, UndecodableImageError
from service.inference.estimates import EstimateRequest
from service.inference.tracking import NOT_FOLLOWED, HandTracker, TrackedEstimate
from service.pose.geometry import Box
from service.pose.tracking import OneEuro
from tests.support.moving_hand import VIDEO_SIZE, MovingHand, frame_bytes, hand_at

FRAME_S = 1 / 30
NOWHERE = np.full((21, 2), np.nan)


def request(frame: int, *rois: Box) -> EstimateRequest:
    return EstimateRequest(image=frame_bytes(frame), deadline=1e9, rois=rois)


async def follow(tracker: HandTracker, frames: range) -> list[TrackedEstimate]:
    return [await tracker.next(request(frame), time_s=frame * FRAME_S) for frame in frames]


def crossing(frames: int, pixels_a_frame: float = 6.0) -> NDArray[np.float64]:
    """A hand that crosses the picture from the left."""
    return np.stack([hand_at(100 + pixels_a_frame * frame, 240) for frame in range(frames)])


async def test_a_hand_is_followed_without_its_box_being_given() -> None:
    video = MovingHand(crossing(60))

    answers = await follow(HandTracker(video), range(60))

    assert [answer.tracked for answer in answers] == [False] + 59 * [True]
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer.estimate.hands[0].keypoints_in_image, video.keypoints[index])
    assert len({answer.track_ids for answer in answers}) == 1
    assert len(video.requests) == 60


async def test_a_tracked_frame_shows_the_model_the_hand_and_not_the_whole_picture() -> None:
    video = MovingHand(crossing(2))

    answers = await follow(HandTracker(video), range(2))

    assert video.requests[0].rois == ()
    assert video.requests[1].rois == (answers[1].estimate.hands[0].box_in_image,)
    assert video.requests[1].rois[0] == Box(40, 180, 120, 120)


async def test_a_hand_that_jumps_is_found_again_in_the_whole_frame() -> None:
    points = np.stack([hand_at(100, 100), hand_at(500, 400), hand_at(505, 400)])
    video = MovingHand(points)

    answers = await follow(HandTracker(video), range(3))

    assert [answer.tracked for answer in answers] == [False, False, True]
    np.testing.assert_allclose(answers[1].estimate.hands[0].keypoints_in_image, points[1])
    assert answers[0].track_ids != answers[1].track_ids == answers[2].track_ids
    assert len(video.requests) == 4


async def test_a_hand_that_leaves_is_not_followed_and_found_when_it_comes_back() -> None:
    video = MovingHand(np.stack([hand_at(100, 100), NOWHERE, NOWHERE, hand_at(300, 200)]))

    answers = await follow(HandTracker(video), range(4))

    assert [answer.tracked for answer in answers] == [False, False, False, False]
    assert answers[1].track_ids == (NOT_FOLLOWED,)
    assert answers[1].estimate.hands[0].score < 0.1, "a low score is returned, not hidden"
    assert answers[3].track_ids not in ((NOT_FOLLOWED,), answers[0].track_ids)


async def test_given_boxes_start_tracking_afresh() -> None:
    video = MovingHand(crossing(3))
    tracker = HandTracker(video)
    await tracker.next(request(0), time_s=0.0)
    given = Box(50, 190, 110, 110)

    started = await tracker.next(request(1, given), time_s=FRAME_S)
    followed = await tracker.next(request(2), time_s=2 * FRAME_S)

    assert not started.tracked
    assert started.estimate.hands[0].box_in_image == given
    assert followed.tracked
    assert followed.track_ids == started.track_ids


async def test_of_two_hands_the_lost_one_is_dropped_and_the_other_followed() -> None:
    video = MovingHand(crossing(3))
    tracker = HandTracker(video)

    both = await tracker.next(request(0, Box(40, 180, 120, 120), Box(400, 20, 90, 90)), time_s=0.0)
    one = await tracker.next(request(1), time_s=FRAME_S)

    assert both.track_ids[0] != NOT_FOLLOWED == both.track_ids[1]
    assert one.track_ids == both.track_ids[:1]


async def test_frames_that_become_smaller_are_looked_at_as_a_whole() -> None:
    video = MovingHand(np.stack([hand_at(500, 400), hand_at(100, 100)]))
    tracker = HandTracker(video)
    await tracker.next(request(0), time_s=0.0)
    video.size = (200, 200)

    answer = await tracker.next(request(1), time_s=FRAME_S)

    assert not answer.tracked
    assert answer.estimate.hands[0].score == pytest.approx(0.6)


async def test_a_frame_that_fails_leaves_the_track_where_it_was() -> None:
    video = MovingHand(crossing(3), failures={1: UndecodableImageError("torn")})
    tracker = HandTracker(video)
    await tracker.next(request(0), time_s=0.0)

    with pytest.raises(UndecodableImageError):
        await tracker.next(request(1), time_s=FRAME_S)

    assert (await tracker.next(request(2), time_s=2 * FRAME_S)).tracked


async def test_time_must_go_forward() -> None:
    tracker = HandTracker(MovingHand(crossing(2)))
    await tracker.next(request(0), time_s=1.0)

    with pytest.raises(InvalidInputError) as caught:
        await tracker.next(request(1), time_s=1.0)

    assert caught.value.code == "time_not_increasing"


@pytest.mark.parametrize("follow_hands", [True, False])
async def test_smoothing_halves_jitter_at_rest_and_nothing_is_smoothed_without_it(follow_hands: bool) -> None:
    noise = np.random.default_rng(11).normal(0.0, 0.8, (120, 21, 2))
    video = MovingHand(hand_at(300, 200) + noise)

    rough = await follow(HandTracker(video, follow=follow_hands), range(120))
    smooth = await follow(HandTracker(video, follow=follow_hands, smoothing=OneEuro()), range(120))

    def jitter(answers: list[TrackedEstimate]) -> float:
        points = np.stack([answer.estimate.hands[0].keypoints_in_image for answer in answers[20:]])
        return float(np.linalg.norm(np.diff(points, axis=0), axis=-1).mean())

    assert jitter(smooth) < 0.5 * jitter(rough)
    np.testing.assert_array_equal(rough[5].estimate.hands[0].keypoints_in_image, video.keypoints[5])


async def test_smoothing_starts_anew_after_a_hand_was_lost() -> None:
    points = np.stack([hand_at(100, 100), NOWHERE, hand_at(500, 300)])
    video = MovingHand(points)

    answers = await follow(HandTracker(video, smoothing=OneEuro()), range(3))

    np.testing.assert_allclose(answers[2].estimate.hands[0].keypoints_in_image, points[2])


async def test_without_following_each_frame_is_looked_at_on_its_own() -> None:
    video = MovingHand(crossing(5))

    answers = await follow(HandTracker(video, follow=False), range(5))

    assert not any(answer.tracked for answer in answers)
    assert [asked.rois for asked in video.requests] == [()] * 5


async def test_boxes_asked_about_always_lie_inside_the_frame() -> None:
    rng = np.random.default_rng(5)
    points = np.stack(
        [hand_at(rng.uniform(0, VIDEO_SIZE[0]), rng.uniform(0, VIDEO_SIZE[1]), rng.uniform(20, 500)) for _ in range(50)]
    )
    video = MovingHand(points)

    await follow(HandTracker(video), range(50))

    asked = [roi for each in video.requests for roi in each.rois]
    assert asked
    assert all(roi == roi.clipped(*VIDEO_SIZE) for roi in asked)
