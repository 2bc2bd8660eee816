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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT

STRIDE: Final = 8
"""Input pixels per belief-map cell, for both networks."""

TARGET_SIGMA: Final = 1.25
"""Standard deviation of a target Gaussian, in heatmap cells."""

_SMOOTHING_SIGMA: Final = 0.8  # cells: enough to calm a noisy peak; a Gaussian stays a Gaussian
_SMOOTHING_REACH: Final = 4  # cells from which on the border no longer shows in the smoothed values about a peak
_FLOOR: Final = np.float32(1e-10)  # what stands for 0 in a map: products of less are denormal numbers, which take long
_TAIL: Final = 1e-7  # of the smoothing kernel, from which on it is cut off: far below what float32 can tell from 0
_CEILING: Final = np.float32(1e6)  # far above any belief, and its sums stay finite
_AROUND: Final = np.array((-1, 0, 1))  # a cell and its neighbours
_DERIVATIVES: Final = np.array(
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
    ],
    np.float32,
)
_SPREAD_CUT: Final = 0.02  # share of the peak under which a cell says nothing about the spread


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
    maps = _beliefs(belief_maps)
    count, height, width = maps.shape
    smooth = np.asarray(_smoothing_matrix(height) @ maps @ _smoothing_matrix(width).T, np.float32)
    tops = maps.max(axis=(1, 2))
    peaks = smooth.reshape(count, -1).argmax(axis=-1) * (tops > _FLOOR)  # the first cell of an empty map
    scores = np.minimum(maps.reshape(count, -1)[np.arange(count), peaks], np.float32(1)) - _FLOOR  # 0 for nothing
    in_heatmap = _peak_positions(maps, smooth, peaks)
    spreads = _spreads(maps, tops, in_heatmap)
    of_hands = -1, KEYPOINT_COUNT
    return DecodedKeypoints(in_heatmap.reshape(*of_hands, 2), scores.reshape(of_hands), spreads.reshape(of_hands))


def _beliefs(belief_maps: NDArray[np.floating]) -> NDArray[np.float32]:
    """The keypoints' maps, one after the other: [N * 21, height, width], from `_FLOOR` to `_CEILING`."""
    with np.errstate(over="ignore"):  # of a float64, beyond all beliefs
        maps = belief_maps[..., :KEYPOINT_COUNT].transpose(0, 3, 1, 2).astype(np.float32)
    if not np.isfinite(maps).all():
        np.nan_to_num(maps, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    bounded: NDArray[np.float32] = np.minimum(np.maximum(maps, _FLOOR), _CEILING)
    return bounded.reshape(-1, *belief_maps.shape[1:3])


def _gaussian(cells: NDArray[np.float32], centres: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """exp(-(cell - centre)^2 / 2 sigma^2): [cells], [..., K] -> [..., K, cells]."""
    exponent: NDArray[np.float32] = np.square(cells - centres[..., None]) * np.float32(-0.5 / sigma**2)
    return np.exp(exponent)


@lru_cache(maxsize=32)
def _smoothing_matrix(size: int) -> NDArray[np.float32]:
    """The matrix [size, size] that convolves a line of cells with a Gaussian.

    Cells beyond the border count as unknown rather than as empty: the kernel is renormalised there, so that a peak at
    the border is not pulled inwards. Its tails are cut off: products with them would be denormal numbers, which take
    some forty times as long, and tell nothing beside the peak.
    """
    cells = np.arange(size)
    kernel = np.exp(-0.5 * np.square((cells[:, None] - cells) / _SMOOTHING_SIGMA))
    kernel[kernel < _TAIL] = 0.0
    matrix: NDArray[np.float32] = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.setflags(write=False)  # several callers have it
    return matrix


def _peak_positions(
    maps: NDArray[np.float32], smooth: NDArray[np.float32], peaks: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Where the maximum of each map lies: float32 [M, 2], (x, y) in heatmap coordinates.

    The logarithm is expanded about the nearest cell that has neighbours on all sides, so a peak in a border cell is
    described by the cells next to it. Near the border the map is taken as it is, because a Gaussian that the border
    cuts off is not one any more once it is smoothed. The maximum lies at most one cell from the centre of the highest
    cell, and in that centre where there is no proper peak.

    Args:
        maps: float32 [M, height, width].
        smooth: the same maps, smoothed.
        peaks: [M], index of the highest cell of each smoothed map, row by row.
    """
    count, height, width = maps.shape
    rows, columns = np.divmod(peaks, width)
    inner_rows = np.minimum(np.maximum(rows, 1), height - 2)
    inner_columns = np.minimum(np.maximum(columns, 1), width - 2)
    from_border = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    expanded = np.where((from_border < _SMOOTHING_REACH)[:, None, None], maps, smooth).reshape(count, -1)
    around = (_AROUND[:, None] * width + _AROUND).ravel()
    values = expanded[np.arange(count)[:, None], (inner_rows * width + inner_columns)[:, None] + around]  # [M, 9]
    x_slope, y_slope, xx, yy, xy = (np.log(values) @ _DERIVATIVES).T
    determinant = xx * yy - xy * xy
    is_peak = (determinant > 1e-9) & (xx + yy < 0)
    determinant[~is_peak] = 1.0
    # Newton's step, from the cell about which the logarithm is expanded.
    x = (xy * y_slope - yy * x_slope) / determinant + (inner_columns - columns)
    y = (xy * x_slope - xx * y_slope) / determinant + (inner_rows - rows)
    offsets = np.minimum(np.maximum((x, y), -1), 1) * is_peak
    return np.asarray(np.stack((columns, rows)) + 0.5 + offsets, np.float32).T


def _spreads(
    maps: NDArray[np.float32], tops: NDArray[np.float32], in_heatmap: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Root mean square distance of the belief from its keypoint along one axis: float32 [M], in cells."""
    mass = maps * (maps > np.maximum(_SPREAD_CUT * tops, _FLOOR)[:, None, None])
    by_column, by_row = mass.sum(axis=1), mass.sum(axis=2)
    from_x = np.square(np.arange(maps.shape[2], dtype=np.float32) + np.float32(0.5) - in_heatmap[:, :1])
    from_y = np.square(np.arange(maps.shape[1], dtype=np.float32) + np.float32(0.5) - in_heatmap[:, 1:])
    total = np.maximum(by_row.sum(axis=-1), _FLOOR)
    variance = ((by_column * from_x).sum(axis=-1) + (by_row * from_y).sum(axis=-1)) / (2 * total)
    spreads: NDArray[np.float32] = np.sqrt(variance)
    return spreads
