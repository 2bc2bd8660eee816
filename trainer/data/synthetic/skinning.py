"""Deforming a skin by its posed bones (linear blend skinning). Which pose, and what is drawn, is decided elsewhere."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def skin(vertices: Floats, weights: Floats, rest_origins: Floats, rotations: Floats, origins: Floats) -> Floats:
    """Vertices [V, 3] moved by bones; weights [V, B], rest and posed origins [B, 3], rotations [B, 3, 3]."""
    offsets = origins - np.einsum("bij,bj->bi", rotations, rest_origins)
    transforms = np.concatenate([rotations, offsets[:, :, None]], axis=2).reshape(len(rotations), 12)
    # einsum rather than a matrix product: its sums do not depend on the number of threads.
    blended = np.einsum("vb,bt->vt", weights, transforms).reshape(-1, 3, 4)
    moved: Floats = (np.einsum("vij,vj->vi", blended[:, :, :3], vertices) + blended[:, :, 3]).astype(np.float32)
    return moved
