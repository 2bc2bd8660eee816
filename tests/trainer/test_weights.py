"""Weights files: what is written is read back, and files that do not fit are refused with the reason."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from trainer import weights
from trainer.models import VARIANTS, build, fold_batch_norm
from trainer.models.warm_start import standard_from_lightweight

TINY = 1 / 16


def info_for(variant: str, **changes: Any) -> weights.WeightsInfo:
    values: dict[str, Any] = {
        "variant": variant,
        "created": "2026-01-02",
        "input_size": 128,
        "target_sigma_in_cells": 1.5,
        "provenance": {"data": ["random numbers"], "samples_seen": 0},
        "metrics": {"somewhere": {"epe_px": 99.5}},
    }
    return weights.WeightsInfo(**{**values, **changes})


def saved(folder: Path, variant: str, *, batch_norm: bool = False) -> tuple[Any, Path]:
    model = build(variant, batch_norm=batch_norm, width_multiplier=TINY)
    path = folder / f"{variant}.npz"
    weights.save(model, path, info_for(variant))
    return model, path


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_come_back_as_the_folded_model_rounded_to_half_precision(variant: str, tmp_path: Path) -> None:
    model, path = saved(tmp_path, variant, batch_norm=True)
    stored = weights.load(path, variant)
    restored = weights.to_model(stored, all_stages=True)
    assert stored.variant == variant
    assert stored.info == info_for(variant)
    for expected, actual in zip(fold_batch_norm(model).get_weights(), restored.get_weights(), strict=True):
        assert np.array_equal(expected.astype(np.float16).astype(np.float32), actual)


def test_restored_model_gives_the_last_stage_alone_unless_asked(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    restored = weights.to_model(weights.load(path))
    assert restored.output_names == ["belief_maps_stage3"]


def test_other_variants_file_is_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    with pytest.raises(weights.WeightsError, match="holds weights of the lightweight variant, standard ones"):
        weights.load(path, "standard")


def test_model_of_other_widths_is_refused_and_the_first_difference_named(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    other = build("lightweight", batch_norm=False, width_multiplier=1 / 8)
    with pytest.raises(
        weights.WeightsError, match=r"do not fit.*conv1_1/bias: in the file \(4,\), in the model \(8,\)"
    ):
        weights.assign(weights.load(path), other)


def test_weights_of_different_networks_have_no_mean(tmp_path: Path) -> None:
    _, standard = saved(tmp_path / "a", "standard")
    _, lightweight = saved(tmp_path / "b", "lightweight")
    with pytest.raises(weights.WeightsError, match="only weights of the same network have a mean"):
        weights.mean([weights.load(standard), weights.load(lightweight)])


@pytest.mark.parametrize("full", [".npz", ".json"])
def test_a_full_disk_leaves_weights_and_their_description_as_they_were(full: str, tmp_path: Path) -> None:
    model, path = saved(tmp_path, "lightweight")
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    # What is written there before it is renamed ends on a device that is always full.
    (tmp_path / f"lightweight{full}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        weights.save(model, path, info_for("lightweight", created="2026-03-04"))
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    assert weights.load(path).info == info_for("lightweight")
    assert {each.name for each in tmp_path.iterdir()} == {"lightweight.npz", "lightweight.json"}


def test_saving_under_the_wrong_variant_writes_nothing(tmp_path: Path) -> None:
    model = build("standard", batch_norm=False, width_multiplier=TINY)
    with pytest.raises(weights.WeightsError, match="the model is standard, the information is for lightweight"):
        weights.save(model, tmp_path / "lightweight.npz", info_for("lightweight"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [1e6, np.inf, np.nan])
def test_values_that_half_precision_cannot_hold_are_refused_and_the_old_files_stay(bad: float, tmp_path: Path) -> None:
    model, path = saved(tmp_path, "lightweight")
    before = path.read_bytes()
    layer = model.get_layer("stage1_conv1")
    kernel, bias = layer.get_weights()
    bias[0] = bad
    layer.set_weights([kernel, bias])
    with pytest.raises(weights.WeightsError, match="stage1_conv1/bias"):
        weights.save(model, path, info_for("lightweight"))
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"lightweight.npz", "lightweight.json"}


@pytest.mark.parametrize("metrics", [{"epe_px": float("nan")}, {"curve": np.zeros(2)}])
def test_description_that_json_cannot_hold_is_refused_before_anything_is_written(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    model = build("lightweight", batch_norm=False, width_multiplier=TINY)
    with pytest.raises(weights.WeightsError, match="cannot be written as JSON"):
        weights.save(model, tmp_path / "lightweight.npz", info_for("lightweight", metrics=metrics))
    assert list(tmp_path.iterdir()) == []


def test_saved_files_can_be_read_by_others(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    plain = tmp_path / "plain"
    plain.touch()
    for file in (path, weights.info_path(path)):
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    with pytest.raises(weights.WeightsError, match=r"no weights at .*absent\.npz"):
        weights.load(tmp_path / "absent.npz")

    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(weights.WeightsError, match=r"not a readable \.npz"):
        weights.load(truncated)

    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, numbers=np.zeros(3))
    with pytest.raises(weights.WeightsError, match="none of the networks"):
        weights.load(foreign)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lightweight.npz"
    objects: dict[str, Any] = {"conv1_2/depthwise_kernel": np.array([{"a": 1}], dtype=object)}
    np.savez(path, **objects)
    with pytest.raises(weights.WeightsError, match=r"not a readable \.npz file of plain arrays"):
        weights.load(path)


def test_description_of_other_weights_is_noticed(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "lightweight")
    description = weights.info_path(path)
    original = description.read_text()

    description.write_text(original.replace(weights.file_sha256(path), "0" * 64))
    with pytest.raises(weights.WeightsError, match="describes other weights"):
        weights.load(path)

    description.write_text(json.dumps({**json.loads(original), "input_size": 100}))
    with pytest.raises(weights.WeightsError, match="input size 100 is not a positive multiple of 8"):
        weights.load(path)

    description.unlink()
    with pytest.raises(weights.WeightsError, match="is missing"):
        weights.load(path)


def test_stored_names_are_layer_and_variable(tmp_path: Path) -> None:
    model, path = saved(tmp_path, "lightweight")
    arrays = weights.load(path).arrays
    assert len(arrays) == len(model.weights)
    assert {"conv1_2/depthwise_kernel", "conv1_2/pointwise_kernel", "conv1_2/bias"} <= arrays.keys()
    assert all(array.dtype == np.float16 for array in arrays.values())
    assert isinstance(model, keras.Model)


def stages_of(folder: Path, lightweight: Path) -> tuple[Any, Path]:
    """A standard network on the features of lightweight weights, saved as its stages alone."""
    standard = build("standard", batch_norm=False, width_multiplier=TINY)
    standard_from_lightweight(weights.to_model(weights.load(lightweight), all_stages=True), standard)
    path = folder / "standard.npz"
    weights.save(standard, path, info_for("standard"), features=lightweight)
    return standard, path


def test_stages_alone_and_the_lightweight_weights_beside_them_are_the_whole_network(tmp_path: Path) -> None:
    _, lightweight = saved(tmp_path / "light", "lightweight")
    standard, path = stages_of(tmp_path / "standard", lightweight)

    with np.load(path) as archive:
        assert all(name.startswith(("stage2_", "stage3_")) or name == "features_sha256" for name in archive.files)
    stored = weights.load(path, "standard")
    assert stored.info == info_for("standard")
    image = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 32, 32, 3)).astype(np.float32)
    whole, restored = (
        model(image, training=False)[-1] for model in (standard, weights.to_model(stored, all_stages=True))
    )
    np.testing.assert_allclose(restored, whole, atol=2e-3 * np.abs(whole).max())


def test_stages_without_their_lightweight_weights_or_with_others_are_refused(tmp_path: Path) -> None:
    _, lightweight = saved(tmp_path / "light", "lightweight")
    _, path = stages_of(tmp_path / "standard", lightweight)
    digest = weights.file_sha256(lightweight)[:12]
    beside = tmp_path / "standard/lightweight.npz"

    other, _ = saved(tmp_path / "standard", "lightweight")
    with pytest.raises(weights.WeightsError, match=rf"of lightweight weights {digest}, but .* do not fit together"):
        weights.load(path)
    with pytest.raises(weights.WeightsError, match=r"holds other lightweight weights than .*: choose another folder"):
        stages_of(tmp_path / "standard", lightweight)
    assert other.name
    beside.unlink()
    with pytest.raises(weights.WeightsError, match=rf"weights {digest}, which are missing: .*lightweight\.npz"):
        weights.load(path)


def test_stages_are_not_saved_with_features_that_they_were_not_trained_on(tmp_path: Path) -> None:
    _, lightweight = saved(tmp_path / "light", "lightweight")
    standard = build("standard", batch_norm=False, width_multiplier=TINY)
    with pytest.raises(weights.WeightsError, match="not those that the stages were trained on: conv1_1/kernel"):
        weights.save(standard, tmp_path / "standard.npz", info_for("standard"), features=lightweight)
    with pytest.raises(weights.WeightsError, match="only a standard network can be stored as its stages"):
        weights.save(
            build("lightweight", batch_norm=False, width_multiplier=TINY),
            tmp_path / "lightweight.npz",
            info_for("lightweight"),
            features=lightweight,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"light"}
