"""The stage loss: sums over cells, and weights of maps count."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.losses import BeliefMapLoss


def _loss(
    targets: NDArray[np.float64], predicted: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> float:
    loss = BeliefMapLoss()(targets.astype(np.float32), predicted.astype(np.float32), sample_weight=weights)
    return float(np.asarray(loss))


def test_squared_errors_are_summed_over_cells_and_averaged_over_maps_and_samples() -> None:
    targets = np.zeros((2, 4, 4, 22))
    predicted = np.zeros((2, 4, 4, 22))
    predicted[0, 1, 1, 3] = 2.0  # 4 in one of 22 maps of one of 2 samples
    assert _loss(targets, predicted) == pytest.approx(4 / 22 / 2)


def test_empty_cells_around_do_not_change_the_loss() -> None:
    small, large = np.zeros((1, 4, 4, 22)), np.zeros((1, 8, 8, 22))
    small[0, 1, 1], large[0, 1, 1] = 1.0, 1.0
    assert _loss(small, np.zeros_like(small)) == pytest.approx(_loss(large, np.zeros_like(large)))


def test_every_map_counts_by_its_weight_and_one_without_weight_not_at_all() -> None:
    targets = np.zeros((1, 4, 4, 22))
    predicted = np.full((1, 4, 4, 22), 100.0)
    predicted[..., :2] = 0.0
    predicted[0, 0, 0, :2] = 1.0
    weights = np.zeros((1, 22))
    weights[0, :2] = 2.0, 0.5
    assert _loss(targets, predicted, weights) == pytest.approx((2.0 + 0.5) / 22)
