"""Simple solids for everything that is not a hand: sleeves, things held or in front, tables. Geometry only."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solid:
    """A triangle mesh: vertices [V, 3], texture space positions [V, 3] and triangles [F, 3]; metres."""

    vertices: Floats
    local: Floats
    triangles: Ints

    def moved(self, rotation: npt.NDArray[np.floating], offset: npt.NDArray[np.floating]) -> "Solid":
        """The solid turned and moved; its texture goes with it."""
        placed = np.einsum("vi,ji->vj", self.vertices, np.asarray(rotation)) + np.asarray(offset)
        return Solid(placed.astype(np.float32), self.local, self.triangles)


def _lattice(rows: int, columns: int, *, closed: bool) -> Ints:
    """Triangles of a grid of rows x columns points, the columns wrapping round when closed."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    k = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j
    quads = np.stack([a, b, c, a, c, d], axis=-1)
    return quads.reshape(-1, 3).astype(np.int32)


def revolved(profile: list[tuple[float, float]], sides: int = 20) -> Solid:
    """A solid of revolution about y; the profile lists (radius, y) from the low end up."""
    angle = np.linspace(0.0, 2.0 * np.pi, sides, endpoint=False)
    rows = [np.stack([r * np.cos(angle), np.full(sides, y), -r * np.sin(angle)], axis=1) for r, y in profile]
    points = np.concatenate(rows).astype(np.float32)
    return Solid(points, points.copy(), _lattice(len(profile), sides, closed=True))


def cylinder(radius: float, length: float, taper: float = 1.0) -> Solid:
    """A cylinder about y, centred, its upper end scaled by `taper`; edges slightly rounded."""
    half, edge = length / 2.0, 0.06 * radius
    top = radius * taper
    return revolved(
        [
            (1e-4, -half),
            (radius - edge, -half),
            (radius, -half + edge),
            (top, half - edge),
            (top - edge, half),
            (1e-4, half),
        ],
        24,
    )


def ellipsoid(radii: tuple[float, float, float]) -> Solid:
    """An ellipsoid, centred."""
    polar = np.linspace(1e-3, np.pi - 1e-3, 14)
    ball = revolved([(float(np.sin(t)), float(-np.cos(t))) for t in polar], 22)
    points = (ball.vertices * np.array(radii, np.float32)).astype(np.float32)
    return Solid(points, points.copy(), ball.triangles)


def box(size: tuple[float, float, float]) -> Solid:
    """A box with flat sides (its corners are not shared), centred."""
    faces: list[Doubles] = []
    triangles: list[int] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, u] = [-1, 1, 1, -1]
            corners[:, v] = [-1, -1, 1, 1]
            order = [0, 1, 2, 0, 2, 3] if sign > 0 else [0, 2, 1, 0, 3, 2]
            triangles.extend(len(faces) * 4 + k for k in order)
            faces.append(corners)
    points = (np.concatenate(faces) * np.array(size) / 2.0).astype(np.float32)
    return Solid(points, points.copy(), np.array(triangles, np.int32).reshape(-1, 3))


def plane(side: float) -> Solid:
    """A square in the x, y plane facing -z (towards the camera when placed unturned)."""
    half = side / 2.0
    points = np.array([[-half, -half, 0], [-half, half, 0], [half, half, 0], [half, -half, 0]], np.float32)
    return Solid(points, points.copy(), np.array([[0, 1, 2], [0, 2, 3]], np.int32))


def tube(path: Doubles, radii: Doubles, across: Doubles, sides: int = 26) -> Solid:
    """A tube round a path [P, 3] with radii [P, sides]; `across` is a direction that the path never runs along."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    first = across - tangents * (tangents @ across)[:, None]
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangents, first)
    angle = np.linspace(0.0, 2.0 * np.pi, sides, endpoint=False)
    ring = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    points = path[:, None] + radii[:, :, None] * ring
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    mean = radii.mean()
    local = np.stack(
        np.broadcast_arrays(mean * np.cos(angle)[None], along[:, None], mean * np.sin(angle)[None]), axis=-1
    )
    return Solid(
        points.reshape(-1, 3).astype(np.float32),
        local.reshape(-1, 3).astype(np.float32),
        _lattice(len(path), sides, closed=True)[:, ::-1].copy(),
    )
