import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box, crop_affine

coordinates = st.floats(-1000, 1000, allow_nan=False)
sides = st.floats(1, 1000, allow_nan=False)
angles = st.floats(-math.pi, math.pi, allow_nan=False)
boxes = st.builds(Box, coordinates, coordinates, sides, sides)
sizes = st.tuples(st.integers(8, 512), st.integers(8, 512))


def corners(width: float, height: float) -> NDArray[np.float64]:
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)


def corners_of(box: Box) -> NDArray[np.float64]:
    return corners(box.width, box.height) + np.array((box.x, box.y), np.float64)


@given(boxes, sizes, angles, st.booleans())
def test_a_crop_maps_points_there_and_back(box: Box, size: tuple[int, int], radians: float, mirrored: bool) -> None:
    affine = crop_affine(box, size, radians=radians, mirrored=mirrored)
    points = corners_of(box)
    np.testing.assert_allclose(affine.inverse().apply(affine.apply(points)), points, atol=1e-6)


@given(boxes, sizes)
def test_an_upright_crop_contains_the_box_and_touches_two_sides(box: Box, size: tuple[int, int]) -> None:
    inside = crop_affine(box, size).apply(corners_of(box))
    assert inside.min() >= -1e-6
    assert (inside.max(axis=0) <= np.array(size) + 1e-6).all()
    extent = np.ptp(inside, axis=0)
    assert np.isclose(extent, size).any()


@given(boxes, sizes, angles, st.booleans())
def test_a_crop_keeps_its_centre_and_its_proportions(
    box: Box, size: tuple[int, int], radians: float, mirrored: bool
) -> None:
    affine = crop_affine(box, size, radians=radians, mirrored=mirrored)
    np.testing.assert_allclose(affine.apply(np.array(box.centre)), (size[0] / 2, size[1] / 2), atol=1e-6)
    steps = affine.apply(np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]))
    lengths = np.linalg.norm(steps[1:] - steps[0], axis=1)
    np.testing.assert_allclose(lengths, affine.scale, rtol=1e-6)
    assert (affine.determinant < 0) == mirrored


def test_positive_angles_turn_clockwise_on_the_screen() -> None:
    right = np.array([1.0, 0.0])
    np.testing.assert_allclose(Affine.rotation(math.pi / 2).apply(right), (0.0, 1.0), atol=1e-12)


def test_a_mirror_maps_the_left_edge_to_the_right_edge() -> None:
    np.testing.assert_allclose(Affine.mirror(64).apply(np.array([(0.0, 5.0), (64.0, 5.0)])), [(64, 5), (0, 5)])


@given(boxes, boxes, sizes)
def test_composition_applies_the_first_map_first(first: Box, second: Box, size: tuple[int, int]) -> None:
    one, two = crop_affine(first, size, radians=0.3), crop_affine(second, size, mirrored=True)
    points = corners(3, 7)
    np.testing.assert_allclose(one.then(two).apply(points), two.apply(one.apply(points)), rtol=1e-9, atol=1e-6)


def test_a_map_that_flattens_the_plane_has_no_inverse() -> None:
    with pytest.raises(ValueError, match="no inverse"):
        Affine.scaling(0.0, 1.0).inverse()


@pytest.mark.parametrize(
    "box", [Box(0, 0, 0, 5), Box(0, 0, 5, -1), Box(math.nan, 0, 5, 5), Box(0, 0, math.inf, 5)], ids=str
)
def test_a_box_without_area_cannot_be_cropped(box: Box) -> None:
    with pytest.raises(ValueError, match="positive sides"):
        crop_affine(box, (64, 64))


def test_a_box_is_tight_around_its_points() -> None:
    assert Box.around(np.array([(3.0, 8.0), (1.0, 9.0), (2.0, 4.0)])) == Box(1.0, 4.0, 2.0, 5.0)
    with pytest.raises(ValueError, match="at least one point"):
        Box.around(np.empty((0, 2)))


def test_squaring_and_scaling_keep_the_centre() -> None:
    assert Box(10, 20, 40, 20).squared() == Box(10, 10, 40, 40)
    assert Box(10, 20, 40, 20).scaled(1.5) == Box(0, 15, 60, 30)


def test_clipping_leaves_what_is_inside_the_image() -> None:
    assert Box(-5, 2, 10, 100).clipped(64, 48) == Box(0, 2, 5, 46)
    assert Box(-50, 2, 10, 10).clipped(64, 48) == Box(0, 2, 0, 10)
