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
_FLOOR: Final = 1e-10  # smallest value whose logarithm is taken
_CEILING: Final = np.float32(1e6)  # far above any belief, and its sums stay finite
_SPREAD_CUT: Final = 0.02  # share of the peak under which a cell says nothing about the spread

_DIFFERENCES: Final = np.array(
    [
        # d/dx, d/dy, d2/dx2, d2/dy2, d2/dxdy of what is sampled at a cell and its neighbours, row by row
        (0, 0, 0, 0, 0.25),
        (0, -0.5, 0, 1, 0),
        (0, 0, 0, 0, -0.25),
        (-0.5, 0, 1, 0, 0),
        (0, 0, -2, -2, 0),
        (0.5, 0, 1, 0, 0),
        (0, 0, 0, 0, -0.25),
        (0, 0.5, 0, 1, 0),
        (0, 0, 0, 0, 0.25),
    ]
)
"""[9, 5], to be multiplied from the right."""


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
    both = np.empty((2, batch, KEYPOINT_COUNT, height, width), np.float32)
    maps, smooth = both
    _copy_beliefs(belief_maps, maps)
    np.matmul(np.matmul(_smoothing_matrix(height), maps), _transposed_smoothing_matrix(width), out=smooth)

    peaks = smooth.reshape(batch, KEYPOINT_COUNT, -1).argmax(axis=-1)
    rows, columns = np.divmod(peaks, width)
    first_cells = _first_cells(batch, height * width)
    scores = np.minimum(maps.ravel()[first_cells + peaks], np.float32(1))

    in_heatmap = np.empty((batch, KEYPOINT_COUNT, 2), np.float32)
    in_heatmap[..., 0], in_heatmap[..., 1] = columns, rows
    in_heatmap += _peak_offsets(both, rows, columns)
    in_heatmap += np.float32(0.5)
    return DecodedKeypoints(in_heatmap, scores, _spreads(maps, in_heatmap))


def _copy_beliefs(belief_maps: NDArray[np.floating], into: NDArray[np.float32]) -> None:
    """The keypoints' maps as [N, 21, height, width]: finite, at most `_CEILING`, and 0 up to `_FLOOR`.

    What is below tells nothing, and products of it would be denormal numbers, which are slow to compute with.
    """
    with np.errstate(over="ignore"):  # of a float64, beyond all beliefs
        np.copyto(into, belief_maps[..., :KEYPOINT_COUNT].transpose(0, 3, 1, 2), casting="same_kind")
    if not into.max(initial=0.0) <= _CEILING:  # neither is one that is no number
        np.nan_to_num(into, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        np.minimum(into, _CEILING, out=into)
    np.copyto(into, np.float32(0), where=into <= _FLOOR)


@lru_cache(maxsize=64)
def _first_cells(batch: int, cells: int) -> NDArray[np.intp]:
    """The flat index of the first cell of each of so many maps: [N, 21]."""
    return _shared(np.arange(batch * KEYPOINT_COUNT).reshape(batch, KEYPOINT_COUNT) * cells)


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
    the border is not pulled inwards. The tails are cut off where they are far below what float32 can tell from 0 beside
    the peak: products with them would be denormal numbers, and smoothing would take some forty times as long.
    """
    cells = np.arange(size)
    kernel = np.exp(-0.5 * np.square((cells[:, None] - cells) / _SMOOTHING_SIGMA))
    kernel[kernel < _FLOOR] = 0.0
    return _shared((kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32))


@lru_cache(maxsize=32)
def _transposed_smoothing_matrix(size: int) -> NDArray[np.float32]:
    """The same, laid out for a product from the right: a transposed view would be three times as slow there."""
    return _shared(np.ascontiguousarray(_smoothing_matrix(size).T))


def _peak_offsets(both: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
    """How far the maximum of each map lies from the centre of its highest cell: float32 [N, 21, 2], in cells.

    The expansion is taken about the highest cell that has neighbours on all sides, so a peak in a border cell is
    described by the cells next to it. Near the border the map is taken as it is, because a Gaussian that the border
    cuts off is none any more once it is smoothed. Offsets end at one cell, and are 0 where there is no proper peak.

    Args:
        both: [2, N, 21, height, width], the maps as they are, and smoothed.
        rows: [N, 21], of the highest cells of the smoothed ones.
        columns: likewise.
    """
    batch, _, height, width = both.shape[1:]
    reach, cells = _SMOOTHING_REACH, height * width
    centre_row = np.minimum(np.maximum(rows, 1), height - 2)
    centre_column = np.minimum(np.maximum(columns, 1), width - 2)
    inside = (rows >= reach) & (rows < height - reach) & (columns >= reach) & (columns < width - reach)
    centre = _first_cells(batch, cells) + inside * (batch * KEYPOINT_COUNT * cells) + centre_row * width + centre_column
    values = both.reshape(-1)[centre[..., None] + _neighbours(width)]  # [N, 21, 9]
    log = np.log(np.maximum(values, _FLOOR)).astype(np.float64)

    # [5, N, 21]: the first derivatives, and the second ones.
    gradient_x, gradient_y, curve_xx, curve_yy, curve_xy = (log @ _DIFFERENCES).transpose(2, 0, 1)
    determinant = curve_xx * curve_yy - curve_xy * curve_xy
    is_peak = (determinant > 1e-9) & (curve_xx < 0) & (curve_yy < 0)
    factor = is_peak / np.where(is_peak, determinant, 1.0)
    offsets = np.empty((*rows.shape, 2))
    offsets[..., 0] = (curve_xy * gradient_y - curve_yy * gradient_x) * factor + (centre_column - columns)
    offsets[..., 1] = (curve_xy * gradient_x - curve_xx * gradient_y) * factor + (centre_row - rows)
    offsets *= is_peak[..., None]
    return np.minimum(np.maximum(offsets, -1.0), 1.0).astype(np.float32)


@lru_cache(maxsize=32)
def _neighbours(width: int) -> NDArray[np.intp]:
    """How far a cell and its eight neighbours lie from it in a flat map, row by row: [9]."""
    step = np.arange(-1, 2)
    return _shared((step[:, None] * width + step).ravel())


def _spreads(maps: NDArray[np.float32], in_heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square distance of the belief from its keypoint along one axis: float32 [N, 21], in cells."""
    batch, _, height, width = maps.shape
    peaks = maps.reshape(batch, KEYPOINT_COUNT, -1).max(axis=-1)[..., None, None]
    mass = maps * (maps >= np.float32(_SPREAD_CUT) * peaks)
    # Sums as products with ones: several times as quick on lines this short.
    by_column, by_row = _ones(height) @ mass, mass @ _ones(width)
    from_x = np.square(_centres(width) - in_heatmap[..., :1])
    from_y = np.square(_centres(height) - in_heatmap[..., 1:])
    total = np.maximum(by_row @ _ones(height), np.float32(_FLOOR))
    variance = (np.vecdot(by_column, from_x) + np.vecdot(by_row, from_y)) / (2 * total)
    spreads: NDArray[np.float32] = np.sqrt(variance)
    return spreads
