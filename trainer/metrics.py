"""How good keypoints are: PCK, the area under its curve in two forms, and end-point error. NumPy only.

Every function takes distances [N, 21] in pixels of the original picture and a mask [N, 21] of the keypoints
that count. What is not labelled never counts. Two areas go under the name AUC in papers, so each function's
name says which it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Box

FloatArray = NDArray[np.floating]

MMPOSE_AUC_THRESHOLDS_PX = np.arange(20) * 1.5
"""0, 1.5, ..., 28.5 px: as MMPose counts, which makes 0.95 the largest area that can be reached."""

NORMALISED_AUC_THRESHOLDS = np.linspace(0.0, 0.3, 61)
"""Thresholds relative to the side of the normalising box, for the trapezoid area."""


def distances(predicted: FloatArray, true: FloatArray) -> NDArray[np.float64]:
    """Euclidean distances [N, 21] between keypoints [N, 21, 2] of the same frame, in its pixels."""
    if predicted.shape != true.shape:
        raise ValueError(f"predicted and true keypoints differ in shape: {predicted.shape} and {true.shape}")
    difference = np.asarray(predicted, np.float64) - np.asarray(true, np.float64)
    result: NDArray[np.float64] = np.hypot(difference[..., 0], difference[..., 1])
    return result


def pck_per_keypoint(
    distance_px: FloatArray, sides_px: FloatArray, counted: NDArray[np.bool_], threshold: float
) -> NDArray[np.float64]:
    """Share of each keypoint's samples with distance / side < threshold: float64 [21], NaN where none counts.

    Args:
        distance_px: [N, 21], pixels.
        sides_px: [N], side of each sample's normalising box, pixels, positive.
        counted: bool [N, 21].
        threshold: relative to the side.
    """
    hit = (distance_px / sides_px[:, None] < threshold) & counted
    return _share(hit.sum(axis=0), counted.sum(axis=0))


def pck(distance_px: FloatArray, sides_px: FloatArray, counted: NDArray[np.bool_], threshold: float) -> float:
    """Mean over keypoints of `pck_per_keypoint`, over those that occur at all; NaN if none does."""
    return _mean(pck_per_keypoint(distance_px, sides_px, counted, threshold))


def auc_mmpose(distance_px: FloatArray, counted: NDArray[np.bool_]) -> float:
    """MMPose's AUC: mean PCK over 20 absolute thresholds 0, 1.5, ..., 28.5 px. Its maximum is 0.95."""
    ones = np.ones(len(distance_px))
    return float(np.mean([pck(distance_px, ones, counted, t) for t in MMPOSE_AUC_THRESHOLDS_PX]))


def auc_trapezoid(distance_px: FloatArray, sides_px: FloatArray, counted: NDArray[np.bool_]) -> float:
    """Trapezoid area under PCK over normalised thresholds 0 to 0.3, divided by 0.3. Its maximum is just under 1."""
    curve = pck_curve(distance_px, sides_px, counted)
    return float(np.trapezoid(curve, NORMALISED_AUC_THRESHOLDS) / NORMALISED_AUC_THRESHOLDS[-1])


def pck_curve(distance_px: FloatArray, sides_px: FloatArray, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """PCK at each of `NORMALISED_AUC_THRESHOLDS`."""
    return np.array([pck(distance_px, sides_px, counted, t) for t in NORMALISED_AUC_THRESHOLDS])


def clustered_standard_error(
    distance_px: FloatArray,
    sides_px: FloatArray,
    counted: NDArray[np.bool_],
    clusters: Sequence[str],
    thresholds: Sequence[float],
    *,
    resamples: int = 1000,
) -> float:
    """Standard error of the mean of `pck` over thresholds, where clusters are independent and samples in one are not.

    A bootstrap over clusters: 8,000 hands of 100 people are 100 observations. It draws the same resamples every time.

    Args:
        distance_px, sides_px, counted: as for `pck_per_keypoint`.
        clusters: [N], the cluster of each sample.
        thresholds: relative to the side.
        resamples: how many.

    Returns:
        The standard error; NaN for fewer than two clusters.
    """
    names, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return float("nan")

    def by_cluster(values: NDArray[np.bool_]) -> NDArray[np.float64]:
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, cluster_of, values)
        return sums

    even = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(0).multinomial(len(names), even, size=resamples).astype(np.float64)
    total = drawn @ by_cluster(counted)
    relative = distance_px / sides_px[:, None]
    means = [
        np.nanmean(_share(drawn @ by_cluster((relative < threshold) & counted), total), axis=1)
        for threshold in thresholds
    ]
    return float(np.mean(means, axis=0).std(ddof=1))


def epe_per_keypoint(distance_px: FloatArray, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean distance of each keypoint, pixels: float64 [21], NaN where none counts."""
    return _share(np.where(counted, distance_px, 0.0).sum(axis=0), counted.sum(axis=0))


def epe(distance_px: FloatArray, counted: NDArray[np.bool_]) -> float:
    """End-point error: mean distance over all keypoints that count, pixels; NaN if none does."""
    return float(distance_px[counted].mean()) if counted.any() else float("nan")


def mmpose_rhd_box(tight_box_in_image: Box, image_size: tuple[int, int]) -> Box:
    """MMPose's box for RHD: the tight box times 1.2, clipped to an image of (width, height)."""
    return tight_box_in_image.scaled(1.2).clipped(*image_size)


def normalising_side(box_in_image: Box) -> float:
    """The length that PCK divides by: the longer side of the box, pixels."""
    return max(box_in_image.width, box_in_image.height)


@dataclass(frozen=True, slots=True)
class Scores:
    """All figures of one evaluation; field names say which form of AUC each is."""

    samples: int
    keypoints: int
    pck_at_0_1: float
    pck_at_0_2: float
    auc_mmpose: float
    auc_trapezoid: float
    epe_px: float


def score(distance_px: FloatArray, sides_px: FloatArray, counted: NDArray[np.bool_]) -> Scores:
    """Every figure at once. Arguments as for `pck_per_keypoint`."""
    return Scores(
        samples=len(distance_px),
        keypoints=int(counted.sum()),
        pck_at_0_1=pck(distance_px, sides_px, counted, 0.1),
        pck_at_0_2=pck(distance_px, sides_px, counted, 0.2),
        auc_mmpose=auc_mmpose(distance_px, counted),
        auc_trapezoid=auc_trapezoid(distance_px, sides_px, counted),
        epe_px=epe(distance_px, counted),
    )


def _share(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    total = np.asarray(whole, np.float64)
    shares = np.full(total.shape, np.nan)
    np.divide(np.asarray(part, np.float64), total, out=shares, where=total > 0)
    return shares


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
