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
_FLOOR: Final = 1e-10  # smallest value whose logarithm is taken
_CEILING: Final = np.float32(1e6)  # far above any belief, and its sums stay finite
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
    raw = np.ascontiguousarray(np.moveaxis(belief_maps[..., :KEYPOINT_COUNT], -1, 1), np.float32)
    maps = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0).clip(np.float32(0.0), _CEILING)
    smooth: NDArray[np.float32] = (
        _smoothing_matrix(height) @ maps @ _smoothing_matrix(width).T
    )  # [N, 21, height, width]

    peaks = smooth.reshape(batch, KEYPOINT_COUNT, -1).argmax(axis=-1)
    rows, columns = np.divmod(peaks, width)
    scores = np.take_along_axis(maps.reshape(batch, KEYPOINT_COUNT, -1), peaks[..., None], axis=-1)[..., 0]

    offsets = _peak_offsets(maps, smooth, rows, columns)
    in_heatmap = np.stack((columns, rows), axis=-1).astype(np.float32) + np.float32(0.5) + offsets
    return DecodedKeypoints(in_heatmap, np.clip(scores, 0.0, 1.0), _spreads(maps, in_heatmap))


def _gaussian(cells: NDArray[np.float32], centres: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """exp(-(cell - centre)^2 / 2 sigma^2): [cells], [..., K] -> [..., K, cells]."""
    exponent: NDArray[np.float32] = np.square(cells - centres[..., None]) * np.float32(-0.5 / sigma**2)
    return np.exp(exponent)


@lru_cache(maxsize=32)
def _smoothing_matrix(size: int) -> NDArray[np.float32]:
    """The matrix [size, size] that convolves a line of cells with a Gaussian.

    Cells beyond the border count as unknown rather than as empty: the kernel is renormalised there, so that a peak at
    the border is not pulled inwards.
    """
    cells = np.arange(size)
    kernel = np.exp(-0.5 * np.square((cells[:, None] - cells) / _SMOOTHING_SIGMA))
    matrix: NDArray[np.float32] = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.setflags(write=False)  # shared by every caller
    return matrix


def _peak_offsets(
    maps: NDArray[np.float32], smooth: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float32]:
    """How far the maximum of each map lies from the centre of its highest cell: float32 [N, 21, 2], in cells.

    The expansion is taken about the highest cell that has neighbours on all sides, so a peak in a border cell is
    described by the cells next to it. Near the border the map is taken as it is, because a Gaussian that the border
    cuts off is none any more once it is smoothed. Offsets end at one cell, and are 0 where there is no proper peak.
    """
    height, width = smooth.shape[-2:]
    centre_row, centre_column = np.clip(rows, 1, height - 2), np.clip(columns, 1, width - 2)
    batch = np.arange(smooth.shape[0])[:, None, None, None]
    keypoint = np.arange(smooth.shape[1])[None, :, None, None]
    step = np.arange(-1, 2)
    cells = (
        batch,
        keypoint,
        centre_row[..., None, None] + step[:, None],
        centre_column[..., None, None] + step[None, :],
    )
    to_border = np.minimum.reduce((rows, columns, height - 1 - rows, width - 1 - columns))
    around = np.where((to_border < _SMOOTHING_REACH)[..., None, None], maps[cells], smooth[cells])
    log = np.log(np.maximum(around, _FLOOR)).astype(np.float64)

    gradient_x = (log[..., 1, 2] - log[..., 1, 0]) / 2
    gradient_y = (log[..., 2, 1] - log[..., 0, 1]) / 2
    curve_xx = log[..., 1, 2] - 2 * log[..., 1, 1] + log[..., 1, 0]
    curve_yy = log[..., 2, 1] - 2 * log[..., 1, 1] + log[..., 0, 1]
    curve_xy = (log[..., 2, 2] - log[..., 2, 0] - log[..., 0, 2] + log[..., 0, 0]) / 4

    determinant = curve_xx * curve_yy - curve_xy**2
    is_peak = (determinant > 1e-9) & (curve_xx < 0) & (curve_yy < 0)
    safe = np.where(is_peak, determinant, 1.0)
    offset_x = np.where(is_peak, (curve_xy * gradient_y - curve_yy * gradient_x) / safe, 0.0)
    offset_y = np.where(is_peak, (curve_xy * gradient_x - curve_xx * gradient_y) / safe, 0.0)
    offsets = np.stack((offset_x + (centre_column - columns), offset_y + (centre_row - rows)), axis=-1)
    return np.where(is_peak[..., None], np.clip(offsets, -1.0, 1.0), 0.0).astype(np.float32)


def _spreads(maps: NDArray[np.float32], in_heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square distance of the belief from its keypoint along one axis: float32 [N, 21], in cells."""
    height, width = maps.shape[-2:]
    mass = np.where(maps >= _SPREAD_CUT * maps.max(axis=(-2, -1), keepdims=True), maps, 0.0)
    by_column, by_row = mass.sum(axis=-2), mass.sum(axis=-1)
    from_x = np.square(np.arange(width, dtype=np.float32) + 0.5 - in_heatmap[..., :1])
    from_y = np.square(np.arange(height, dtype=np.float32) + 0.5 - in_heatmap[..., 1:])
    total = np.maximum(by_column.sum(axis=-1), _FLOOR)
    variance = ((by_column * from_x).sum(axis=-1) + (by_row * from_y).sum(axis=-1)) / (2 * total)
    spreads: NDArray[np.float32] = np.sqrt(variance).astype(np.float32)
    return spreads
