"""Distillation: a teacher's beliefs are mixed into the targets."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.data.pipeline import Batch
from trainer.teacher import mixed_targets


class _Believes:
    """A teacher that believes the same everywhere."""

    def __init__(self, belief: float) -> None:
        self._belief = belief

    def belief_maps(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(crops), 2, 2, 22), self._belief, np.float32)


@pytest.fixture
def batch() -> Batch:
    targets = np.full((1, 2, 2, 22), 0.2, np.float32)
    return Batch(np.zeros((1, 16, 16, 3), np.uint8), targets, np.ones((1, 22), np.float32))


def test_targets_are_mixed_by_weight(batch: Batch) -> None:
    mixed = mixed_targets(batch, _Believes(0.6), 0.25)
    np.testing.assert_allclose(mixed[..., 0], 0.3, rtol=1e-6)
    assert mixed.dtype == np.float32


def test_a_negative_belief_counts_as_nothing(batch: Batch) -> None:
    np.testing.assert_allclose(mixed_targets(batch, _Believes(-0.6), 0.25)[..., 0], 0.15, rtol=1e-6)


def test_without_a_teacher_or_weight_the_targets_are_the_labels(batch: Batch) -> None:
    assert mixed_targets(batch, None, 0.5) is batch.targets
    assert mixed_targets(batch, _Believes(0.6), 0.0) is batch.targets
