"""The detector's network: size, what it accepts, folding and unfolding, and what a file says of its widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import weights
from trainer.models import fold_batch_norm, unfold_batch_norm, variant_and_widths
from trainer.models.detector import CHANNELS, DetectorWidths, build_detector

NARROW = DetectorWidths(levels=(4, 4, 8, 8, 12), blocks=(0, 1, 0, 1, 2), grid=8)


def pictures(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (2, side, side, 3)).astype(np.float32)


def trained(*, batch_norm: bool = True) -> Any:
    """A narrow detector whose every variable is random, as after a training."""
    model = build_detector(batch_norm=batch_norm, widths=NARROW)
    rng = np.random.default_rng(1)
    model.set_weights([np.abs(rng.normal(0.5, 0.3, each.shape)) + 0.05 for each in model.weights])
    for layer in model.layers:
        if layer.name.removesuffix("_bn") == layer.name and layer.weights:
            layer.set_weights([rng.normal(0, 0.2, each.shape) for each in layer.weights])
    return model


def test_the_detector_is_small_and_answers_for_every_eighth_pixel() -> None:
    model = build_detector(batch_norm=False)
    assert model.count_params() <= 1_500_000
    assert model(pictures()[:, :32]).shape == (2, 4, 8, CHANNELS)
    with pytest.raises(ValueError, match="not a positive multiple of 32"):
        build_detector(batch_norm=True, input_size=40)


def test_a_new_detector_takes_few_cells_for_hands() -> None:
    grid = np.asarray(build_detector(batch_norm=True)(pictures()))
    assert (1 / (1 + np.exp(-grid[..., 0]))).max() < 0.05


def test_the_folded_detector_computes_the_same_with_fewer_parameters() -> None:
    model = trained()
    folded = fold_batch_norm(model)
    expected = np.asarray(model(pictures(), training=False))
    np.testing.assert_allclose(folded(pictures()), expected, atol=1e-4 * np.abs(expected).max())
    assert folded.count_params() < model.count_params()
    assert not any(name.name.endswith("_bn") for name in folded.layers)
    assert variant_and_widths(folded) == variant_and_widths(model) == ("hand_detector", NARROW)


def test_folded_weights_are_taken_up_again_by_a_training_detector() -> None:
    folded = fold_batch_norm(trained())
    model = build_detector(batch_norm=True, widths=NARROW)
    unfold_batch_norm(folded, model, pictures())
    expected = np.asarray(folded(pictures(2)))
    np.testing.assert_allclose(model(pictures(2), training=False), expected, atol=1e-3 * np.abs(expected).max())


def test_weights_come_back_as_the_folded_detector_of_its_widths(tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "hand_detector.npz"
    info = weights.WeightsInfo("hand_detector", created="2026-01-02", input_size=64)
    weights.save(model, path, info)
    stored = weights.load(path, "hand_detector")
    assert stored.info == info
    for before, after in zip(fold_batch_norm(model).get_weights(), weights.to_model(stored).get_weights(), strict=True):
        np.testing.assert_array_equal(before.astype(np.float16).astype(np.float32), after)
    with pytest.raises(weights.WeightsError, match="hand_detector variant, lightweight ones are needed"):
        weights.load(path, "lightweight")


def test_a_detectors_description_has_its_own_rules() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        weights.WeightsInfo("hand_detector", created="2026-01-02", input_size=72)
    with pytest.raises(ValueError, match="no target_sigma_in_cells"):
        weights.WeightsInfo("hand_detector", created="2026-01-02", input_size=64, target_sigma_in_cells=1.5)
    with pytest.raises(ValueError, match="target_sigma_in_cells None"):
        weights.WeightsInfo("lightweight", created="2026-01-02", input_size=64)
