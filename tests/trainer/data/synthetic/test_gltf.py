"""Rigged glTF hands: a small rig written here, and the optional folder of real ones where it is present."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.synthetic.asset import load_asset
from trainer.data.synthetic.gltf import GltfHand, MeshError, load_hand_meshes, mesh_files, read_rigged_mesh
from trainer.data.synthetic.shape import mean_shape

REAL = Path(os.environ.get("HANDPOSE_HAND_MESHES", "../shared/assets/hand_mesh"))
FINGERS = ("Thumb", "Index", "Middle", "Ring", "Little")


def write_rig(path: Path, side: str, *, drop: str = "") -> dict[str, np.ndarray]:
    """Our own mean hand as a rigged glTF file; returns its joints in the right-hand frame."""
    asset = load_asset(smooth=False)
    shape = mean_shape(asset)
    flip = np.array([1.0 if side == "R" else -1.0, 1.0, 1.0])
    joints: dict[str, np.ndarray] = {"Wrist": shape.joints[asset.bone("hand")].astype(float)}
    weight_of = {"Wrist": ["forearm", "upper_arm", "hand"]}
    parents = {}
    for number, finger in enumerate(FINGERS):
        parts: tuple[str, ...] = ("Metacarpal", "Proximal", "Intermediate", "Distal")
        bones = [f"{finger.lower()}_{i}" for i in range(4)]
        if finger == "Thumb":
            parts, bones = ("Metacarpal", "Proximal", "Distal"), bones[1:]
        above = "Wrist"
        for part, bone in zip(parts, bones, strict=True):
            name = f"{finger}_{part}"
            joints[name], weight_of[name], parents[name] = shape.joints[asset.bone(bone)].astype(float), [bone], above
            above = name
        tip = f"{finger}_Tip"
        joints[tip], weight_of[tip], parents[tip] = shape.tips[number].astype(float), [], above
    names = [n for n in joints if n != drop]
    weights = np.stack([asset.weights[:, [asset.bone(b) for b in weight_of[n]]].sum(axis=1) for n in names], axis=1)
    top = np.argsort(-weights, axis=1)[:, :4]
    shares = np.take_along_axis(weights, top, axis=1)
    triangles = asset.triangles if side == "R" else asset.triangles[:, ::-1]
    inverse = np.tile(np.eye(4), (len(names), 1, 1))
    inverse[:, :3, 3] = -np.stack([joints[n] * flip for n in names])
    arrays = [
        ((shape.vertices * flip).astype(np.float32), 5126, "VEC3"),
        (np.zeros((len(weights), 2), np.float32), 5126, "VEC2"),
        (top.astype(np.uint8), 5121, "VEC4"),
        ((shares / shares.sum(axis=1, keepdims=True)).astype(np.float32), 5126, "VEC4"),
        (triangles.reshape(-1, 1).astype(np.uint16), 5123, "SCALAR"),
        (inverse.transpose(0, 2, 1).reshape(-1, 16).astype(np.float32), 5126, "MAT4"),
    ]
    data, views, accessors = b"", [], []
    for number, (values, component, kind) in enumerate(arrays):
        raw = np.ascontiguousarray(values).tobytes()
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(raw)})
        accessors.append({"bufferView": number, "componentType": component, "count": len(values), "type": kind})
        data += raw + b"\0" * (-len(raw) % 4)
    nodes: list[dict[str, Any]] = []
    for name in names:
        parent = parents.get(name)
        start = joints[parent] if parent else np.zeros(3)
        children = [names.index(c) for c, p in parents.items() if p == name and c in names]
        nodes.append(
            {"name": f"{name}_{side}", "translation": ((joints[name] - start) * flip).tolist(), "children": children}
        )
    attributes = {"POSITION": 0, "TEXCOORD_0": 1, "JOINTS_0": 2, "WEIGHTS_0": 3}
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    document = {
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 4}]}],
        "skins": [{"joints": list(range(len(names))), "inverseBindMatrices": 5}],
        "nodes": nodes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"uri": uri, "byteLength": len(data)}],
    }
    path.write_text(json.dumps(document))
    return joints


@pytest.mark.parametrize("side", ["L", "R"])
def test_a_rig_comes_into_the_right_hand_frame_from_either_side(tmp_path: Path, side: str) -> None:
    joints = write_rig(tmp_path / "hand.gltf", side)
    hand = GltfHand(read_rigged_mesh(tmp_path / "hand.gltf"))
    vertices, keypoints = hand.posed_by_quaternions({})

    assert hand.mesh.side == ("left" if side == "L" else "right")
    # The thumb is on +x, the fingers on +y, and the bent fingertips come out of the palm on +z.
    assert keypoints[4, 0] > 0.03
    assert keypoints[12, 1] > 0.12
    assert keypoints[[8, 12, 16], 2].min() > 0.0
    expected = np.linalg.norm(joints["Middle_Intermediate"] - joints["Wrist"])
    assert np.linalg.norm(keypoints[10] - keypoints[0]) == pytest.approx(expected, rel=1e-4)
    assert np.abs(vertices - hand.shape.vertices).max() < 1e-5


def test_a_quaternion_replaces_the_nodes_rotation_and_moves_what_hangs_on_it(tmp_path: Path) -> None:
    write_rig(tmp_path / "hand.gltf", "R")
    hand = GltfHand(read_rigged_mesh(tmp_path / "hand.gltf"))
    _, rest = hand.posed_by_quaternions({})
    half = np.sin(np.pi / 4)
    # A quarter turn about x takes +y to +z.
    _, bent = hand.posed_by_quaternions({"Index_Proximal": np.array([half, 0.0, 0.0, half])})

    assert np.abs(bent[5] - rest[5]).max() < 1e-6
    assert np.abs(np.delete(bent, [6, 7, 8], axis=0) - np.delete(rest, [6, 7, 8], axis=0)).max() < 1e-6
    assert bent[8, 2] > rest[8, 2] + 0.04


def test_hands_are_drawn_for_both_sides_with_textures_and_poses(tmp_path: Path) -> None:
    write_rig(tmp_path / "hand_l.gltf", "L")
    Image.new("RGB", (16, 16), (200, 150, 120)).save(tmp_path / "skin.png")
    poses = {"left": {"Curl": {"Index_Proximal_L": [0.5, 0.0, 0.0, 0.866]}}, "right": {}}
    (tmp_path / "poses_quaternions.json").write_text(json.dumps(poses))
    source = load_hand_meshes(tmp_path)
    rng = np.random.default_rng(0)
    left = [source.draw(rng, "left", holding=False) for _ in range(6)]
    right = source.draw(rng, "right", holding=False)

    assert {hand.handedness for hand in left} == {"left"}
    assert right.handedness == "right"
    assert any(hand.label.startswith("Curl") for hand in left)
    assert left[0].texture is not None
    assert left[0].texture[0, 0].tolist() == [200, 150, 120]
    assert left[0].keypoints[4, 0] < 0 < right.keypoints[4, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "KeyError"),
        ('{"buffers": [{"uri": "../../etc/passwd"}]}', "outside the folder"),
    ],
)
def test_a_broken_rig_is_refused_with_file_and_reason(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "hand.gltf").write_text(content)

    with pytest.raises(MeshError, match=rf"hand\.gltf: not a usable rigged hand .*{reason}"):
        read_rigged_mesh(tmp_path / "hand.gltf")


def test_a_rig_without_one_of_the_joints_is_refused_by_name(tmp_path: Path) -> None:
    write_rig(tmp_path / "hand.gltf", "R", drop="Ring_Tip")

    with pytest.raises(MeshError, match="joints missing: Ring_Tip"):
        read_rigged_mesh(tmp_path / "hand.gltf")


def test_a_damaged_pose_library_is_refused(tmp_path: Path) -> None:
    write_rig(tmp_path / "hand.gltf", "R")
    (tmp_path / "poses_quaternions.json").write_text('{"right": {"Fist": {"Wrist_R": [1, 2]}}}')

    with pytest.raises(MeshError, match=r"poses_quaternions\.json: .*'Fist' holds something other than quaternions"):
        load_hand_meshes(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the optional folder of rigged hands is not here")
def test_the_real_rigs_load_and_keep_their_fingers_in_order() -> None:
    assert len([p for p in mesh_files(REAL) if p.suffix == ".gltf"]) >= 2
    source = load_hand_meshes(REAL)
    rng = np.random.default_rng(5)
    for _ in range(6):
        hand = source.draw(rng, "right", holding=False)
        # Knuckles from the thumb's side to the other.
        assert (np.diff(hand.keypoints[[5, 9, 13, 17], 0]) < 0).all()
        nearest = np.linalg.norm(hand.vertices[None] - hand.keypoints[:, None], axis=2).min(axis=1)
        assert nearest.max() < 0.03
