"""Which hand: drawing a body shape from the asset, and moving its rig's joints to the anatomical joint centres.

Posing is `pose`; materials are `appearance`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.asset import FINGERS, HandAsset

Floats = npt.NDArray[np.float32]

# The rig puts the knuckle joints close to the webs between the fingers. By published hand proportions the joint
# from palm to middle finger lies at about 0.51 of the way from the wrist to the fingertip, so the joints move back
# along the metacarpal by this share of the proximal phalanx.
_KNUCKLE_BACK: Final = 0.26
# The rig's first thumb joint lies well inside the first metacarpal; the true one is near the wrist.
_THUMB_BASE_TO_WRIST: Final = 0.36
_THUMB_BASE_OUT: Final = 0.004  # metres to the thumb's side
# A fingertip keypoint lies within the flesh, a little before the end of the finger.
_TIP_SHARE: Final = 0.88


@dataclass(frozen=True)
class HandShape:
    """One right hand at rest, in the hand frame, metres."""

    vertices: Floats  # [V, 3]
    joints: Floats  # [B, 3] bone heads, the centres of rotation
    tips: Floats  # [5, 3] fingertip keypoints
    age: float  # 0 child to 1 old
    gender: float  # 0 or 1 at the ends


def shape_from_coefficients(asset: HandAsset, coefficients: Floats, age: float, gender: float) -> HandShape:
    """The hand of given coefficients [D] (standard deviations along the asset's directions)."""
    points = asset.mean + np.einsum("d,dnc->nc", coefficients, asset.directions)
    count = asset.vertex_count
    vertices, joints, ends = points[:count], points[count:-5].copy(), points[-5:]
    wrist = joints[asset.bone("hand")]
    for finger in FINGERS[1:]:
        root, base, middle = (joints[asset.bone(f"{finger}_{i}")] for i in range(3))
        along = (base - root) / np.linalg.norm(base - root)
        joints[asset.bone(f"{finger}_1")] = base - _KNUCKLE_BACK * np.linalg.norm(middle - base) * along
    thumb = asset.bone("thumb_1")
    joints[thumb] += _THUMB_BASE_TO_WRIST * (wrist - joints[thumb])
    joints[thumb, 0] += _THUMB_BASE_OUT
    last = np.stack([joints[asset.bone(f"{finger}_3")] for finger in FINGERS])
    tips = last + _TIP_SHARE * (ends - last)
    return HandShape(
        vertices=vertices.astype(np.float32),
        joints=joints.astype(np.float32),
        tips=tips.astype(np.float32),
        age=age,
        gender=gender,
    )


def mean_shape(asset: HandAsset) -> HandShape:
    """The average hand."""
    return shape_from_coefficients(asset, np.zeros(len(asset.directions), np.float32), 0.7, 0.5)


def draw_shape(asset: HandAsset, rng: np.random.Generator) -> HandShape:
    """A random hand: between two of the sampled bodies, mostly like the first, with a little noise."""
    first, second = rng.integers(len(asset.coefficients), size=2)
    share = float(rng.uniform(0.0, 0.35))
    coefficients = (1.0 - share) * asset.coefficients[first] + share * asset.coefficients[second]
    coefficients = coefficients + rng.normal(0.0, 0.12, len(coefficients))
    age = float((1.0 - share) * asset.age[first] + share * asset.age[second])
    return shape_from_coefficients(
        asset, np.clip(coefficients, -2.8, 2.8).astype(np.float32), age, float(asset.gender[first])
    )
