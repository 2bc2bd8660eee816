"""The square of the next frame, and the one-euro filter, on points that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box
from service.pose.tracking import (
    LARGEST_PARAMETER,
    FollowPolicy,
    HandSquare,
    OneEuro,
    OneEuroFilter,
    assigned,
    next_square,
    square_to_follow,
)

SIZE = (640, 480)
SURE = np.full(21, 0.9)
FRAME_S = 1 / 30


def hand_in(box: Box) -> NDArray[np.float64]:
    """21 points whose tight box is `box`."""
    steps = np.linspace(0.0, 1.0, 21)
    return np.stack((box.x + box.width * steps, box.y + box.height * steps[::-1]), axis=-1)


def test_the_square_to_follow_is_the_hands_turned_upright() -> None:
    points = hand_in(Box(100, 50, 80, 80))  # a line from the lower left to the upper right
    square = square_to_follow(points, SURE, SIZE)
    assert square is not None
    assert square.centre == pytest.approx((140, 90))
    assert square.side == pytest.approx(80 * math.sqrt(2))
    assert math.degrees(square.radians) == pytest.approx(-45)


@given(
    x=st.floats(-900, 900),
    y=st.floats(-900, 900),
    width=st.floats(1, 900),
    height=st.floats(1, 900),
)
def test_a_square_to_follow_holds_the_hand(x: float, y: float, width: float, height: float) -> None:
    points = hand_in(Box(x, y, width, height))
    square = square_to_follow(points, SURE, SIZE)
    if square is not None:
        turned = Affine.rotation(square.radians).apply(points - np.array(square.centre))
        assert np.abs(turned).max() <= square.side / 2 + 1e-6


def test_a_hand_is_lost_when_its_score_drops() -> None:
    assert square_to_follow(hand_in(Box(100, 50, 80, 90)), np.full(21, 0.1), SIZE) is None


def test_a_hand_is_lost_when_most_of_it_left_the_image() -> None:
    assert square_to_follow(hand_in(Box(-90, 50, 100, 100)), SURE, SIZE) is None


def test_a_hand_is_lost_when_all_keypoints_fall_together() -> None:
    assert square_to_follow(np.full((21, 2), 100.0), SURE, SIZE) is None


def test_doubtful_keypoints_do_not_move_the_square() -> None:
    points, scores = hand_in(Box(100, 50, 80, 90)), SURE.copy()
    expected = square_to_follow(points, scores, SIZE)
    points[10], scores[10] = (600, 400), 0.05
    assert square_to_follow(points, scores, SIZE) == expected


REST = HandSquare((150, 100), 100, 0.0)


def moved(x: float, y: float = 0.0, radians: float = 0.0) -> HandSquare:
    return HandSquare((150 + x, 100 + y), 100, radians)


def test_we_look_in_the_same_place_while_the_hand_only_trembles() -> None:
    assert next_square(REST, moved(-2), moved(3, -2)) == REST


def test_we_look_where_the_hand_is_when_it_has_crept_away_or_turned() -> None:
    assert next_square(REST, moved(9), moved(10)) == moved(10)
    assert next_square(REST, moved(0, radians=0.4), moved(0, radians=0.4)).radians == 0.4


def test_we_look_ahead_of_a_hand_that_moves() -> None:
    assert next_square(REST, REST, moved(20, -10)) == moved(40, -20)


def test_we_never_look_ahead_by_more_than_half_a_hand() -> None:
    assert next_square(REST, REST, moved(200)).centre == pytest.approx((400, 100))


def test_dead_zone_and_lead_can_be_turned_off() -> None:
    assert next_square(REST, REST, moved(1), policy=FollowPolicy(dead_zone=0.0, lead=0.0)) == moved(1)


def test_hands_of_two_frames_are_paired_by_how_near_they_are() -> None:
    left, right, far = (hand_in(Box(x, 50, 100, 100)) for x in (100, 260, 900))
    assert assigned([left, right], [right + 5, left - 5]) == {0: 1, 1: 0}
    assert assigned([left, right], [far]) == {}
    assert assigned([], [left]) == {}
    between = hand_in(Box(185, 50, 100, 100))
    assert assigned([left, right], [between]) == {1: 0}
    assert assigned([left, right], [between], penalties=np.array([[0.0], [0.5]])) == {0: 0}


def test_the_filter_leaves_the_first_frame_as_it_is() -> None:
    points = hand_in(Box(100, 50, 80, 90))

    np.testing.assert_array_equal(OneEuroFilter(OneEuro()).smooth(points, 0.0, 90.0), points)


def test_the_filter_halves_jitter_at_rest() -> None:
    noise = np.random.default_rng(7).normal(0.0, 1.0, (300, 21, 2))
    smoother = OneEuroFilter(OneEuro())

    smooth = np.array([smoother.smooth(each, frame * FRAME_S, 100.0) for frame, each in enumerate(noise)])

    assert smooth[30:].std() < 0.5 * noise[30:].std()


@pytest.mark.parametrize("sizes_a_second", [0.5, 1.0, 3.0])
def test_the_filter_lags_less_than_a_frame_in_steady_motion(sizes_a_second: float) -> None:
    smoother = OneEuroFilter(OneEuro())
    step = 100.0 * sizes_a_second * FRAME_S
    points = np.zeros((1, 2))
    for frame in range(90):
        points = np.array([[frame * step, 0.0]])
        smooth = smoother.smooth(points, frame * FRAME_S, 100.0)

    assert 0 < points[0, 0] - smooth[0, 0] < step


def test_the_filter_does_not_depend_on_how_the_camera_is_turned() -> None:
    rng = np.random.default_rng(3)
    points = np.cumsum(rng.normal(0.0, 3.0, (20, 21, 2)), axis=0)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    straight, turned = OneEuroFilter(OneEuro()), OneEuroFilter(OneEuro())

    for frame, each in enumerate(points):
        one = straight.smooth(each, frame * FRAME_S, 100.0)
        other = turned.smooth(each @ turn.T, frame * FRAME_S, 100.0)

    np.testing.assert_allclose(one @ turn.T, other, atol=1e-9)


def test_the_filter_behaves_the_same_at_every_resolution() -> None:
    points = np.cumsum(np.random.default_rng(3).normal(0.0, 3.0, (20, 21, 2)), axis=0)
    small, large = OneEuroFilter(OneEuro()), OneEuroFilter(OneEuro())

    for frame, each in enumerate(points):
        one = small.smooth(each, frame * FRAME_S, 100.0)
        other = large.smooth(each * 4, frame * FRAME_S, 400.0)

    np.testing.assert_allclose(one * 4, other, atol=1e-9)


def test_the_filter_refuses_time_that_stands_still() -> None:
    smoother = OneEuroFilter(OneEuro())
    smoother.smooth(np.zeros((21, 2)), 1.0, 100.0)

    with pytest.raises(ValueError, match="in order of time"):
        smoother.smooth(np.zeros((21, 2)), 1.0, 100.0)


def test_points_stay_finite_whatever_time_passes_between_two_frames() -> None:
    smoother = OneEuroFilter(OneEuro(LARGEST_PARAMETER, LARGEST_PARAMETER, LARGEST_PARAMETER))

    for time_s, value in ((-1e308, 0.0), (0.0, 1e5), (1e-320, -1e5), (1e308, 1e5)):
        assert np.isfinite(smoother.smooth(np.full((21, 2), value), time_s, 1.0)).all()


@pytest.mark.parametrize(
    ("min_cutoff_hz", "beta", "derivative_cutoff_hz"), [(0, 1, 1), (1, -1, 1), (1, 1, 0), (np.nan, 1, 1), (1e308, 1, 1)]
)
def test_impossible_filter_parameters_are_refused(
    min_cutoff_hz: float, beta: float, derivative_cutoff_hz: float
) -> None:
    with pytest.raises(ValueError, match="cut-off"):
        OneEuro(min_cutoff_hz, beta, derivative_cutoff_hz)
