import numpy as np
import pytest

from trainer.data.synthetic.camera import Camera, draw_view, framing_camera


def test_a_point_on_the_axis_lands_on_the_principal_point_in_continuous_pixels() -> None:
    camera = Camera(focal=200.0, centre_x=64.0, centre_y=48.0, width=128, height=96)

    assert camera.project(np.array([[0.0, 0.0, 2.0]])).tolist() == [[64.0, 48.0]]
    assert camera.project(np.array([[0.1, -0.05, 1.0]])).tolist() == [[84.0, 38.0]]


def test_framing_gives_the_points_the_share_of_the_picture_asked_for() -> None:
    points = np.random.default_rng(0).normal(size=(21, 3)) * 0.05 + [0.1, -0.2, 0.6]
    camera = framing_camera(points, size=256, share=0.5, shift=(0.1, -0.05))
    found = camera.project(points)

    assert np.ptp(found, axis=0).max() == pytest.approx(128.0)
    assert (found.min(axis=0) + found.max(axis=0)) / 2 == pytest.approx([256 * 0.6, 256 * 0.45])


def test_rays_and_projection_are_inverse() -> None:
    camera = Camera(focal=150.0, centre_x=70.0, centre_y=30.0, width=128, height=96)
    ray = camera.ray(np.array([11.5]), np.array([80.25]))

    assert camera.project(ray * 3.0)[0] == pytest.approx([11.5, 80.25])


def test_views_are_rotations_from_all_round() -> None:
    rng = np.random.default_rng(2)
    views = np.stack([draw_view(rng) for _ in range(300)])

    assert np.abs(views @ views.transpose(0, 2, 1) - np.eye(3)).max() < 1e-9
    assert np.linalg.det(views) == pytest.approx(1.0)
    # The palm (z of the hand) faces the camera, away from it, and to every side.
    palm = views[:, :, 2]
    assert (palm[:, 2] < -0.8).mean() > 0.1
    assert (palm[:, 2] > 0.8).mean() > 0.1
    assert (np.abs(palm[:, 2]) < 0.5).mean() > 0.1
