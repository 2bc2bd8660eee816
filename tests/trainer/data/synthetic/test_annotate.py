import numpy as np

from trainer.data.synthetic.annotate import (
    OCCLUDED,
    OUTSIDE,
    VISIBLE,
    PlacedHand,
    as_labelled_on_photos,
    label_hand,
    visibility,
)
from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.renderer import Rendered

FLESH = np.full(3, 0.01, np.float32)


def test_visibility_follows_the_depth_picture() -> None:
    depth = np.full((4, 4), np.inf, np.float32)
    depth[1, 1] = 0.495  # its own skin, 5 mm in front
    depth[1, 2] = 0.30  # something 20 cm in front
    keypoints = np.array([[0, 0, 0.5]] * 3, np.float64)
    points = np.array([[1.5, 1.5], [2.5, 1.5], [4.0, 1.5]])

    assert visibility(keypoints, FLESH, points, depth).tolist() == [VISIBLE, OCCLUDED, OUTSIDE]


def test_a_keypoint_is_looked_up_at_the_pixel_that_covers_it() -> None:
    depth = np.full((4, 4), 0.3, np.float32)
    depth[3, 0] = 0.5
    points = np.array([[0.0, 3.0], [0.999, 3.999], [1.0, 3.0]])

    assert visibility(np.array([[0, 0, 0.5]] * 3), FLESH, points, depth).tolist() == [VISIBLE, VISIBLE, OCCLUDED]


def placed(offset: float) -> PlacedHand:
    keypoints = np.tile([offset, 0.0, 1.0], (21, 1))
    corners = np.array([[offset - 0.1, -0.2, 1.0], [offset + 0.1, 0.2, 1.0]])
    return PlacedHand("left", 2, keypoints, np.full(21, 0.01, np.float32), corners.astype(np.float32), "fist")


def rendered(instance: int) -> Rendered:
    return Rendered(
        colour=np.zeros((64, 64, 4), np.uint8),
        depth=np.full((64, 64), 1.0, np.float32),
        instance=np.full((64, 64), instance, np.int32),
    )


CAMERA = Camera(100.0, 32.0, 32.0, 64, 64)


def test_box_covers_the_hand_and_ends_at_the_picture() -> None:
    label = label_hand(placed(0.3), CAMERA, rendered(2))

    assert label is not None
    assert np.round(label.box_in_image, 3).tolist() == [52.0, 12.0, 12.0, 40.0]
    assert label.visibility.tolist() == [VISIBLE] * 21 if label.keypoints_in_image[0, 0] < 64 else [OUTSIDE] * 21
    assert label.handedness == "left"


def test_a_hand_of_which_no_pixel_is_seen_has_no_label() -> None:
    assert label_hand(placed(0.0), CAMERA, rendered(1)) is None


def test_wrist_and_thumb_base_move_alike_on_a_hand_its_mirror_image_and_a_turned_one() -> None:
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(21, 3))
    moved = as_labelled_on_photos(joints)

    assert np.flatnonzero((moved != joints).any(axis=1)).tolist() == [0, 1, 2]
    np.testing.assert_allclose(
        moved[1], joints[1] + 0.096 * (joints[9] - joints[0]) + 0.132 * (joints[5] - joints[17]), atol=1e-12
    )
    mirror = np.diag([-1.0, 1.0, 1.0])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for change in (mirror, turn):
        np.testing.assert_allclose(as_labelled_on_photos(joints @ change), moved @ change, atol=1e-12)
