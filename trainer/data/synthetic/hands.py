"""Whole hands ready to be placed: skin, regions, keypoints and the course of the arm, left or right.

`HandSource` is the port; `BodyHands` draws from the committed asset, `gltf.GltfHands` from rigged files.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.appearance import SkinRegions, skin_regions
from trainer.data.synthetic.asset import HandAsset
from trainer.data.synthetic.mesh import vertex_normals
from trainer.data.synthetic.pose import PoseSolver
from trainer.data.synthetic.shape import draw_shape
from trainer.data.synthetic.skinning import skin

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Handedness = Literal["left", "right"]

# Depth from a keypoint to the skin above it on an average adult hand, metres: a keypoint counts as seen when the first
# surface at its pixel is no farther in front of it than this.
_FLESH_OF_WRIST: Final = (0.027,)
_FLESH_OF_FINGERS: Final = (
    (0.022, 0.017, 0.014, 0.012),
    (0.020, 0.014, 0.012, 0.010),
    (0.020, 0.014, 0.012, 0.010),
    (0.019, 0.014, 0.012, 0.010),
    (0.018, 0.012, 0.010, 0.009),
)
FLESH: Final = np.array([*_FLESH_OF_WRIST, *(depth for finger in _FLESH_OF_FINGERS for depth in finger)], np.float32)
_ADULT_PALM: Final = 0.095  # wrist to middle knuckle, metres


@dataclass(frozen=True)
class PosedHand:
    """One hand with its arm. Metres, in a hand frame that for left hands is the mirror image of the right one."""

    handedness: Handedness
    vertices: Floats  # [V, 3]
    normals: Floats  # [V, 3]
    regions: SkinRegions
    hand_triangles: Ints
    arm_triangles: Ints  # may be empty
    shadow_triangles: Ints  # hand and arm, as coarse as a shadow may be
    keypoints: Floats  # [21, 3] joints of the rig; labels are made of them in `annotate`
    flesh: Floats  # [21] see FLESH, scaled to this hand
    arm_path: Floats  # [P, 3] from the wrist up the arm
    arm_radii: Floats  # [P]
    age: float
    label: str
    texture: Bytes | None = None
    texture_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def hand_vertices(self) -> Floats:
        """The skin of the hand without the arm [K, 3]."""
        return self.vertices[np.unique(self.hand_triangles)]


class HandSource(Protocol):
    """Anything that can draw random hands."""

    def draw(self, rng: np.random.Generator, handedness: Handedness, *, holding: bool) -> PosedHand:
        """A random hand; `holding` asks for a pose that can hold something."""
        ...


def mirrored(hand: PosedHand) -> PosedHand:
    """The other hand of the same person in the same pose: x is negated, triangles keep facing outwards."""
    flip = np.array([-1.0, 1.0, 1.0], np.float32)
    return replace(
        hand,
        handedness="left" if hand.handedness == "right" else "right",
        vertices=hand.vertices * flip,
        normals=hand.normals * flip,
        hand_triangles=hand.hand_triangles[:, ::-1].copy(),
        arm_triangles=hand.arm_triangles[:, ::-1].copy(),
        shadow_triangles=hand.shadow_triangles[:, ::-1].copy(),
        keypoints=hand.keypoints * flip,
        arm_path=hand.arm_path * flip,
    )


def flesh_of(keypoints: Floats) -> Floats:
    """FLESH scaled to a hand of this size."""
    palm = float(np.linalg.norm(keypoints[9] - keypoints[0]))
    return (FLESH * (palm / _ADULT_PALM)).astype(np.float32)


class BodyHands:
    """Hands of the parametric body."""

    def __init__(self, asset: HandAsset) -> None:
        self._asset = asset
        self._solver = PoseSolver(asset)
        self._regions = skin_regions(asset)
        arm = asset.weights[:, asset.bone("forearm")] + asset.weights[:, asset.bone("upper_arm")]
        on_arm = arm > 0.5
        is_arm = on_arm[asset.triangles].sum(axis=1) >= 2
        self._hand_triangles = asset.triangles[~is_arm]
        self._arm_triangles = asset.triangles[is_arm]
        self._arm_vertices = np.unique(self._arm_triangles)
        self._forearm, self._upper = asset.bone("forearm"), asset.bone("upper_arm")

    @property
    def solver(self) -> PoseSolver:
        """The solver that poses these hands."""
        return self._solver

    def draw(self, rng: np.random.Generator, handedness: Handedness, *, holding: bool) -> PosedHand:
        """A random body's hand in a random pose."""
        asset = self._asset
        shape = draw_shape(asset, rng)
        pose, label = self._solver.draw(rng, shape, holding=holding)
        rig = self._solver.solve(pose, shape)
        vertices = skin(shape.vertices, asset.weights, shape.joints, rig.rotations, rig.origins)
        wrist, elbow = rig.keypoints[0], rig.origins[self._forearm]
        shoulder = rig.origins[self._upper]
        path, radii = self._arm_course(vertices, wrist, elbow, shoulder)
        hand = PosedHand(
            handedness="right",
            vertices=vertices,
            normals=vertex_normals(vertices, asset.triangles),
            regions=self._regions,
            hand_triangles=self._hand_triangles,
            arm_triangles=self._arm_triangles,
            shadow_triangles=asset.coarse_triangles,
            keypoints=rig.keypoints,
            flesh=flesh_of(rig.keypoints),
            arm_path=path,
            arm_radii=radii,
            age=shape.age,
            label=label,
        )
        return hand if handedness == "right" else mirrored(hand)

    def _arm_course(self, vertices: Floats, wrist: Floats, elbow: Floats, shoulder: Floats) -> tuple[Floats, Floats]:
        arm = vertices[self._arm_vertices]
        path = np.concatenate([np.linspace(wrist, elbow, 9)[:-1], np.linspace(elbow, shoulder, 8)]).astype(np.float32)
        # A rounder elbow.
        path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
        tangents = np.gradient(path, axis=0)
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        radii = np.empty(len(path), np.float32)
        previous = 0.03
        for i, (point, tangent) in enumerate(zip(path, tangents, strict=True)):
            offset = arm - point
            along = offset @ tangent
            away = np.linalg.norm(offset - along[:, None] * tangent, axis=1)
            near = (np.abs(along) < 0.014) & (away < 0.09)
            previous = float(np.quantile(away[near], 0.97)) if near.sum() > 6 else previous
            radii[i] = previous
        return path, radii
