import numpy as np
import pytest

from trainer.data.synthetic.mesh import LoopSubdivision, vertex_normals

OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32)
FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]], np.int32)


def test_subdivision_makes_four_triangles_of_one_and_keeps_them_facing_outwards() -> None:
    step = LoopSubdivision(FACES, len(OCTAHEDRON))
    fine = step.apply(OCTAHEDRON)

    assert step.triangles.shape == (32, 3)
    assert fine.shape == (6 + 12, 3)
    normals = vertex_normals(fine, step.triangles)
    assert ((normals * fine).sum(axis=1) > 0).all()


def test_subdivision_keeps_what_is_the_same_everywhere() -> None:
    step = LoopSubdivision(FACES, len(OCTAHEDRON))

    assert step.apply(np.full((6, 2), 3.5, np.float32)) == pytest.approx(3.5)


def test_subdivision_keeps_a_straight_border_straight() -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    step = LoopSubdivision(np.array([[0, 1, 2], [0, 2, 3]], np.int32), 4)
    fine = step.apply(square)

    assert fine[:, 2] == pytest.approx(0.0)
    assert [0.5, 0.0, 0.0] in fine.tolist()
    assert fine.min() >= 0.0
    assert fine.max() <= 1.0
