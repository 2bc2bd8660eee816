"""Export: a servable computes what the trained network computes, appears whole, and never replaces another."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from service.pose.keypoints import KEYPOINT_NAMES
from trainer import export, model_card, profile, weights
from trainer.cli import main
from trainer.errors import RefusedError, TrainerError
from trainer.models import VARIANTS, build

TINY = 1 / 16


def trained(folder: Path, variant: str, *, seed: int = 0) -> Path:
    """A tiny network's weights file, with weights large enough for belief maps that can be compared."""
    model = build(variant, batch_norm=False, width_multiplier=TINY)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.weights])
    path = folder / f"{variant}-{seed}.npz"
    info = weights.WeightsInfo(
        variant,
        created="2026-01-02",
        input_size=64,
        target_sigma_in_cells=1.5,
        provenance={"data": ["random numbers"], "samples_seen": 0},
        metrics={"nothing": {"epe_px": 99.5}},
    )
    weights.save(model, path, info)
    return path


def run_export(path: Path, variant: str, repository: Path, *arguments: str) -> int:
    fixed = ["--variant", variant, "--weights", str(path), "--model-repo", str(repository)]
    return main(["export", *fixed, *arguments])


@pytest.fixture(scope="module", params=VARIANTS)
def servable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weights file and the version folder exported from it, by the command."""
    folder = tmp_path_factory.mktemp(request.param)
    path = trained(folder, request.param)
    assert run_export(path, request.param, folder / "repository") == 0
    return path, folder / "repository" / f"cpm_{request.param}" / "1"


def test_servable_computes_the_last_stage_of_the_network_from_uint8_images(servable: tuple[Path, Path]) -> None:
    path, version_folder = servable
    network = weights.to_model(weights.load(path))
    signature: Any = tf.saved_model.load(str(version_folder)).signatures["serving_default"]
    for shape in ((1, 64, 64, 3), (3, 40, 72, 3)):
        images = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
        expected = np.asarray(network(images.astype(np.float32) / 255 - 0.5))
        outputs = signature(image=tf.constant(images))
        assert list(outputs) == ["belief_maps"]
        actual = outputs["belief_maps"].numpy()
        assert actual.shape == (shape[0], shape[1] // 8, shape[2] // 8, 22)
        assert np.abs(expected).max() > 0.01
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_signature_has_the_agreed_names_types_and_free_lengths(servable: tuple[Path, Path]) -> None:
    loaded: Any = tf.saved_model.load(str(servable[1]))
    assert list(loaded.signatures) == ["serving_default"]
    signature = loaded.signatures["serving_default"]
    ((), inputs) = signature.structured_input_signature
    assert inputs == {"image": tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")}
    assert signature.structured_outputs == {
        "belief_maps": tf.TensorSpec([None, None, None, 22], tf.float32, name="belief_maps")
    }


def test_saved_model_holds_the_networks_variables_and_no_others(servable: tuple[Path, Path]) -> None:
    path, version_folder = servable
    arrays = weights.load(path).arrays
    names = tf.train.load_checkpoint(str(version_folder / "variables" / "variables")).get_variable_to_shape_map()
    names = {name: shape for name, shape in names.items() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert sorted(map(tuple, names.values())) == sorted(array.shape for array in arrays.values())


def test_card_says_what_the_servable_is_and_where_it_comes_from(servable: tuple[Path, Path]) -> None:
    path, version_folder = servable
    card = model_card.read(version_folder)
    assert isinstance(card, model_card.ModelCard)
    stored = weights.load(path)
    network = weights.to_model(stored)
    assert card.name == version_folder.parent.name == f"cpm_{stored.variant}"
    assert (card.variant, card.version) == (stored.variant, 1)
    assert card.keypoints == KEYPOINT_NAMES
    assert len(card.keypoints) + 1 == card.channels == 22
    assert (card.input_size, card.stride) == (64, 8)
    assert (card.target_sigma_in_cells, card.crop_padding) == (1.5, 1.25)
    assert card.parameters == network.count_params()
    kernels = [array.size for name, array in stored.arrays.items() if name.endswith("kernel")]
    assert card.paper_flops == 2 * sum(kernels)
    assert card.macs > 0
    assert card.weights_sha256 == weights.file_sha256(path)
    assert card.provenance == {"trained": "2026-01-02", "data": ["random numbers"], "samples_seen": 0}
    assert card.metrics == {"nothing": {"epe_px": 99.5}}


def test_warm_up_holds_a_real_request_for_each_allowed_batch_size(servable: tuple[Path, Path]) -> None:
    version_folder = servable[1]
    signature: Any = tf.saved_model.load(str(version_folder)).signatures["serving_default"]
    records = tf.data.TFRecordDataset(str(version_folder / "assets.extra" / "tf_serving_warmup_requests"))
    batch_sizes = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == version_folder.parent.name
        assert request.model_spec.signature_name == "serving_default"
        images = tf.make_ndarray(request.inputs["image"])
        assert images.dtype == np.uint8
        assert images.shape[1:] == (64, 64, 3)
        assert images.std() > 10
        assert signature(image=tf.constant(images))["belief_maps"].shape[0] == len(images)
        batch_sizes.append(len(images))
    assert batch_sizes == [1, 2, 4, 8, 16]


def test_version_folder_is_readable_by_others_and_nothing_else_is_left(servable: tuple[Path, Path]) -> None:
    version_folder = servable[1]
    assert [entry.name for entry in version_folder.parent.iterdir()] == ["1"]
    plain = servable[0].parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(version_folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_existing_version_is_refused_and_left_as_it_is(
    servable: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, version_folder = servable
    variant = weights.load(path).variant
    before = {file: file.stat().st_mtime_ns for file in version_folder.rglob("*")}
    assert run_export(path, variant, version_folder.parents[1], "--version", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "versions are never overwritten" in error
    assert error.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in version_folder.rglob("*")} == before


def test_next_free_version_follows_the_highest(tmp_path: Path) -> None:
    folder = tmp_path / "cpm_lightweight"
    assert export.choose_version(folder, None) == 1
    for name in ("1", "7", ".export-9-abc", "notes"):
        (folder / name).mkdir(parents=True)
    assert export.choose_version(folder, None) == 8
    assert export.choose_version(folder, 3) == 3
    with pytest.raises(RefusedError, match="version 0 is not a positive number"):
        export.choose_version(folder, 0)


def test_folder_that_is_filled_appears_at_the_end_under_its_number(tmp_path: Path) -> None:
    version_folder = tmp_path / "repository" / "cpm_standard" / "4"
    with export.appearing_whole(version_folder) as unfinished:
        assert unfinished.parent == version_folder.parent
        assert not unfinished.name.isdecimal()
        (unfinished / "saved_model.pb").touch()
        assert not version_folder.exists()
    assert [file.name for file in version_folder.iterdir()] == ["saved_model.pb"]
    assert list(version_folder.parent.iterdir()) == [version_folder]


def test_folder_whose_filling_fails_is_removed(tmp_path: Path) -> None:
    version_folder = tmp_path / "cpm_standard" / "4"

    def fill_and_fail() -> None:
        with export.appearing_whole(version_folder) as unfinished:
            (unfinished / "saved_model.pb").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_and_fail()
    assert list(version_folder.parent.iterdir()) == []


def test_version_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    version_folder = tmp_path / "cpm_standard" / "4"

    def fill_while_someone_else_exports() -> None:
        with export.appearing_whole(version_folder) as unfinished:
            (unfinished / "saved_model.pb").touch()
            version_folder.mkdir()

    with pytest.raises(RefusedError, match="has appeared meanwhile"):
        fill_while_someone_else_exports()
    assert list(version_folder.parent.iterdir()) == [version_folder]
    assert list(version_folder.iterdir()) == []


def test_servable_that_computes_something_else_never_appears(tmp_path: Path) -> None:
    stored = weights.load(trained(tmp_path, "lightweight"))
    folder = tmp_path / "repository" / "cpm_lightweight"
    seen: list[list[str]] = []

    def look_and_damage(step: str) -> None:
        names = [entry.name for entry in folder.iterdir()]
        seen.append(names)
        if "comparing" in step:
            data = next((folder / names[0] / "variables").glob("variables.data*"))
            content = bytearray(data.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 64] = b"\x00" * 64
            data.write_bytes(content)

    with pytest.raises((TrainerError, tf.errors.DataLossError)):
        export.export(stored, tmp_path / "repository", report=look_and_damage)
    assert len(seen) >= 3
    assert all(len(names) == 1 and names[0].startswith(".") for names in seen)
    assert list(folder.iterdir()) == []


def test_another_keras_backend_is_refused_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(tmp_path, "lightweight")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert run_export(path, "lightweight", tmp_path / "repository") == 2
    assert "it is on torch: set KERAS_BACKEND=tensorflow" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_exported_version_is_found_by_its_weights_and_input_size(servable: tuple[Path, Path], tmp_path: Path) -> None:
    card = model_card.read(servable[1])
    for version, digest in ((1, "first"), (2, "second"), (10, "first")):
        (tmp_path / str(version)).mkdir()
        model_card.write(replace(card, version=version, weights_sha256=digest), tmp_path / str(version))
    (tmp_path / "11").mkdir()
    (tmp_path / "11" / "model_card.json").write_text(json.dumps({"format": 99}))
    assert export.find_exported(tmp_path, "first", 64) == 10
    assert export.find_exported(tmp_path, "second", 64) == 2
    assert export.find_exported(tmp_path, "second", 128) is None
    assert export.find_exported(tmp_path, "third", 64) is None
    assert export.find_exported(tmp_path / "absent", "first", 64) is None


def test_if_missing_exports_weights_that_are_not_there(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    foreign = repository / "cpm_lightweight" / "4"
    foreign.mkdir(parents=True)
    path = trained(tmp_path, "lightweight", seed=2)
    assert run_export(path, "lightweight", repository, "--if-missing", "--input-size", "128") == 0
    assert export.existing_versions(foreign.parent) == [4, 5]
    card = model_card.read(foreign.parent / "5")
    assert (card.version, card.input_size, card.weights_sha256) == (5, 128, weights.file_sha256(path))


def test_if_missing_does_not_import_tensorflow_when_nothing_is_to_do(
    servable: tuple[Path, Path],
) -> None:
    path, version_folder = servable
    variant = weights.load(path).variant
    program = (
        "import sys; from trainer.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'keras', 'tensorflow'} & sys.modules.keys())); sys.exit(code)"
    )
    arguments = ["--variant", variant, "--weights", str(path), "--model-repo", str(version_folder.parents[1])]
    process = subprocess.run(
        [sys.executable, "-c", program, "export", *arguments, "--if-missing"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.splitlines() == [f"{version_folder} is up to date", "[]"]


def test_both_variants_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(tmp_path, "lightweight")
    repository = tmp_path / "repository"
    assert main(["export", "--weights", str(path), "--model-repo", str(repository)]) == 2
    assert "--weights names one file" in capsys.readouterr().err
    assert run_export(path, "standard", repository) == 2
    assert "holds weights of the lightweight variant" in capsys.readouterr().err
    assert run_export(tmp_path / "none.npz", "standard", repository) == 2
    assert "no weights at" in capsys.readouterr().err
    assert run_export(path, "lightweight", repository, "--input-size", "100") == 2
    assert "input size 100 is not a positive multiple of 8" in capsys.readouterr().err
    assert not repository.exists()


def test_exported_graph_counts_layer_by_layer_like_the_keras_network(
    servable: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, version_folder = servable
    variant = weights.load(path).variant
    from_keras = profile.count_model(build(variant, batch_norm=False, input_size=128, width_multiplier=TINY))
    from_graph = profile.count_servable(version_folder, 128)
    assert from_graph.layers == from_keras.layers
    assert from_graph.parameters == from_keras.parameters

    arguments = ["--json", "--variant", variant, "--size", "128", "--servable", str(version_folder)]
    assert main(["profile", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)["servables"][str(version_folder)]
    assert (printed["source"], printed["macs"]) == (str(version_folder), from_keras.macs)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_graph_of_full_size_has_the_papers_counts(variant: str, tmp_path: Path) -> None:
    path = tmp_path / f"{variant}.npz"
    info = weights.WeightsInfo(variant, created="2026-01-02", input_size=256, target_sigma_in_cells=1.5)
    weights.save(build(variant, batch_norm=False), path, info)
    version_folder = export.export(weights.load(path), tmp_path)
    card = model_card.read(version_folder)  # its counts are those of the graph that was written
    assert isinstance(card, model_card.ModelCard)
    expected = {"standard": (24_316_162, 48_618_880, 37.12), "lightweight": (6_892_930, 13_767_808, 8.60)}
    assert (card.parameters, card.paper_flops, round(card.macs / 1e9, 2)) == expected[variant]
