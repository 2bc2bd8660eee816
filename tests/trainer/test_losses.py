"""The stage loss: sums over cells, leaves unknown maps out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.data.pipeline import UNLABELLED_TARGET
from trainer.losses import BeliefMapLoss


def _loss(targets: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    return float(np.asarray(BeliefMapLoss()(targets.astype(np.float32), predicted.astype(np.float32))))


def test_squared_errors_are_summed_over_cells_and_averaged_over_maps_and_samples() -> None:
    targets = np.zeros((2, 4, 4, 22))
    predicted = np.zeros((2, 4, 4, 22))
    predicted[0, 1, 1, 3] = 2.0  # 4 in one of 22 maps of one of 2 samples
    assert _loss(targets, predicted) == pytest.approx(4 / 22 / 2)


def test_empty_cells_around_do_not_change_the_loss() -> None:
    small, large = np.zeros((1, 4, 4, 22)), np.zeros((1, 8, 8, 22))
    small[0, 1, 1], large[0, 1, 1] = 1.0, 1.0
    assert _loss(small, np.zeros_like(small)) == pytest.approx(_loss(large, np.zeros_like(large)))


def test_unknown_maps_are_left_out() -> None:
    targets = np.zeros((1, 4, 4, 22))
    targets[..., 5:] = UNLABELLED_TARGET
    predicted = np.zeros((1, 4, 4, 22))
    predicted[..., 5:] = 100.0
    assert _loss(targets, predicted) == 0.0
    predicted[0, 0, 0, 0] = 1.0
    assert _loss(targets, predicted) == pytest.approx(1 / 5)


def test_a_sample_with_nothing_known_costs_nothing() -> None:
    targets = np.full((1, 4, 4, 22), UNLABELLED_TARGET)
    assert _loss(targets, np.ones_like(targets)) == 0.0
