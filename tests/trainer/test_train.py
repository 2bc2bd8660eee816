"""Training: schedules, exact resume, clear stops, and the standard network's stages on a lightweight one's features."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer import cli
from trainer.checkpoints import (
    AVERAGED,
    CHECKPOINT,
    CheckpointError,
    TrainingError,
    load_averaged,
    read_progress,
    to_numpy,
)
from trainer.configs import ConfigError, TrainConfig, load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sources import Source, WeightedSamples, read_sources, split_by_name
from trainer.devices import devices_seen
from trainer.errors import RefusedError
from trainer.models import Variant
from trainer.run_lock import only_one_trains
from trainer.run_log import SHARE_COLUMN, read_log
from trainer.run_network import network_of_run
from trainer.train import EXIT_UNFINISHED, Trainer
from trainer.training_loop import input_size_at, learning_rate_at, minutes_left

TINY = TrainConfig(
    variant="lightweight",
    steps=4,
    batch_size=2,
    input_sizes=((0.0, 24), (0.5, 32)),
    width_multiplier=0.03,
    ema_momentum=0.5,
    holdout=("^evaluation/",),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightedSamples, WeightedSamples]:
    folder = tmp_path_factory.mktemp("rhd")
    write_miniature_rhd(folder, training=6, evaluation=2)
    return split_by_name(read_sources([Source("rhd", folder)]), TINY.holdout)


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path, data: tuple[WeightedSamples, WeightedSamples]) -> MakeTrainer:
    def make(
        run: str,
        config: TrainConfig = TINY,
        warm_start: Path | None = None,
        stages: Path | None = None,
        trainer: type[Trainer] = Trainer,
    ) -> Trainer:
        return trainer(config, tmp_path / run, *data, ImageStore(), warm_start=warm_start, stages=stages)

    return make


class _StopsAfterTwo(Trainer):
    """Is asked to stop after its second update, as by a signal."""

    def share_done(self, seconds: float) -> float:
        if self.progress.step == 2:
            self.ask_to_stop()
        return super().share_done(seconds)


@pytest.fixture(autouse=True)
def without_graphs() -> Iterator[None]:
    """Tracing takes longer than the few updates of these tests."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def _weights(trainer: Trainer) -> list[NDArray[np.float32]]:
    return [np.asarray(variable.value) for variable in trainer.model.variables]


def _make_outputs_count(model: Any) -> None:
    """Gives the stages' last layers kernels that matter: after a few updates they are almost nothing still."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        if layer.name in {"stage1_conv2", "stage2_conv7", "stage3_conv7"}:
            kernel, bias = layer.get_weights()
            layer.set_weights([random.normal(size=kernel.shape), bias])


def _difference(first: Any, second: Any) -> float:
    """Largest difference of two networks' belief maps, in standard deviations of the first's."""
    ones, others = (np.asarray(maps) for maps in (first, second))
    return float(np.abs(ones - others).max() / ones.std())


def test_cosine_schedule_warms_up_and_ends_low() -> None:
    config = replace(TINY, learning_rate=1e-3, warm_up=0.1, final_rate_share=0.01)
    rates = [learning_rate_at(config, 0, share) for share in np.linspace(0, 1, 101)]
    assert rates[0] < 1e-4
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] == pytest.approx(1e-5)
    assert (np.diff(rates[11:]) < 0).all()


def test_the_papers_schedule_divides_by_ten_every_10000_updates() -> None:
    config = load_config("paper")
    assert (config.batch_size, config.steps, config.weight_decay, config.split) == (8, 60_000, 0.0, "8:1:1")
    rates = [learning_rate_at(config, step, step / 60_000) for step in (0, 9_999, 10_000, 25_000, 59_999)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5, 1e-6, 1e-9])


def test_input_grows_at_the_configured_shares() -> None:
    config = replace(TINY, input_sizes=((0.0, 64), (0.25, 96), (0.6, 128)))
    assert [input_size_at(config, share) for share in (0.0, 0.24, 0.25, 0.59, 0.6, 1.0)] == [
        64, 64, 96, 96, 128, 128,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["default", "distil", "paper", "photos", "smoke"])
def test_every_configuration_loads(name: str) -> None:
    assert load_config(name).final_input_size % 8 == 0


def test_the_time_left_counts_that_larger_inputs_take_longer() -> None:
    config = replace(TINY, steps=100, batch_size=6, input_sizes=((0.0, 32), (0.5, 64)))
    # 50 updates at this size, and 50 of four times the area, 6 images each, at one image a second.
    assert minutes_left(config, 0.0, 0.0, 1.0) == pytest.approx((50 + 4 * 50) * 6 / 60)
    assert minutes_left(config, 0.75, 9.0, 2.0) == pytest.approx(25 * 6 / 2 / 60)
    assert minutes_left(config, 1.0, 9.0, 2.0) == 0
    assert minutes_left(replace(config, steps=None, minutes=30.0), 0.4, 12.0, 5.0) == 18.0


def test_the_default_configuration_counts_updates_and_ends_at_256_pixels() -> None:
    config = load_config("default")
    assert config.steps is not None
    assert config.final_input_size == 256
    assert (config.precision, config.schedule, config.clip_norm) == ("mixed_bfloat16", "cosine", 50.0)
    assert load_config("distil").distil_weight > 0


def test_the_photos_configuration_trains_the_standard_network_by_its_stages() -> None:
    lightweight, standard = load_config("photos"), load_config("photos", "standard")
    assert (lightweight.variant, lightweight.part) == ("lightweight", "all")
    assert (standard.variant, standard.part) == ("standard", "stages")
    assert standard.augment == lightweight.augment
    assert load_config("default", "standard").part == "all"


def test_wrong_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration 'nothing'; known: .*photos"):
        load_config("nothing")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "x.py"))
    (tmp_path / "y.py").write_text("CONFIG = 3\n")
    with pytest.raises(ConfigError, match="must define CONFIG"):
        load_config(str(tmp_path / "y.py"))
    with pytest.raises(ConfigError, match="either steps or minutes"):
        TrainConfig(variant="standard")
    with pytest.raises(ConfigError, match="multiples of 8"):
        replace(TINY, input_sizes=((0.0, 30),))
    with pytest.raises(ConfigError, match="begin at share 0"):
        replace(TINY, input_sizes=((0.5, 32),))
    with pytest.raises(ConfigError, match="trains the standard network"):
        replace(TINY, part="stages")
    with pytest.raises(ConfigError, match=r"frozen_blocks must be in 0\.\.5, got 6"):
        replace(TINY, frozen_blocks=6)
    with pytest.raises(ConfigError, match="clip_norm must be above 0"):
        replace(TINY, clip_norm=0.0)
    with pytest.raises(ConfigError, match=r"distil_weight must be in 0\.\.1"):
        replace(TINY, distil_weight=1.5)
    with pytest.raises(ConfigError, match=r"fewest_keypoints must be in 0\.\.21, got 22"):
        replace(TINY, fewest_keypoints=22)


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(make_trainer: MakeTrainer) -> None:
    whole = make_trainer("whole")
    whole.run(workers=0)

    assert make_trainer("pieces", trainer=_StopsAfterTwo).run().step == 2
    second = make_trainer("pieces")
    assert second.progress.step == 2
    assert second.run().step == 4
    for expected, actual in zip(_weights(whole), _weights(second), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_leaves_a_curve_pictures_and_averaged_weights(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer.models import build

    trainer = make_trainer("run")
    progress = trainer.run()
    assert (progress.step, progress.samples, progress.input_size) == (4, 8, 32)
    assert "pck_at_0_2" in (tmp_path / "run/log.csv").read_text()
    assert (tmp_path / "run/validation.png").is_file()
    averaged = build("lightweight", batch_norm=True, width_multiplier=0.03)
    assert load_averaged(tmp_path / "run", averaged) == progress
    own = np.asarray(trainer.model.get_layer("conv1_1").kernel)
    assert (np.asarray(averaged.get_layer("conv1_1").kernel) != own).any()


@pytest.mark.slow
def test_frozen_blocks_stay_as_they_were(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer.models import build

    make_trainer("light", replace(TINY, steps=1)).run()
    trainer = make_trainer("end", replace(TINY, steps=2, frozen_blocks=2), warm_start=tmp_path / "light")
    before = {layer.name: layer.get_weights() for layer in trainer.model.layers if layer.weights}
    trainer.run()
    changed = {
        name
        for name, arrays in before.items()
        if any(
            (now != then).any() for now, then in zip(trainer.model.get_layer(name).get_weights(), arrays, strict=True)
        )
    }
    blocks_1_and_2 = {name for name in before if name.startswith(("conv1_", "conv2_"))}
    assert {"conv1_1", "conv1_2_bn", "conv2_2"} <= blocks_1_and_2
    assert changed == before.keys() - blocks_1_and_2

    averaged = build("lightweight", batch_norm=True, width_multiplier=0.03)
    load_averaged(tmp_path / "end", averaged)
    for name in blocks_1_and_2:
        for now, then in zip(averaged.get_layer(name).get_weights(), before[name], strict=True):
            np.testing.assert_array_equal(now, then)


@pytest.mark.slow
def test_stages_on_frozen_features_become_a_standard_network(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer.run_network import whole_network

    make_trainer("light", replace(TINY, steps=1)).run()
    config = replace(TINY, variant="standard", part="stages", steps=2)
    trainer = make_trainer("stages", config, warm_start=tmp_path / "light")
    before = np.asarray(trainer.model.get_layer("conv3_1").get_weights()[0])
    trainer.run()
    np.testing.assert_array_equal(trainer.model.get_layer("conv3_1").get_weights()[0], before)

    images = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
    _make_outputs_count(trainer.model)
    standard = whole_network(trainer.model, config)
    for expected, actual in zip(trainer.model(images, training=False), standard(images, training=False), strict=True):
        assert _difference(expected, actual) < 1e-3


@pytest.mark.slow
def test_stages_go_on_with_finished_ones(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer import weights
    from trainer.run_network import whole_network

    make_trainer("light", replace(TINY, steps=1)).run()
    config = replace(TINY, variant="standard", part="stages", steps=2)
    finished = make_trainer("stages", config, warm_start=tmp_path / "light")
    finished.run()
    _make_outputs_count(finished.model)
    path = tmp_path / "standard.npz"
    info = weights.WeightsInfo(variant="standard", created="2026-01-01", input_size=32, target_sigma_in_cells=1.25)
    weights.save(whole_network(finished.model, config), path, info)
    begun = make_trainer("next", config, warm_start=tmp_path / "light", stages=path)
    fresh = make_trainer("fresh", replace(config, seed=1), warm_start=tmp_path / "light")

    images = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
    _make_outputs_count(fresh.model)
    last = [each.model(images, training=False)[-1] for each in (finished, begun, fresh)]
    assert _difference(last[0], last[1]) < 0.05
    assert _difference(last[0], last[2]) > 0.5


@pytest.mark.slow
def test_stages_of_a_network_that_is_trained_as_a_whole_are_refused(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "--stages", "standard.npz") == 2
    assert "--stages is for a configuration of part 'stages'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer("run", replace(TINY, steps=1)).run()
    with pytest.raises(CheckpointError, match=r"lightweight \(all\), not of standard \(all\)"):
        make_trainer("run", replace(TINY, variant="standard"))
    with pytest.raises(CheckpointError, match="does not fit"):
        make_trainer("run", replace(TINY, width_multiplier=0.05))
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        make_trainer("run")
    with pytest.raises(RefusedError, match="--warm-start"):
        make_trainer("other", replace(TINY, variant="standard", part="stages"))
    with pytest.raises(RefusedError, match=r"frozen_blocks is 2: .* --warm-start has to name"):
        make_trainer("other", replace(TINY, frozen_blocks=2))
    with pytest.raises(RefusedError, match="name the run of the teacher with --teacher"):
        make_trainer("other", replace(TINY, distil_weight=0.5))


@pytest.mark.slow
def test_a_standard_network_starts_from_a_lightweight_ones_features(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer.models import build

    make_trainer("light", replace(TINY, steps=1)).run()
    trainer = make_trainer("standard", replace(TINY, variant="standard"), warm_start=tmp_path / "light")
    lightweight = build("lightweight", batch_norm=True, width_multiplier=TINY.width_multiplier)
    load_averaged(tmp_path / "light", lightweight)
    images = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
    stage1 = [np.asarray(model(images, training=False)[0]) for model in (lightweight, trainer.model)]
    np.testing.assert_allclose(stage1[1], stage1[0], atol=1e-5)
    assert np.abs(stage1[0]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lightweight", "standard"])
def test_training_goes_on_with_finished_weights(variant: Variant, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer import weights
    from trainer.models import fold_batch_norm

    finished = make_trainer("light", replace(TINY, steps=2, warm_up=0.0))
    finished.run()
    _make_outputs_count(finished.model)
    path = tmp_path / "lightweight.npz"
    info = weights.WeightsInfo(variant="lightweight", created="2026-01-01", input_size=32, target_sigma_in_cells=1.25)
    weights.save(finished.model, path, info)
    trainer = make_trainer("next", replace(TINY, variant=variant), warm_start=path)
    fresh = make_trainer("fresh", replace(TINY, variant=variant, seed=1))
    _make_outputs_count(fresh.model)

    images = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
    served = fold_batch_norm(finished.model)(images)
    begun, other = trainer.model(images, training=False), fresh.model(images, training=False)
    for stage in range(3) if variant == "lightweight" else range(1):
        assert _difference(served[stage], begun[stage]) < 0.05
        assert _difference(served[stage], other[stage]) > 0.5


@pytest.mark.slow
def test_finished_weights_of_another_network_are_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from trainer import weights
    from trainer.models import build

    path = tmp_path / "standard.npz"
    info = weights.WeightsInfo(variant="standard", created="2026-01-01", input_size=32, target_sigma_in_cells=1.25)
    weights.save(build("standard", batch_norm=False, width_multiplier=0.03), path, info)
    with pytest.raises(RefusedError, match="holds weights of the standard variant, lightweight ones are needed"):
        make_trainer("run", warm_start=path)
    with pytest.raises(RefusedError, match="of other widths than this configuration's"):
        make_trainer("run", replace(TINY, variant="standard", width_multiplier=0.05), warm_start=path)


@pytest.mark.slow
def test_a_clipped_gradient_moves_the_weights_less(make_trainer: MakeTrainer) -> None:
    # So small a norm that Adam's epsilon outweighs it.
    moved = []
    for clip_norm in (None, 1e-12):
        config = replace(TINY, steps=1, clip_norm=clip_norm, weight_decay=0.0, warm_up=0.0)
        trainer = make_trainer(f"clip-{clip_norm}", config)
        kernel = trainer.model.get_layer("conv1_1").kernel
        before = to_numpy(kernel)
        trainer.run()
        moved.append(np.abs(to_numpy(kernel) - before).max())
    assert moved[1] < moved[0] / 100


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer("run", replace(TINY, steps=1)).run()
    intact = (tmp_path / "run" / CHECKPOINT).read_bytes()
    # What is written there before it is renamed now ends on a device that is always full.
    (tmp_path / "run/checkpoint.npz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        make_trainer("run", replace(TINY, steps=2)).run()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == intact
    assert make_trainer("run", replace(TINY, steps=2)).run().step == 2


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_intact(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer("run", replace(TINY, steps=1)).run()
    intact = (tmp_path / "run" / CHECKPOINT).read_bytes()
    broken = make_trainer("run", TINY)
    broken.model.get_layer("conv1_1").kernel.assign(broken.model.get_layer("conv1_1").kernel * np.nan)
    with pytest.raises(TrainingError, match="the loss is nan at update 1"):
        broken.run()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == intact


@pytest.mark.slow
def test_a_diverged_update_is_not_checkpointed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer("run", replace(TINY, steps=1)).run()
    intact = (tmp_path / "run" / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match=r"diverged: .* not finite after update 2"):
        make_trainer("run", replace(TINY, steps=2, learning_rate=float("nan"))).run()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == intact


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `train` or `finish` for the run "tiny" in a folder with a miniature RHD."""
    monkeypatch.chdir(tmp_path)
    write_miniature_rhd(tmp_path / "rhd", training=4, evaluation=2)
    (tmp_path / "tiny.py").write_text(
        "from trainer.configs import TrainConfig\n"
        "CONFIG = TrainConfig(variant='lightweight', steps=2, batch_size=2, input_sizes=((0.0, 32),),\n"
        "                     width_multiplier=0.03, holdout=('^evaluation/',))\n"
    )

    def run(name: str, *arguments: str, to: str = "tiny") -> int:
        train = (
            ["--config", "tiny.py", "--data", f"rhd:{tmp_path / 'rhd'}", "--workers", "0"] if name == "train" else []
        )
        return cli.main([name, "--run", to, *train, *arguments])

    return run


@pytest.mark.slow
def test_training_and_finishing_from_the_command_line(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import weights

    assert command("train") == 0
    assert "4 hands to train on, 2 held out" in capsys.readouterr().out
    (tmp_path / "notes.json").write_text('{"licence": "none"}')
    assert command("finish", "--out", "out/lightweight.npz", "--notes", "notes.json") == 0
    info = weights.load(tmp_path / "out/lightweight.npz", "lightweight").info
    assert info.input_size == 32
    assert info.metrics["all held-out pictures"]["samples"] == info.metrics["rhd"]["samples"] == 2
    assert info.provenance["samples_seen"] == 4
    assert info.provenance["hands_trained_on"] == {"rhd": 4}
    assert (info.provenance["split"], info.provenance["licence"]) == ("names", "none")


@pytest.mark.slow
def test_mean_of_two_runs_weights_is_written_and_measured(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import weights

    def arrays(name: str) -> dict[str, np.ndarray]:
        return dict(weights.load(tmp_path / name, "lightweight").arrays)

    assert command("train") == 0
    assert command("finish", "--out", "first.npz") == 0
    assert command("train", "--warm-start", "first.npz", to="second") == 0
    assert command("finish", "--out", "second.npz", to="second") == 0
    assert command("finish", "--out", "mean.npz", "--mean-with", "first.npz", to="second") == 0

    first, second, mean = arrays("first.npz"), arrays("second.npz"), arrays("mean.npz")
    for name, array in mean.items():
        expected = (first[name].astype(np.float32) + second[name].astype(np.float32)) / 2
        np.testing.assert_array_equal(array, expected.astype(np.float16), err_msg=name)
    assert any((first[name] != second[name]).any() for name in mean)
    info, of_first = weights.load(tmp_path / "mean.npz").info, weights.load(tmp_path / "first.npz")
    assert info.provenance["mean_with"] == [{"run": "tiny", "weights_sha256": of_first.sha256}]
    assert info.metrics["all held-out pictures"]["samples"] == 2

    capsys.readouterr()
    weights.save(weights.to_model(of_first), tmp_path / "unknown.npz", replace(of_first.info, provenance={}))
    assert command("finish", "--out", "mean.npz", "--mean-with", "unknown.npz", to="second") == 0
    warning = "trained on data of which nothing is known, which held out []: others that are held out now may have been"
    assert warning in capsys.readouterr().err
    assert any(warning in note for note in weights.load(tmp_path / "mean.npz").info.provenance["notes"])
    assert command("finish", "--out", "./first.npz", "--mean-with", "first.npz", to="second") == 2
    assert "first.npz is among the weights to take the mean with" in capsys.readouterr().err
    assert weights.load(tmp_path / "first.npz").sha256 == of_first.sha256


@pytest.mark.slow
def test_a_standard_network_trained_by_its_stages_is_stored_as_these_alone(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import weights

    assert command("train", "--steps", "1") == 0
    assert command("finish", "--out", "light/lightweight.npz") == 0
    text = (tmp_path / "tiny.py").read_text()
    (tmp_path / "both.py").write_text(
        text
        + "from dataclasses import replace\nSTANDARD = replace(CONFIG, variant='standard', part='stages', steps=1)\n"
    )
    start = ["--config", "both.py", "--variant", "standard", "--warm-start", "light/lightweight.npz"]
    assert command("train", *start, to="stages") == 0
    features = ["--features", "light/lightweight.npz"]
    assert command("finish", "--out", "light/standard.npz", *features, to="stages") == 0

    assert (tmp_path / "light/standard.npz").stat().st_size < (tmp_path / "light/lightweight.npz").stat().st_size
    stored = weights.load(tmp_path / "light/standard.npz", "standard")
    assert stored.info.provenance["part"] == "stages"
    capsys.readouterr()
    measure = ["evaluate", "--weights", "light/standard.npz", "--data", "rhd:rhd/evaluation", "--json"]
    assert cli.main(measure) == 0
    assert json.loads(capsys.readouterr().out)["all"]["epe_px"] == stored.info.metrics["rhd"]["epe_px"]


@pytest.mark.slow
def test_finish_writes_into_the_run_and_leaves_the_repositorys_weights_alone(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import weights

    ours = weights.file_sha256(weights.default_path("lightweight"))
    assert command("train", "--steps", "1") == 0
    assert command("train", "--steps", "3", "--changed", "--stop-after-minutes", "0") == EXIT_UNFINISHED
    assert command("finish") == 0
    assert weights.load(tmp_path / "runs/tiny/weights/lightweight.npz").info.provenance["updates"] == 1
    printed = capsys.readouterr().err
    assert "written: runs/tiny/weights/lightweight.npz" in printed
    assert "tiny was stopped at update 1, before its end" in printed
    assert weights.file_sha256(weights.default_path("lightweight")) == ours
    assert cli.main(["card", "--variant", "lightweight", "--run", "tiny", "--out", "docs"]) == 0
    digest = weights.file_sha256(tmp_path / "runs/tiny/weights/lightweight.npz")
    assert digest in (tmp_path / "docs/lightweight.md").read_text()


@pytest.mark.slow
def test_averages_older_than_the_checkpoint_are_not_shipped_and_the_next_piece_mends_them(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    averaged = tmp_path / "runs/tiny" / AVERAGED
    assert command("train", "--steps", "1") == 0
    older = averaged.read_bytes()
    assert command("train", "--steps", "2", "--changed") == 0
    newer = averaged.read_bytes()
    averaged.write_bytes(older)  # as after a kill between the two files

    assert command("finish", "--out", "lightweight.npz") == 2
    assert "averaged.npz is not of update 2" in capsys.readouterr().err
    assert command("train", "--steps", "2", "--changed") == 0
    assert averaged.read_bytes() == newer


@pytest.mark.slow
def test_all_that_is_held_out_is_looked_at_in_the_end_also_where_a_periodic_look_is_due(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    config = replace(TINY, steps=2, log_seconds=0.0, validate_minutes=0.0, validation_samples=1)
    make_trainer("run", config).run()
    shares = [(row["step"], row["validated_share"]) for row in read_log(tmp_path / "run") if SHARE_COLUMN in row]
    assert shares == [(1, 0.5), (2, 1.0)]


def test_a_run_is_trained_by_one_process_at_a_time(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with only_one_trains(tmp_path / "runs/tiny"):
        assert command("train") == 2
    assert "is being trained by another process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_configuration_for_a_gpu_warns_where_there_is_none(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    if devices_seen().accelerated:
        pytest.skip("there is an accelerator")
    assert command("train", "--stop-after-minutes", "0") == EXIT_UNFINISHED
    printed = capsys.readouterr()
    assert "Keras on tensorflow, which sees CPU:0" in printed.out
    assert "meant for a GPU" not in printed.err
    text = (tmp_path / "tiny.py").read_text()
    (tmp_path / "tiny.py").write_text(text.replace("steps=2", "steps=2, for_gpu=True"))
    assert command("train", "--stop-after-minutes", "0") == EXIT_UNFINISHED
    assert "meant for a GPU and tensorflow sees none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "for_gpu"), [("default", True), ("distil", True), ("photos", False), ("smoke", False)]
)
def test_configurations_say_whether_they_are_meant_for_a_gpu(name: str, for_gpu: bool) -> None:
    assert load_config(name).for_gpu is for_gpu


@pytest.mark.slow
def test_a_piece_ends_after_its_time_and_the_same_command_goes_on(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "--stop-after-minutes", "0") == EXIT_UNFINISHED
    assert command("train") == 0
    assert command("train") == 0  # at its end: nothing is done again
    assert "stopped at step 2, 4 samples" in capsys.readouterr().out
    log = (tmp_path / "runs/tiny/log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_piece_that_a_signal_ends_says_so_so_that_a_loop_over_pieces_ends_too(
    number: signal.Signals, tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    share_done = Trainer.share_done
    told: list[signal.Signals] = []

    def told_once(trainer: Trainer, seconds: float) -> float:
        if trainer.progress.step == 1 and not told:
            told.append(number)
            os.kill(os.getpid(), number)
        return share_done(trainer, seconds)

    monkeypatch.setattr(Trainer, "share_done", told_once)
    assert command("train") == 128 + number
    progress = read_progress(tmp_path / "runs/tiny")
    assert progress is not None
    assert progress.step == 1
    assert command("train") == 0


@pytest.mark.slow
def test_a_run_that_has_begun_is_not_begun_again_from_other_weights(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train") == 0
    assert command("train", "--warm-start", "runs/tiny", to="next") == 0
    assert command("train", "--warm-start", "runs/tiny", to="next") == 0
    assert command("train", to="next") == 0
    assert command("train", to="third") == 0
    capsys.readouterr()
    assert command("train", "--warm-start", "runs/third", "--changed", to="next") == 2
    assert "runs/next started from tiny, not from third" in capsys.readouterr().err
    assert command("train", "--warm-start", "runs/third") == 2
    assert "runs/tiny started from fresh weights, not from third" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_learns_from_a_teacher_and_what_the_teacher_knew_is_never_measured(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "--holdout", "training/color/00000") == 0
    text = (tmp_path / "tiny.py").read_text()
    (tmp_path / "pupil.py").write_text(text.replace("steps=2", "steps=1, distil_weight=0.5"))
    taught = ["--config", "pupil.py", "--holdout", "color/00000", "--teacher", "runs/tiny"]
    assert command("train", *taught, to="pupil") == 0
    assert command("finish", "--out", "pupil.npz", to="pupil") == 0
    from trainer import weights

    # evaluation/color/00000 is held out now, but the teacher was trained on it.
    info = weights.load(tmp_path / "pupil.npz").info
    assert info.metrics["rhd"]["samples"] == 1
    assert (info.provenance["teacher"], info.provenance["distil_weight"]) == ("tiny", 0.5)

    assert command("train", *taught[:-2], to="pupil") == 2
    assert "the teacher is none, it was tiny" in capsys.readouterr().err
    assert command("train", "--teacher", "runs/tiny", to="third") == 2
    assert "teaches nothing while the configuration's distil_weight is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_before_there_were_teachers_and_clipping_is_finished_at_another_size(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    from trainer import weights

    assert command("train") == 0
    path = tmp_path / "runs/tiny/run.json"
    content = json.loads(path.read_text())
    del content["teacher"], content["config"]["clip_norm"], content["config"]["distil_weight"]
    path.write_text(json.dumps(content))
    assert command("finish", "--input-size", "60", "--out", "lightweight.npz") == 2  # no multiple of 8
    assert command("finish", "--input-size", "40", "--out", "lightweight.npz") == 0
    assert weights.load(tmp_path / "lightweight.npz").info.input_size == 40
    assert command("train") == 0
    assert network_of_run(tmp_path / "runs/tiny").name == "cpm_lightweight"


@pytest.mark.slow
def test_finish_measures_what_the_command_line_held_out_and_nothing_ever_trained_on(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import weights

    assert command("train", "--holdout", "training/color/0000[01]") == 0
    assert command("finish", "--out", "lightweight.npz") == 0
    assert weights.load(tmp_path / "lightweight.npz").info.metrics["rhd"]["samples"] == 2
    assert command("finish", "--data", "rhd:rhd/evaluation", "--out", "x.npz") == 2
    assert "2 of the 2 held-out pictures are not in the data" in capsys.readouterr().err

    # Trained on before, held out now: only the picture that was held out all along remains.
    changed = ["--holdout", "evaluation/", "--holdout", "training/color/00000", "--changed", "--minutes", "0.0001"]
    assert command("train", *changed) == 0
    assert command("finish", "--out", "lightweight.npz") == 0
    info = weights.load(tmp_path / "lightweight.npz").info
    assert info.metrics["rhd"]["samples"] == 1
    assert any("from update 2 on, holdout is" in note for note in info.provenance["notes"])

    # A run that starts from this one has seen its pictures, too.
    assert command("train", "--holdout", "evaluation/", "--warm-start", "runs/tiny", to="second") == 0
    assert command("finish", "--out", "lightweight.npz", to="second") == 2
    assert "nothing is held out that was not trained on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--holdout", "^training/"], r"holdout is \('\^training/',\), it was \('\^evaluation/',\)"),
        (["--variant", "standard"], "variant is 'standard', it was 'lightweight'"),
        (["--minutes", "1"], "steps is None, it was 2"),
        (["--precision", "mixed_bfloat16"], "precision is 'mixed_bfloat16', it was 'float32'"),
    ],
)
def test_a_run_does_not_become_another_experiment_unnoticed(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    assert command("train") == 0
    assert command("train", *arguments) == 2
    assert re.search(reason, capsys.readouterr().err)


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_on_other_data_or_without_its_record(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train") == 0
    assert command("train", "--data", f"rhd:{tmp_path / 'rhd/training'}") == 2
    assert "are both known as 'rhd' and both have a picture training/color/00000.png" in capsys.readouterr().err
    write_miniature_rhd(tmp_path / "rhd", training=5, evaluation=2)
    assert command("train") == 2
    assert "the training samples are others ({'rhd': 5}, before {'rhd': 4})" in capsys.readouterr().err
    (tmp_path / "runs/tiny/run.json").unlink()
    for name in ("train", "finish"):
        assert command(name) == 2
        assert "run.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workers", "-1"], "--workers must not be negative, got -1"),
        (["--minutes", "0"], "minutes and batch_size must be positive"),
        (["--steps", "0"], "minutes and batch_size must be positive"),
        (["--steps", "1", "--minutes", "1"], "give --steps or --minutes, not both"),
        (["--holdout", "."], "leave no sample"),
        (["--frozen-blocks", "9"], "frozen_blocks must be in 0..5, got 9"),
        (["--input-sizes", "0:30"], "input sizes must be multiples of 8"),
        (["--distil-weight", "2"], "distil_weight must be in 0..1"),
    ],
)
def test_wrong_arguments_of_train_are_refused(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert command("train", *arguments) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("notes", "reason"), [("{", "is no JSON"), ("[1]", "expected a JSON object, got a list")])
def test_wrong_notes_are_refused(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str], notes: str, reason: str
) -> None:
    (tmp_path / "notes.json").write_text(notes)
    assert command("finish", "--notes", "notes.json") == 2
    assert f"notes.json: {reason}" in capsys.readouterr().err
