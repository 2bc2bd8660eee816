"""Triangle meshes: smooth subdivision and vertex normals. Knows nothing of hands."""

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_MINIMUM_LENGTH: Final = 1e-12


class LoopSubdivision:
    """One step of Loop's subdivision as a fixed linear map, so that it serves positions and directions alike.

    Boundary edges keep their curve (midpoints and the 1-6-1 rule). Faces come out as [4 F, 3].
    """

    def __init__(self, triangles: Ints, vertex_count: int) -> None:
        edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
        opposite = np.concatenate([triangles[:, 2], triangles[:, 0], triangles[:, 1]])
        ordered = np.sort(edges, axis=1)
        unique, inverse, counts = np.unique(ordered, axis=0, return_inverse=True, return_counts=True)
        inverse = inverse.reshape(-1)
        number = len(unique)
        rows: list[npt.NDArray[np.int64]] = []
        columns: list[npt.NDArray[np.int64]] = []
        values: list[npt.NDArray[np.float64]] = []

        def add(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], value: npt.NDArray[np.float64]) -> None:
            rows.append(row)
            columns.append(column)
            values.append(value)

        boundary = counts == 1
        at_boundary = np.zeros(vertex_count, dtype=bool)
        at_boundary[unique[boundary].reshape(-1)] = True
        # Even vertices.
        valence = np.bincount(unique.reshape(-1), minlength=vertex_count)
        beta = np.where(valence == 3, 3.0 / 16.0, 3.0 / (8.0 * np.maximum(valence, 1)))
        own = np.where(at_boundary, 0.75, 1.0 - beta * valence)
        identity = np.arange(vertex_count)
        add(identity, identity, own)
        for a, b in ((0, 1), (1, 0)):
            start, end = unique[:, a], unique[:, b]
            inner = ~at_boundary[start]
            add(start[inner], end[inner], beta[start[inner]])
            rim = boundary
            add(start[rim], end[rim], np.full(int(rim.sum()), 0.125))
        # Odd vertices, one an edge.
        odd = vertex_count + np.arange(number)
        weight = np.where(boundary, 0.5, 0.375)
        for a in (0, 1):
            add(odd, unique[:, a], weight)
        inside = ~boundary[inverse]
        add(vertex_count + inverse[inside], opposite[inside], np.full(int(inside.sum()), 0.125))
        self._rows = np.concatenate(rows)
        self._columns = np.concatenate(columns)
        self._values = np.concatenate(values)
        self._count = vertex_count + number
        ab, bc, ca = (vertex_count + part for part in np.split(inverse, 3))
        a, b, c = triangles.T
        self.triangles: Ints = np.concatenate(
            [
                np.stack([a, ab, ca], axis=1),
                np.stack([b, bc, ab], axis=1),
                np.stack([c, ca, bc], axis=1),
                np.stack([ab, bc, ca], axis=1),
            ]
        ).astype(np.int32)

    def apply(self, values: npt.NDArray[np.float32]) -> Floats:
        """Values per vertex [V, C] -> values per vertex of the finer mesh [V', C]."""
        out = np.empty((self._count, values.shape[1]), dtype=np.float32)
        for channel in range(values.shape[1]):
            out[:, channel] = np.bincount(
                self._rows, weights=values[self._columns, channel] * self._values, minlength=self._count
            )
        return out


def vertex_normals(vertices: Floats, triangles: Ints) -> Floats:
    """Area-weighted unit normals [V, 3]; counter-clockwise triangles face outwards."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    flat = triangles.reshape(-1)
    normals = np.empty_like(vertices)
    for channel in range(3):
        weights = np.repeat(face[:, channel], 3)
        normals[:, channel] = np.bincount(flat, weights=weights, minlength=len(vertices))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    unit: Floats = (normals / np.maximum(length, _MINIMUM_LENGTH)).astype(np.float32)
    return unit
