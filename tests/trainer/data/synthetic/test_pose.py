"""Poses stay anatomical, and their keypoints stay inside the hand."""

import numpy as np
import pytest

from trainer.data.synthetic.asset import HandAsset
from trainer.data.synthetic.pose import (
    FINGER_LIMITS,
    THUMB_LIMITS,
    WRIST_LIMITS,
    HandPose,
    PoseSolver,
    clamp,
    gesture_names,
)
from trainer.data.synthetic.shape import HandShape, draw_shape, mean_shape
from trainer.data.synthetic.skinning import skin

BONES = [(0, 1), *((a, a + 1) for base in (1, 5, 9, 13, 17) for a in range(base, base + 3))]


def within(values: np.ndarray, limits: dict[str, tuple[float, float]]) -> bool:
    low, high = np.array(list(limits.values())).T
    return bool(((values >= low - 1e-9) & (values <= high + 1e-9)).all())


@pytest.fixture(scope="module")
def hand(asset: HandAsset) -> HandShape:
    return mean_shape(asset)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_poses_stay_within_joint_limits(asset: HandAsset, solver: PoseSolver, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose, _ = solver.draw(rng, draw_shape(asset, rng))

    assert within(pose.fingers[:, :3], {k: FINGER_LIMITS[k] for k in ("mcp", "pip", "dip")})
    assert within(pose.thumb, THUMB_LIMITS)
    assert within(pose.wrist, WRIST_LIMITS)


def test_fingers_do_not_pass_through_each_other_in_nearly_all_drawn_poses(asset: HandAsset, solver: PoseSolver) -> None:
    rng = np.random.default_rng(4)
    depths = []
    for _ in range(60):
        shape = draw_shape(asset, rng)
        pose, _ = solver.draw(rng, shape)
        depths.append(solver.penetration(solver.solve(pose, shape).keypoints))

    assert np.mean(np.array(depths) < 0.004) > 0.9


def test_penetration_notices_a_thumb_inside_the_fingers(solver: PoseSolver, hand: HandShape) -> None:
    fist = solver.gesture("fist", hand)
    through = HandPose(fist.fingers, np.array([5.0, 10.0, 20.0, 40.0, 50.0]), fist.wrist)

    assert solver.penetration(solver.solve(fist, hand).keypoints) < 0.004
    assert solver.penetration(solver.solve(through, hand).keypoints) > 0.015


@pytest.mark.parametrize("name", gesture_names())
def test_bones_keep_their_length_in_every_gesture(solver: PoseSolver, hand: HandShape, name: str) -> None:
    straight = solver.solve(solver.gesture("flat", hand), hand).keypoints
    posed = solver.solve(solver.gesture(name, hand), hand).keypoints

    for a, b in BONES:
        length = np.linalg.norm(straight[b] - straight[a])
        assert np.linalg.norm(posed[b] - posed[a]) == pytest.approx(length, rel=1e-4)


def test_end_joint_follows_the_middle_joint() -> None:
    fingers = np.zeros((4, 4))
    fingers[:, 2] = 70.0
    straight = clamp(HandPose(fingers, np.zeros(5), np.zeros(3)))
    fingers[:, 1], fingers[:, 2] = 100.0, 0.0
    bent = clamp(HandPose(fingers, np.zeros(5), np.zeros(3)))

    assert straight.fingers[:, 2].max() <= 10.0
    assert bent.fingers[:, 2].min() >= 20.0


def test_bent_fingers_lose_their_spread() -> None:
    fingers = np.zeros((4, 4))
    fingers[0, 3] = 17.0
    open_hand = clamp(HandPose(fingers.copy(), np.zeros(5), np.zeros(3)))
    fingers[:, 0] = 85.0
    closed = clamp(HandPose(fingers, np.zeros(5), np.zeros(3)))

    assert open_hand.fingers[0, 3] == pytest.approx(17.0)
    assert closed.fingers[0, 3] < 4.0


def test_flexion_bends_fingertips_out_of_the_palm_side(solver: PoseSolver, hand: HandShape) -> None:
    flat = solver.solve(solver.gesture("flat", hand), hand).keypoints
    table = solver.solve(solver.gesture("table", hand), hand).keypoints

    assert (table[[8, 12, 16, 20], 2] - flat[[8, 12, 16, 20], 2]).min() > 0.03


@pytest.mark.parametrize(("name", "tip"), [("ok", 8), ("pinch", 8), ("pinch_middle", 12), ("tripod", 8)])
def test_touching_gestures_bring_the_tips_together(solver: PoseSolver, asset: HandAsset, name: str, tip: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        shape = draw_shape(asset, rng)
        points = solver.solve(solver.gesture(name, shape), shape).keypoints
        assert np.linalg.norm(points[4] - points[tip]) < 0.022


def test_point_stretches_the_index_finger_alone(solver: PoseSolver, hand: HandShape) -> None:
    points = solver.solve(solver.gesture("point", hand), hand).keypoints
    reach = np.linalg.norm(points[[8, 12, 16, 20]] - points[0], axis=1)

    assert reach[0] > 1.5 * reach[1:].max()


def test_unknown_gesture_is_refused_with_the_known_ones(solver: PoseSolver, hand: HandShape) -> None:
    with pytest.raises(ValueError, match=r"unknown gesture 'wave'.*open_palm"):
        solver.gesture("wave", hand)


def crossings(point: np.ndarray, direction: np.ndarray, vertices: np.ndarray, triangles: np.ndarray) -> int:
    """How much more often a ray from the point leaves the surface than enters it: 0 outside, 1 or more inside."""
    a, b, c = (vertices[triangles[:, i]].astype(np.float64) for i in range(3))
    ab, ac = b - a, c - a
    p = np.cross(direction, ac)
    det = (ab * p).sum(axis=1)
    det = np.where(np.abs(det) < 1e-18, 1e-18, det)
    t = point - a
    u = (t * p).sum(axis=1) / det
    q = np.cross(t, ab)
    v = (q @ direction) / det
    along = (ac * q).sum(axis=1) / det
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (along > 0)
    return int(np.sign(np.cross(ab, ac)[hit] @ direction).sum())


@pytest.mark.parametrize("name", ["open_palm", "fist", "ok", "relaxed", "grasp"])
def test_every_keypoint_lies_inside_the_skin(asset: HandAsset, solver: PoseSolver, name: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(2):
        shape = draw_shape(asset, rng)
        rig = solver.solve(solver.gesture(name, shape), shape)
        vertices = skin(shape.vertices, asset.weights, shape.joints, rig.rotations, rig.origins)
        # The arm is cut off above the elbow, so rays go sideways out of the hand; two of three must agree.
        rays = np.array([[0.9, 0.3, 0.31], [-0.2, 0.37, 0.91], [-0.83, 0.52, -0.2]])
        for index, point in enumerate(rig.keypoints.astype(np.float64)):
            inside = sum(crossings(point, ray, vertices, asset.triangles) >= 1 for ray in rays)
            assert inside >= 2, f"keypoint {index} of {name}"


def test_skinning_leaves_the_rest_pose_alone_and_moves_rigid_parts_rigidly(asset: HandAsset, hand: HandShape) -> None:
    count = len(asset.bone_names)
    identity = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    still = skin(hand.vertices, asset.weights, hand.joints, identity, hand.joints)
    moved = skin(hand.vertices, asset.weights, hand.joints, identity, hand.joints + np.float32(0.1))

    assert np.abs(still - hand.vertices).max() < 1e-6
    assert np.abs(moved - hand.vertices - 0.1).max() < 1e-6
