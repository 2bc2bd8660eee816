"""The committed hand asset: reading it, and the derived numbers that every hand shares.

All lengths are metres, in the hand frame of a right hand: origin at the wrist, x to the thumb's side,
y along the hand to the middle finger, z out of the palm. Posing and rendering are elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.mesh import LoopSubdivision
from trainer.errors import RefusedError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

ASSET_PATH: Final = Path(__file__).parent / "assets" / "hand.npz"
FINGERS: Final = ("thumb", "index", "middle", "ring", "little")


class AssetError(RefusedError):
    """The hand asset is missing or is not what this version reads."""


@dataclass(frozen=True)
class BodyAsset:
    """A torso with head (no arms), origin between the shoulders; z up, -y to the front, x to its left."""

    mean: Floats  # [N, 3]; the last three are left shoulder, right shoulder, head
    directions: Floats  # [D, N, 3]
    triangles: Ints  # [F, 3]
    head_weight: Floats  # [V], 1 on the head


@dataclass(frozen=True)
class HandAsset:
    """A right hand with its arm. Rows of `mean` are V vertices, then B bone heads, then 5 finger ends."""

    bone_names: tuple[str, ...]
    bone_parents: tuple[int, ...]
    mean: Floats  # [V + B + 5, 3]
    directions: Floats  # [D, V + B + 5, 3], one standard deviation each
    coefficients: Floats  # [S, D], of the sampled bodies
    age: Floats  # [S], 0.36 (child) to 1 (old)
    gender: Floats  # [S]
    triangles: Ints  # [F, 3]
    coarse_triangles: Ints  # [F', 3] the skin before it was subdivided, over the same vertices
    weights: Floats  # [V, B], rows sum to one
    body: BodyAsset

    @property
    def vertex_count(self) -> int:
        """V, the number of skin vertices."""
        return len(self.weights)

    def bone(self, name: str) -> int:
        """Index of a bone by name."""
        return self.bone_names.index(name)


def load_asset(path: Path = ASSET_PATH, *, smooth: bool = True) -> HandAsset:
    """Read the asset; `smooth` subdivides the skin once.

    Raises AssetError, naming the file, when it is missing or damaged.
    """
    if not path.is_file():
        raise AssetError(f"{path}: hand asset missing; build it with trainer/data/synthetic/build_asset.py")
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise AssetError(f"{path}: not a readable hand asset ({error})") from error
    missing = {"bone_names", "mean", "directions", "skin_bones", "skin_weights", "body_mean"} - parts.keys()
    if missing:
        raise AssetError(f"{path}: hand asset lacks {', '.join(sorted(missing))}; build it again")
    names = tuple(str(name) for name in parts["bone_names"])
    skin_bones = parts["skin_bones"].astype(np.int64)
    count = len(skin_bones)
    weights = np.zeros((count, len(names)), dtype=np.float32)
    np.add.at(weights, (np.arange(count)[:, None], skin_bones), parts["skin_weights"].astype(np.float32))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = parts["mean"].astype(np.float32)
    directions = parts["directions"].astype(np.float32) * parts["direction_scale"][:, None, None]
    triangles = coarse = parts["triangles"].astype(np.int32)
    if smooth:
        step = LoopSubdivision(triangles, count)
        mean = np.concatenate([step.apply(mean[:count]), mean[count:]])
        directions = np.stack([np.concatenate([step.apply(d[:count]), d[count:]]) for d in directions])
        weights = step.apply(weights)
        triangles = step.triangles
    body = BodyAsset(
        mean=parts["body_mean"].astype(np.float32),
        directions=parts["body_directions"].astype(np.float32) * parts["body_direction_scale"][:, None, None],
        triangles=parts["body_triangles"].astype(np.int32),
        head_weight=parts["body_head_weight"].astype(np.float32),
    )
    return HandAsset(
        bone_names=names,
        bone_parents=tuple(int(p) for p in parts["bone_parents"]),
        mean=mean,
        directions=directions.astype(np.float32),
        coefficients=parts["coefficients"].astype(np.float32),
        age=parts["age"].astype(np.float32),
        gender=parts["gender"].astype(np.float32),
        triangles=triangles,
        coarse_triangles=coarse,
        weights=weights,
        body=body,
    )
