"""The belief-map codec: keypoints to target maps for training, belief maps to keypoints for serving.

Both halves live here because they are one contract. A belief map has one channel per keypoint and a last one for the
background. A keypoint at ``(x, y)`` in heatmap coordinates is written as a Gaussian evaluated at every cell's centre
``(i + 0.5, j + 0.5)``, never rounded to a cell, so that decoding can recover it to a small fraction of a cell.

Decoding follows DARK (Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation", 2020):
the map is smoothed, and the logarithm of the result is expanded to second order about its highest cell. Where the map
is a Gaussian this is exact.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT

_Scalar = TypeVar("_Scalar", bound=np.generic)

STRIDE: Final = 8
"""Input pixels per belief-map cell, for both networks."""

TARGET_SIGMA: Final = 1.25
"""Standard deviation of a target Gaussian, in heatmap cells."""

_SMOOTHING_SIGMA: Final = 0.8  # cells: enough to calm a noisy peak; a Gaussian stays a Gaussian
_SMOOTHING_REACH: Final = 4  # cells from which on the border no longer shows in the smoothed values about a peak
_FLOOR: Final = np.float32(1e-10)  # what stands for 0 in a map: products of less are denormal numbers, which take long
_TAIL: Final = 1e-7  # of the smoothing kernel, from which on it is cut off: far below what float32 can tell from 0
_CEILING: Final = np.float32(1e6)  # far above any belief, and its sums stay finite
_SPREAD_CUT: Final = 0.02  # share of the peak under which a cell says nothing about the spread

_DERIVATIVES: Final = np.array(
    [
        # of what is sampled at a cell and its neighbours, row by row:
        # d/dx, d/dy; half of d2/dx2 + d2/dy2, 0; half of d2/dx2 - d2/dy2, d2/dxdy
        (0, 0, 0, 0, 0, 0.25),
        (0, -0.5, 0.5, 0, -0.5, 0),
        (0, 0, 0, 0, 0, -0.25),
        (-0.5, 0, 0.5, 0, 0.5, 0),
        (0, 0, -2, 0, 0, 0),
        (0.5, 0, 0.5, 0, 0.5, 0),
        (0, 0, 0, 0, 0, -0.25),
        (0, 0.5, 0.5, 0, -0.5, 0),
        (0, 0, 0, 0, 0, 0.25),
    ],
    np.float32,
)
"""[9, 6], to be multiplied from the right. With x + iy for (x, y) that makes a gradient g, and the a and b of a second
derivative that maps a step d to ad + b conj(d)."""


@dataclass(frozen=True, slots=True)
class DecodedKeypoints:
    """Keypoints read from a batch of belief maps.

    Attributes:
        in_heatmap: float32 [N, 21, 2], (x, y) in heatmap coordinates.
        scores: float32 [N, 21], each keypoint's peak belief, clipped to [0, 1].
        sigmas: float32 [N, 21], standard deviation of the belief about the keypoint along one axis, in cells. A
            perfect target gives almost `TARGET_SIGMA`; a second peak or a smear makes it larger.
    """

    in_heatmap: NDArray[np.float32]
    scores: NDArray[np.float32]
    sigmas: NDArray[np.float32]

    @property
    def in_input(self) -> NDArray[np.float64]:
        """float64 [N, 21, 2], (x, y) in continuous pixels of the model's input."""
        return self.in_heatmap.astype(np.float64) * STRIDE


def encode(
    keypoints_in_heatmap: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    size: tuple[int, int],
    *,
    sigma: float = TARGET_SIGMA,
) -> NDArray[np.float32]:
    """Target belief maps for training.

    Args:
        keypoints_in_heatmap: [..., 21, 2], (x, y) in heatmap coordinates; entries that are not labelled are ignored.
        labelled: bool [..., 21], whether the keypoint's position is known. Others get an empty map.
        size: (width, height) of the maps in cells.
        sigma: standard deviation of the Gaussians, in cells.

    Returns:
        float32 [..., height, width, 22] in [0, 1]; the last channel is the background, 1 - max over the keypoints.
    """
    if keypoints_in_heatmap.shape[-2:] != (KEYPOINT_COUNT, 2):
        raise ValueError(f"keypoints must be [..., {KEYPOINT_COUNT}, 2], got {keypoints_in_heatmap.shape}")
    width, height = size
    points = np.where(labelled[..., None], keypoints_in_heatmap, np.inf).astype(np.float32)
    columns = _gaussian(np.arange(width, dtype=np.float32) + 0.5, points[..., 0], sigma)
    rows = _gaussian(np.arange(height, dtype=np.float32) + 0.5, points[..., 1], sigma)
    maps = np.empty((*points.shape[:-2], height, width, CHANNEL_COUNT), np.float32)
    # A Gaussian separates: one outer product a keypoint instead of an exponential a cell.
    np.einsum("...kj,...ki->...jik", rows, columns, out=maps[..., :KEYPOINT_COUNT])
    maps[..., KEYPOINT_COUNT] = 1.0 - maps[..., :KEYPOINT_COUNT].max(axis=-1)
    return maps


def decode(belief_maps: NDArray[np.floating]) -> DecodedKeypoints:
    """Keypoints, scores and spreads from belief maps, for a whole batch at once.

    Args:
        belief_maps: [N, height, width, 22], at least 3 x 3 cells; values near [0, 1] (anything finite is accepted,
            and a value that is not finite counts as 0). The background channel is not read.
    """
    if belief_maps.ndim != 4 or belief_maps.shape[-1] != CHANNEL_COUNT or min(belief_maps.shape[1:3]) < 3:
        raise ValueError(f"belief maps must be [N, height >= 3, width >= 3, {CHANNEL_COUNT}], got {belief_maps.shape}")
    batch, height, width, _ = belief_maps.shape
    # Each keypoint's map as it is, and smoothed.
    both = np.empty((batch, KEYPOINT_COUNT, 2, height, width), np.float32)
    maps, smooth = both[:, :, 0], both[:, :, 1]
    tops = _copy_beliefs(belief_maps, maps)
    np.matmul(np.matmul(_smoothing_matrix(height), maps), _transposed_smoothing_matrix(width), out=smooth)

    peaks = smooth.reshape(batch, KEYPOINT_COUNT, -1).argmax(axis=-1)
    peaks *= tops > _FLOOR  # the first cell of an empty map
    flat, first_cells = both.reshape(-1), _first_cells(batch, height, width)
    scores = np.minimum(flat.take(first_cells + peaks), np.float32(1)) - _FLOOR  # exactly 0 for nothing
    cells = _cells(height, width)
    in_heatmap = cells.centres.take(peaks, axis=0) + _peak_offsets(flat, first_cells, peaks, cells)
    return DecodedKeypoints(in_heatmap, scores, _spreads(maps, tops, in_heatmap))


def _copy_beliefs(belief_maps: NDArray[np.floating], into: NDArray[np.float32]) -> NDArray[np.float32]:
    """The keypoints' maps as [N, 21, height, width], from `_FLOOR` to `_CEILING`. Returns their maxima [N, 21]."""
    beliefs = belief_maps[..., :KEYPOINT_COUNT].transpose(0, 3, 1, 2)
    if beliefs.dtype != into.dtype:
        with np.errstate(over="ignore"):  # of a float64, beyond all beliefs
            beliefs = beliefs.astype(np.float32)
    tops: NDArray[np.float32] = np.maximum.reduce(np.maximum(beliefs, _FLOOR, out=into), axis=(2, 3))
    if not np.logical_and.reduce(tops <= _CEILING, axis=None):  # neither is one that is no number
        np.nan_to_num(into, copy=False, nan=float(_FLOOR), posinf=float(_FLOOR))
        np.minimum(into, _CEILING, out=into)
        tops = np.maximum.reduce(into, axis=(2, 3))
    return tops


@dataclass(frozen=True, slots=True)
class _Cells:
    """What is known beforehand of each cell, should it be its map's highest. The map lies before its smoothed copy.

    Attributes:
        centres: float32 [cells, 2], (x, y) of its centre.
        neighbourhoods: [cells, 9], where to look for its peak: flat indices of the cell nearest to it that has
            neighbours on all sides, and of those neighbours, row by row. They are in the smoothed copy, but for cells
            near the border: a Gaussian that the border cuts off is none any more once it is smoothed.
        shifts: complex64 [cells], how far that nearest cell's centre lies from its own, x + iy.
    """

    centres: NDArray[np.float32]
    neighbourhoods: NDArray[np.intp]
    shifts: NDArray[np.complex64]


@lru_cache(maxsize=32)
def _cells(height: int, width: int) -> _Cells:
    rows, columns = (each.ravel() for each in np.mgrid[:height, :width])
    inner_rows, inner_columns = np.clip(rows, 1, height - 2), np.clip(columns, 1, width - 2)
    from_border = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    copy = np.where(from_border >= _SMOOTHING_REACH, height * width, 0)
    step = np.arange(-1, 2)
    around = (step[:, None] * width + step).ravel()
    return _Cells(
        _shared(np.stack((columns + 0.5, rows + 0.5), axis=-1).astype(np.float32)),
        _shared((copy + inner_rows * width + inner_columns)[:, None] + around),
        _shared(((inner_columns - columns) + 1j * (inner_rows - rows)).astype(np.complex64)),
    )


@lru_cache(maxsize=64)
def _first_cells(batch: int, height: int, width: int) -> NDArray[np.intp]:
    """The flat index of each map's first cell, where every map is followed by its smoothed copy: [N, 21]."""
    return _shared(np.arange(batch * KEYPOINT_COUNT).reshape(batch, KEYPOINT_COUNT) * (2 * height * width))


@lru_cache(maxsize=32)
def _ones(size: int) -> NDArray[np.float32]:
    return _shared(np.ones(size, np.float32))


@lru_cache(maxsize=32)
def _centres(size: int) -> NDArray[np.float32]:
    """Where the centres of a line of cells lie."""
    return _shared(np.arange(0.5, size, dtype=np.float32))


def _shared(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The same array, which several callers have and nobody may write to."""
    array.setflags(write=False)
    return array


def _gaussian(cells: NDArray[np.float32], centres: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """exp(-(cell - centre)^2 / 2 sigma^2): [cells], [..., K] -> [..., K, cells]."""
    exponent: NDArray[np.float32] = np.square(cells - centres[..., None]) * np.float32(-0.5 / sigma**2)
    return np.exp(exponent)


@lru_cache(maxsize=32)
def _smoothing_matrix(size: int) -> NDArray[np.float32]:
    """The matrix [size, size] that convolves a line of cells with a Gaussian.

    Cells beyond the border count as unknown rather than as empty: the kernel is renormalised there, so that a peak at
    the border is not pulled inwards. Of products with its tails, which tell nothing beside the peak, there would be
    denormal numbers, and smoothing would take some forty times as long.
    """
    cells = np.arange(size)
    kernel = np.exp(-0.5 * np.square((cells[:, None] - cells) / _SMOOTHING_SIGMA))
    kernel[kernel < _TAIL] = 0.0
    return _shared((kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32))


@lru_cache(maxsize=32)
def _transposed_smoothing_matrix(size: int) -> NDArray[np.float32]:
    """The same, laid out for a product from the right: a transposed view would be three times as slow there."""
    return _shared(np.ascontiguousarray(_smoothing_matrix(size).T))


def _peak_offsets(
    flat: NDArray[np.float32], first_cells: NDArray[np.intp], peaks: NDArray[np.intp], cells: _Cells
) -> NDArray[np.float32]:
    """How far the maximum of each map lies from the centre of its highest cell: float32 [N, 21, 2], in cells.

    The expansion is taken about the nearest cell that has neighbours on all sides, so a peak in a border cell is
    described by the cells next to it. Offsets end at one cell, and are 0 where there is no proper peak.

    Args:
        flat: the maps and their smoothed copies.
        first_cells: [N, 21], where in them each map begins.
        peaks: [N, 21], its highest cell once it is smoothed.
        cells: of a map.
    """
    values = flat.take(first_cells[..., None] + cells.neighbourhoods.take(peaks, axis=0))  # [N, 21, 9]
    derivatives = (np.log(np.maximum(values, _FLOOR)) @ _DERIVATIVES).view(np.complex64)  # [N, 21, 3]
    # Newton's step, the d of g + ad + b conj(d) = 0.
    gradient, a, b = derivatives[..., 0], derivatives[..., 1].real, derivatives[..., 2]
    determinant = a * a - (b * b.conj()).real
    is_peak = (determinant > 1e-9) & (a < 0)
    offsets = np.zeros(peaks.shape, np.complex64)
    np.divide(b * gradient.conj() - a * gradient, determinant, out=offsets, where=is_peak)
    np.add(offsets, cells.shifts.take(peaks), out=offsets, where=is_peak)
    in_cells = offsets.view(np.float32).reshape(*peaks.shape, 2)
    return np.minimum(np.maximum(in_cells, -1.0), 1.0)


def _spreads(
    maps: NDArray[np.float32], tops: NDArray[np.float32], in_heatmap: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Root mean square distance of the belief from its keypoint along one axis: float32 [N, 21], in cells."""
    height, width = maps.shape[2:]
    mass = maps * (maps > np.maximum(_SPREAD_CUT * tops, _FLOOR)[..., None, None])
    # Sums as products with ones: several times as quick on lines this short.
    by_column, by_row = _ones(height) @ mass, mass @ _ones(width)
    from_x = np.square(_centres(width) - in_heatmap[..., :1])
    from_y = np.square(_centres(height) - in_heatmap[..., 1:])
    total = np.maximum(by_row @ _ones(height), _FLOOR)
    variance = (np.vecdot(by_column, from_x) + np.vecdot(by_row, from_y)) / (2 * total)
    spreads: NDArray[np.float32] = np.sqrt(variance)
    return spreads
