"""Label trust: unknown maps count nothing, hidden keypoints and scattering labels less."""

from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.data.fake_samples import fake_sample
from trainer.data.label_trust import FULL_TRUST, LabelTrust


def test_an_unlabelled_keypoint_makes_its_map_and_the_background_unknown() -> None:
    labelled = np.ones(21, bool)
    labelled[4] = False
    weights = FULL_TRUST.weights(fake_sample(labelled=labelled))
    assert np.flatnonzero(weights == 0).tolist() == [4, 21]
    assert weights.mean() == pytest.approx(1.0)


def test_a_fully_labelled_hand_counts_one_everywhere() -> None:
    np.testing.assert_array_equal(FULL_TRUST.weights(fake_sample()), np.ones(22, np.float32))


def test_hidden_keypoints_count_as_configured() -> None:
    hidden = np.ones(21, bool)
    hidden[[3, 8]] = False
    weights = LabelTrust(hidden=0.5).weights(replace(fake_sample(), visible=hidden))
    assert weights[[3, 8]].tolist() == [0.5, 0.5]
    assert weights.sum() == pytest.approx(21.0)


@pytest.mark.parametrize(("spread", "expected"), [(None, 1.0), (0.0, 1.0), (0.02, 0.5), (0.04, 0.2)])
def test_a_hand_counts_less_the_more_its_labels_scatter(spread: float | None, expected: float) -> None:
    weights = LabelTrust(half_at_spread=0.02).weights(replace(fake_sample(), spread=spread))
    np.testing.assert_allclose(weights, expected)
