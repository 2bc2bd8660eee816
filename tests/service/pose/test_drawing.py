import numpy as np
from PIL import Image

from service.pose.drawing import FINGER_COLOURS, draw_hand
from service.pose.keypoints import KEYPOINT_COUNT, finger_of

GREY = (90, 90, 90)


def spread_out_hand() -> np.ndarray:
    """Keypoints far enough apart that no disc covers another: fingers side by side, 30 px a step."""
    points = np.array([(30 + 40 * ((k - 1) // 4), 200 - 40 * ((k - 1) % 4)) for k in range(1, KEYPOINT_COUNT)])
    return np.vstack(([(110, 260)], points)).astype(np.float64)


def test_each_keypoint_shows_its_fingers_colour_where_it_lies() -> None:
    points = spread_out_hand()
    drawn = draw_hand(Image.new("RGB", (240, 300), GREY), points, np.ones(KEYPOINT_COUNT))
    for keypoint, (x, y) in enumerate(points):
        np.testing.assert_allclose(np.asarray(drawn)[int(y), int(x)], FINGER_COLOURS[finger_of(keypoint)], atol=3)


def test_a_doubtful_keypoint_is_fainter_but_still_there() -> None:
    points, scores = spread_out_hand(), np.ones(KEYPOINT_COUNT)
    scores[8] = 0.0
    drawn = draw_hand(Image.new("RGB", (240, 300), GREY), points, scores)
    sure, doubtful = (np.array(drawn.getpixel(tuple(points[k].astype(int)))) for k in (7, 8))
    assert np.abs(sure - GREY).sum() > np.abs(doubtful - GREY).sum() > 0


def test_the_picture_itself_is_left_alone() -> None:
    picture = Image.new("RGB", (240, 300), GREY)
    draw_hand(picture, spread_out_hand(), np.ones(KEYPOINT_COUNT))
    assert picture.getcolors() == [(240 * 300, GREY)]


def test_a_hand_outside_the_picture_draws_nothing() -> None:
    picture = Image.new("RGB", (50, 50), GREY)
    drawn = draw_hand(picture, spread_out_hand() + 1000, np.ones(KEYPOINT_COUNT))
    assert drawn.getcolors() == [(2500, GREY)]
