"""Arithmetic on whatever comes: boxes, maps, pictures and keypoints of any size, near and far from sense.

Values are drawn far beyond what the layers above let through; where a function promises to refuse, only that.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.pose.geometry import Affine, Box, crop_affine
from service.pose.heatmaps import decode, encode
from service.pose.images import DecodedImage
from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT
from service.pose.preprocessing import crop, hand_box_to_crop
from service.pose.tracking import LARGEST_PARAMETER, HandSquare, OneEuro, OneEuroFilter, next_square, square_to_follow
from tests.fuzz.targets import Property

_ANY: Final = st.floats(width=64, allow_nan=True, allow_infinity=True)
_NEAR: Final = st.floats(-1e5, 1e5)
_SIDES: Final = st.integers(1, 70)
_INPUTS: Final = st.sampled_from([(24, 24), (64, 64), (64, 32)])


@contextmanager
def opened() -> Iterator[Sequence[Property]]:
    """All properties."""
    yield PROPERTIES


def _a_crop_is_made_of_any_box(drawn: tuple[tuple[float, ...], tuple[int, int]]) -> None:
    box, size = Box(*drawn[0]), drawn[1]
    sensible = np.isfinite(drawn[0]).all() and min(box.width, box.height) > 0
    try:
        crop_affine(box, size)
    except ValueError:
        assert not sensible
        return
    assert sensible


def _points_come_back(drawn: tuple[float, float, float, float, tuple[int, int], float, float]) -> None:
    x, y, width, height, size, u, v = drawn
    image_to_input = crop_affine(Box(x, y, width, height), size)
    point = np.array([[x + u * width, y + v * height]])
    back = image_to_input.inverse().apply(image_to_input.apply(point))
    assert np.abs(back - point).max() <= 1e-6 * max(1.0, abs(x), abs(y), width, height)


def _a_box_in_the_picture_can_be_shown(drawn: tuple[int, int, tuple[float, ...], tuple[int, int], float, int]) -> None:
    width, height, (x, y, w, h), size, factor, seed = drawn
    held = (max(1, math.ceil(width / factor)), max(1, math.ceil(height / factor)))
    noise = np.random.default_rng(seed).integers(0, 256, (held[1], held[0], 3), np.uint8)
    picture = DecodedImage(Image.fromarray(noise), width, height, Affine.scaling(1 / factor))
    roi = Box(x * (width - 1), y * (height - 1), 1 + w * (width - 1) * (1 - x), 1 + h * (height - 1) * (1 - y))
    for region in (Box(0.0, 0.0, float(width), float(height)), roi, hand_box_to_crop(roi)):
        pixels = crop(picture, region, size).pixels
        assert pixels.shape == (size[1], size[0], 3)
        assert pixels.dtype == np.uint8


def _a_clipped_box_is_inside(drawn: tuple[tuple[float, ...], float, float]) -> None:
    box = Box(*drawn[0]).clipped(*drawn[1:])
    assert box.width >= 0
    assert box.height >= 0
    assert 0 <= box.x <= drawn[1]
    assert 0 <= box.y <= drawn[2]


def _any_maps_decode_to_points_in_them(maps: "np.ndarray[Any, np.dtype[np.floating]]") -> None:
    with np.errstate(all="raise", under="ignore"):
        found = decode(maps)
    height, width = maps.shape[1:3]
    for values in (found.in_heatmap, found.scores, found.sigmas):
        assert np.isfinite(values).all()
    assert (np.abs(found.in_heatmap - np.array([width, height]) / 2) <= np.array([width, height]) / 2 + 1.0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert (found.sigmas >= 0).all()


def _encoding_is_undone_by_decoding(drawn: tuple[int, int, list[tuple[float, float]]]) -> None:
    width, height, shares = drawn
    # Away from the border, as its peak's neighbours tell where it lies.
    points = np.array([(2 + x * (width - 4), 2 + y * (height - 4)) for x, y in shares], np.float32)
    maps = encode(points[None], np.ones((1, KEYPOINT_COUNT), np.bool_), (width, height))
    assert np.abs(decode(maps).in_heatmap[0] - points).max() < 0.1


def _squares_to_follow_are_finite(drawn: tuple[Any, Any, int, int, Any]) -> None:
    points, scores, width, height, (x, y, w, h) = drawn
    seen = square_to_follow(points, scores, (width, height))
    if seen is None:
        return
    last = HandSquare((x * width, y * height), max(1.0, w * width, h * height), 0.0)
    for square in (seen, next_square(last, last, seen), next_square(seen, last, seen)):
        assert np.isfinite((*square.centre, square.side, square.radians)).all()
        assert square.side >= 1


def _smoothing_stays_finite(drawn: tuple[tuple[float, float, float], list[tuple[float, float]], float]) -> None:
    parameters, frames, size = drawn
    try:
        smoother = OneEuroFilter(OneEuro(*parameters))
    except ValueError:
        finite = np.isfinite(parameters).all()
        assert not finite or parameters[1] < 0 or min(parameters[::2]) <= 0 or max(parameters) > LARGEST_PARAMETER
        return
    last = -math.inf
    for time_s, value in frames:
        points = np.full((KEYPOINT_COUNT, 2), value)
        if not time_s > last:
            continue
        smoothed = smoother.smooth(points, time_s, size)
        assert np.isfinite(smoothed).all()
        last = time_s


_UNIT: Final = st.floats(0, 1)
_MAPS: Final = st.tuples(st.integers(1, 3), st.integers(3, 9), st.integers(3, 9)).flatmap(
    lambda shape: arrays.arrays(
        np.float32,
        (*shape, CHANNEL_COUNT),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
        fill=st.sampled_from([0.0, 1.0, math.nan]),
    )
)
_POINTS: Final = arrays.arrays(np.float64, (KEYPOINT_COUNT, 2), elements=st.floats(-1e4, 1e4))
_SCORES: Final = arrays.arrays(np.float32, (KEYPOINT_COUNT,), elements=st.floats(0, 1, width=32))

PROPERTIES: Final[Sequence[Property]] = (
    Property(
        "a crop is made of any box",
        st.tuples(st.tuples(_ANY, _ANY, _ANY, _ANY), _INPUTS),
        _a_crop_is_made_of_any_box,
    ),
    Property(
        "points come back",
        st.tuples(_NEAR, _NEAR, st.floats(1, 1e5), st.floats(1, 1e5), _INPUTS, _UNIT, _UNIT),
        _points_come_back,
    ),
    Property(
        "a box in the picture can be shown",
        st.tuples(
            _SIDES,
            _SIDES,
            st.tuples(_UNIT, _UNIT, _UNIT, _UNIT),
            _INPUTS,
            st.sampled_from([1.0, 2.0, 8.0]),
            st.integers(0, 9),
        ),
        _a_box_in_the_picture_can_be_shown,
    ),
    Property(
        "a clipped box is inside",
        st.tuples(st.tuples(_NEAR, _NEAR, st.floats(0, 1e5), st.floats(0, 1e5)), st.floats(1, 1e5), st.floats(1, 1e5)),
        _a_clipped_box_is_inside,
    ),
    Property("any maps decode to points in them", _MAPS, _any_maps_decode_to_points_in_them),
    Property(
        "encoding is undone by decoding",
        st.tuples(
            st.integers(8, 40),
            st.integers(8, 40),
            st.lists(st.tuples(_UNIT, _UNIT), min_size=KEYPOINT_COUNT, max_size=KEYPOINT_COUNT),
        ),
        _encoding_is_undone_by_decoding,
    ),
    Property(
        "boxes to follow are inside",
        st.tuples(_POINTS, _SCORES, st.integers(1, 8000), st.integers(1, 8000), st.tuples(_UNIT, _UNIT, _UNIT, _UNIT)),
        _squares_to_follow_are_finite,
    ),
    Property(
        "smoothing stays finite",
        st.tuples(
            st.tuples(*[st.one_of(_ANY, st.floats(0, LARGEST_PARAMETER))] * 3),
            st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e5, 1e5)), max_size=6),
            st.floats(1, 1e5),
        ),
        _smoothing_stays_finite,
    ),
)
