"""Hands from a folder of rigged glTF files (`--hand-meshes`).

Looked for: `*.gltf` with one skinned mesh each, whose joints are named `Wrist_*`, `Thumb_Metacarpal_*`,
`Index_Proximal_*` and so on (the OpenXR names, side suffix `_L` or `_R`); pictures anywhere below the folder; and,
where there is one, `poses_quaternions.json` (side -> pose -> bone -> [x, y, z, w], replacing the node's rotation). Such
meshes end at the wrist, so these hands always wear a sleeve. Left meshes are brought into the right-hand frame and
mirrored back when drawn.
"""

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.synthetic.appearance import SkinRegions
from trainer.data.synthetic.asset import FINGERS, BodyAsset, HandAsset
from trainer.data.synthetic.backgrounds import PICTURE_SUFFIXES, list_files
from trainer.data.synthetic.hands import Handedness, PosedHand, flesh_of, mirrored
from trainer.data.synthetic.mesh import vertex_normals
from trainer.data.synthetic.pose import PoseSolver
from trainer.data.synthetic.shape import HandShape
from trainer.data.synthetic.skinning import skin
from trainer.errors import RefusedError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

POSES_FILE: Final = "poses_quaternions.json"
_COMPONENT: Final = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTH: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_TEXTURE_SIDE: Final = 512
_TIP_SHARE: Final = 0.92
_GLOVED_MESHES: Final = 0.1  # share of draws from all meshes, gloves among them; photos show few
# Our bone -> the rig's joint without its side.
_JOINT_OF: Final[dict[str, str]] = {
    "forearm": "Wrist",
    "upper_arm": "Wrist",
    "hand": "Wrist",
    "thumb_1": "Thumb_Metacarpal",
    "thumb_2": "Thumb_Proximal",
    "thumb_3": "Thumb_Distal",
    **{
        f"{finger}_{i}": f"{finger.capitalize()}_{part}"
        for finger in FINGERS[1:]
        for i, part in enumerate(("Metacarpal", "Proximal", "Intermediate", "Distal"))
    },
}
_KEYPOINT_JOINTS: Final = (
    "Wrist",
    *(f"Thumb_{part}" for part in ("Metacarpal", "Proximal", "Distal", "Tip")),
    *(f"{f.capitalize()}_{part}" for f in FINGERS[1:] for part in ("Proximal", "Intermediate", "Distal", "Tip")),
)


class MeshError(RefusedError):
    """A hand mesh that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class RiggedMesh:
    """One hand as the file has it: metres in the file's own space, joints in the skin's order."""

    name: str
    vertices: Floats  # [V, 3]
    uv: Floats  # [V, 2]
    triangles: npt.NDArray[np.int32]
    weights: Floats  # [V, J]
    inverse_bind: Doubles  # [J, 4, 4]
    joints: tuple[int, ...]  # node of each joint
    joint_names: tuple[str, ...]  # without the side
    parents: dict[int, int]  # node -> node
    locals: dict[int, Doubles]  # node -> [4, 4]
    side: Handedness


def mesh_files(folder: Path) -> tuple[Path, ...]:
    """The folder's glTF files and what goes with them, sorted. Raises a RefusedError where there are none."""
    meshes = list_files(folder, (".gltf",), "rigged glTF hands")
    extra = [p for p in sorted(folder.rglob("*")) if p.name == POSES_FILE or p.suffix.lower() in PICTURE_SUFFIXES]
    return (*meshes, *extra)


def read_rigged_mesh(path: Path) -> RiggedMesh:
    """Read one file. Raises MeshError when it is no rigged hand."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _read(path, document)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MeshError(f"{path}: not a usable rigged hand ({type(error).__name__}: {error})") from error


def _read(path: Path, document: dict[str, Any]) -> RiggedMesh:
    buffers = [_buffer(path, item) for item in document["buffers"]]

    def accessor(index: int) -> npt.NDArray[Any]:
        item = document["accessors"][index]
        view = document["bufferViews"][item["bufferView"]]
        kind, width = np.dtype(_COMPONENT[item["componentType"]]), _WIDTH[item["type"]]
        start = view.get("byteOffset", 0) + item.get("byteOffset", 0)
        if view.get("byteStride", kind.itemsize * width) != kind.itemsize * width:
            raise ValueError("interleaved buffers are not read")
        values = np.frombuffer(buffers[view["buffer"]], kind, item["count"] * width, start)
        return values.reshape(item["count"], width)

    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    skin_of = document["skins"][0]
    joints = tuple(skin_of["joints"])
    vertices = accessor(attributes["POSITION"]).astype(np.float32)
    bones, shares = (
        accessor(attributes["JOINTS_0"]).astype(np.int64),
        accessor(attributes["WEIGHTS_0"]).astype(np.float32),
    )
    weights = np.zeros((len(vertices), len(joints)), np.float32)
    np.add.at(weights, (np.arange(len(vertices))[:, None], bones), shares)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    names = [str(document["nodes"][j]["name"]) for j in joints]
    suffixes = {name[-2:] for name in names}
    if suffixes not in ({"_L"}, {"_R"}):
        raise ValueError("joint names must all end in _L or all in _R")
    plain = tuple(name[:-2] for name in names)
    absent = {*_KEYPOINT_JOINTS, *_JOINT_OF.values()} - set(plain)
    if absent:
        raise ValueError(f"joints missing: {', '.join(sorted(absent))}")
    parents = {c: i for i, node in enumerate(document["nodes"]) for c in node.get("children", [])}
    return RiggedMesh(
        name=path.stem,
        vertices=vertices,
        uv=accessor(attributes["TEXCOORD_0"]).astype(np.float32),
        triangles=accessor(document["meshes"][0]["primitives"][0]["indices"]).reshape(-1, 3).astype(np.int32),
        weights=weights,
        inverse_bind=accessor(skin_of["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1).astype(np.float64),
        joints=joints,
        joint_names=plain,
        parents=parents,
        locals={i: _local(node) for i, node in enumerate(document["nodes"])},
        side="left" if suffixes == {"_L"} else "right",
    )


def _buffer(path: Path, item: dict[str, Any]) -> bytes:
    uri = str(item["uri"])
    if uri.startswith("data:"):
        return base64.b64decode(uri.split(",", 1)[1])
    target = (path.parent / uri).resolve()
    if not target.is_relative_to(path.parent.resolve()):
        raise ValueError("a buffer outside the folder")
    return target.read_bytes()


def _local(node: dict[str, Any]) -> Doubles:
    matrix = np.eye(4)
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix[:3, :3] = _rotation(np.array(node.get("rotation", [0.0, 0.0, 0.0, 1.0]))) * np.array(
        node.get("scale", [1, 1, 1])
    )
    matrix[:3, 3] = node.get("translation", [0.0, 0.0, 0.0])
    return matrix


def _rotation(q: Doubles) -> Doubles:
    x, y, z, w = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


class GltfHand:
    """One rigged mesh, brought into the right-hand frame and ready to be posed."""

    def __init__(self, mesh: RiggedMesh) -> None:
        self.mesh = mesh
        bind = {n: np.linalg.inv(m)[:3, 3] for n, m in zip(mesh.joint_names, mesh.inverse_bind, strict=True)}
        self._origin = bind["Wrist"]
        y = bind["Middle_Proximal"] - self._origin
        y /= np.linalg.norm(y)
        x = bind["Index_Proximal"] - bind["Little_Proximal"]
        x -= y * (x @ y)
        x /= np.linalg.norm(x)
        out_of_palm = np.cross(x, y) * (1.0 if mesh.side == "right" else -1.0)
        self._axes = np.stack([x, y, out_of_palm], axis=1)
        self.triangles = mesh.triangles if mesh.side == "right" else mesh.triangles[:, ::-1].copy()
        self.shape = self._shape(bind)
        self.asset = self._asset()
        self.solver = PoseSolver(self.asset, self.shape)

    def to_hand_frame(self, points: npt.NDArray[np.floating]) -> Floats:
        """Points [N, 3] of the file's space in the right-hand frame."""
        placed: Floats = np.einsum("vi,ij->vj", points - self._origin, self._axes).astype(np.float32)
        return placed

    def _shape(self, bind: dict[str, Doubles]) -> HandShape:
        joints = self.to_hand_frame(np.stack([bind[joint] for joint in _JOINT_OF.values()]))
        joints[0] = (0.0, -0.25, 0.0)  # the forearm that the sleeve is drawn along
        joints[1] = (0.0, -0.5, 0.0)
        ends = self.to_hand_frame(np.stack([bind[f"{f.capitalize()}_Tip"] for f in FINGERS]))
        last = joints[[list(_JOINT_OF).index(f"{f}_3") for f in FINGERS]]
        tips = last + _TIP_SHARE * (ends - last)
        return HandShape(self.to_hand_frame(self.mesh.vertices), joints, tips.astype(np.float32), age=0.7, gender=0.5)

    def _asset(self) -> HandAsset:
        names = tuple(_JOINT_OF)
        columns = {joint: i for i, joint in enumerate(self.mesh.joint_names)}
        weights = np.zeros((len(self.mesh.vertices), len(names)), np.float32)
        for bone, joint in enumerate(_JOINT_OF.values()):
            if bone >= 2:
                weights[:, bone] = self.mesh.weights[:, columns[joint]]
        for finger in FINGERS:
            weights[:, names.index(f"{finger}_3")] += self.mesh.weights[:, columns[f"{finger.capitalize()}_Tip"]]
        weights[:, 2] += 1.0 - weights.sum(axis=1)  # what hangs on joints that we do not move
        parents = [-1, 0, 0]
        for name in names[3:]:
            finger, step = name.split("_")
            first = "1" if finger == "thumb" else "0"
            parents.append(2 if step == first else names.index(f"{finger}_{int(step) - 1}"))
        empty = np.zeros((0, 3), np.float32)
        return HandAsset(
            bone_names=names,
            bone_parents=tuple(parents),
            mean=np.concatenate([self.shape.vertices, self.shape.joints, self.shape.tips]),
            directions=np.zeros((0, len(self.shape.vertices) + len(names) + 5, 3), np.float32),
            coefficients=np.zeros((1, 0), np.float32),
            age=np.array([0.7], np.float32),
            gender=np.array([0.5], np.float32),
            triangles=self.triangles,
            coarse_triangles=self.triangles,
            weights=weights,
            body=BodyAsset(empty, empty[None], np.zeros((0, 3), np.int32), np.zeros(0, np.float32)),
        )

    def posed_by_quaternions(self, rotations: dict[str, Doubles]) -> tuple[Floats, Floats]:
        """Skin [V, 3] and keypoints [21, 3] in the right-hand frame; `rotations` replace those of the named joints."""
        mesh = self.mesh
        node_of = dict(zip(mesh.joint_names, mesh.joints, strict=True))
        local = dict(mesh.locals)
        for name, quaternion in rotations.items():
            if name in node_of and name != "Wrist":
                matrix = local[node_of[name]].copy()
                matrix[:3, :3] = _rotation(quaternion)
                local[node_of[name]] = matrix
        world: dict[int, Doubles] = {}

        def place(node: int) -> Doubles:
            if node not in world:
                parent = mesh.parents.get(node)
                world[node] = local[node] if parent is None else place(parent) @ local[node]
            return world[node]

        # Nodes above the wrist cancel out, so that the wrist stays where the skin was bound.
        wrist = mesh.joint_names.index("Wrist")
        home = np.linalg.inv(mesh.inverse_bind[wrist]) @ np.linalg.inv(place(mesh.joints[wrist]))
        matrices = np.stack([home @ place(node) for node in mesh.joints])
        transforms = (matrices @ mesh.inverse_bind)[:, :3].reshape(-1, 12)
        blended = np.einsum("vj,jt->vt", mesh.weights.astype(np.float64), transforms).reshape(-1, 3, 4)
        vertices = np.einsum("vij,vj->vi", blended[:, :, :3], mesh.vertices.astype(np.float64)) + blended[:, :, 3]
        places = {n: m[:3, 3] for n, m in zip(mesh.joint_names, matrices, strict=True)}
        points = np.stack([places[n] for n in _KEYPOINT_JOINTS])
        for finger in range(5):
            tip, last = 4 + 4 * finger, 3 + 4 * finger
            points[tip] = points[last] + _TIP_SHARE * (points[tip] - points[last])
        return self.to_hand_frame(vertices), self.to_hand_frame(points)


class GltfHands:
    """A `HandSource` over a folder of rigged meshes."""

    def __init__(
        self,
        hands: tuple[GltfHand, ...],
        textures: dict[str, Bytes],
        poses: dict[Handedness, list[tuple[str, dict[str, Doubles]]]],
    ) -> None:
        self._hands, self._textures, self._poses = hands, textures, poses
        self._bare = tuple(hand for hand in hands if not _is_glove(hand.mesh.name))

    def draw(self, rng: np.random.Generator, handedness: Handedness, *, holding: bool) -> PosedHand:
        """A random mesh, texture and pose: from the pose library, or by joint angles."""
        hands = self._bare if self._bare and rng.random() > _GLOVED_MESHES else self._hands
        hand = hands[int(rng.integers(len(hands)))]
        size = float(rng.uniform(0.82, 1.08))
        library = self._poses.get(hand.mesh.side, [])
        if library and not holding and rng.random() < 0.5:
            (name, first), (_, second) = (library[int(rng.integers(len(library)))] for _ in range(2))
            share = float(rng.choice([0.0, rng.uniform(0.0, 0.5)]))
            vertices, keypoints = hand.posed_by_quaternions(_mix(first, second, share))
        else:
            pose, name = hand.solver.draw(rng, hand.shape, holding=holding)
            pose = replace(pose, wrist=pose.wrist * 0.35)
            rig = hand.solver.solve(pose, hand.shape)
            vertices = skin(hand.shape.vertices, hand.asset.weights, hand.shape.joints, rig.rotations, rig.origins)
            keypoints = rig.keypoints
        vertices, keypoints = vertices * np.float32(size), keypoints * np.float32(size)
        texture_name, texture = self._draw_texture(hand.mesh.name, rng)
        tint = np.exp(rng.normal(0.0, 0.16)) * np.exp(rng.normal(0.0, [0.03, 0.04, 0.05]))
        count = len(vertices)
        region = np.zeros((count, 4), np.float32)
        region[:, 2:] = hand.mesh.uv
        nail = np.full((count, 3), (9.0, -9.0, -1.0), np.float32)
        path, radii = _sleeve_course(hand.shape.vertices, size)
        drawn = PosedHand(
            handedness="right",
            vertices=vertices.astype(np.float32),
            normals=vertex_normals(vertices.astype(np.float32), hand.triangles),
            regions=SkinRegions(hand.shape.vertices, region, nail),
            hand_triangles=hand.triangles,
            arm_triangles=np.zeros((0, 3), np.int32),
            shadow_triangles=hand.triangles,
            keypoints=keypoints.astype(np.float32),
            flesh=flesh_of(keypoints),
            arm_path=path,
            arm_radii=radii,
            age=0.7,
            label=f"{name}:{texture_name}",
            texture=texture,
            texture_tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        )
        return drawn if handedness == "right" else mirrored(drawn)

    def _draw_texture(self, mesh: str, rng: np.random.Generator) -> tuple[str, Bytes]:
        gloved = _is_glove(mesh)
        fitting = sorted(n for n in self._textures if n.lower().startswith("glove") == gloved)
        # Whole gloves painted on a bare hand are to stay rare.
        bare = [n for n in fitting if "glove" not in n.lower()]
        if bare and rng.random() < 0.85:
            fitting = bare
        if not fitting:
            grey = int(rng.integers(90, 220))
            return "plain", np.full((4, 4, 3), (grey, int(grey * 0.78), int(grey * 0.66)), np.uint8)
        name = fitting[int(rng.integers(len(fitting)))]
        return name, self._textures[name]


def _is_glove(name: str) -> bool:
    return "glove" in name.lower()


def _mix(first: dict[str, Doubles], second: dict[str, Doubles], share: float) -> dict[str, Doubles]:
    """Between two poses, joint by joint."""
    mixed = {}
    for name, a in first.items():
        b = second.get(name, a)
        b = b if float(a @ b) >= 0 else -b
        mixed[name] = (1.0 - share) * a + share * b
    return mixed


def _sleeve_course(vertices: Floats, size: float) -> tuple[Floats, Floats]:
    """Path and radii of an arm that the mesh lacks, from the width of its wrist."""
    lengths = np.concatenate([np.linspace(0.0, 0.25, 9)[:-1], np.linspace(0.25, 0.5, 8)])
    near = vertices[vertices[:, 1] < np.quantile(vertices[:, 1], 0.06)]
    centre = (near.min(axis=0) + near.max(axis=0)) / 2.0
    radius = float(np.quantile(np.linalg.norm((near - centre)[:, [0, 2]], axis=1), 0.95)) * 1.05
    path = np.zeros((len(lengths), 3))
    path[:, 1] = -lengths
    path[:, 0], path[:, 2] = centre[0], centre[2]
    radii = radius * (1.0 + 0.45 * np.clip(lengths / 0.2, 0.0, 1.0))
    return (path * size).astype(np.float32), (radii * size).astype(np.float32)


def load_hand_meshes(folder: Path) -> GltfHands:
    """Every rigged hand of a folder with its textures and poses. Raises MeshError or FolderError."""
    meshes = list_files(folder, (".gltf",), "rigged glTF hands")
    hands = tuple(GltfHand(read_rigged_mesh(path)) for path in meshes)
    textures = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES):
        if "normal" in path.stem.lower():
            continue
        try:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((_TEXTURE_SIDE, _TEXTURE_SIDE), Image.Resampling.BOX)
        except OSError as error:
            raise MeshError(f"{path}: not a readable texture ({error})") from error
        textures[path.stem] = np.asarray(small)
    return GltfHands(hands, textures, _read_poses(folder / POSES_FILE))


def _read_poses(path: Path) -> dict[Handedness, list[tuple[str, dict[str, Doubles]]]]:
    if not path.is_file():
        return {}
    poses: dict[Handedness, list[tuple[str, dict[str, Doubles]]]] = {"left": [], "right": []}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for side, found in poses.items():
            for name, bones in sorted(document.get(side, {}).items()):
                rotations = {
                    bone.removesuffix("_L").removesuffix("_R"): np.array(q, np.float64) for bone, q in bones.items()
                }
                if any(q.shape != (4,) for q in rotations.values()):
                    raise ValueError(f"pose {name!r} holds something other than quaternions")
                found.append((name, rotations))
    except (ValueError, AttributeError, TypeError) as error:
        raise MeshError(f"{path}: not a pose library ({error})") from error
    return poses
