"""Training the detector: what is held out, exact resume, and the commands from pictures to a measured servable."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.models import DetectorCard
from tests.trainer.detection.pictures import hand, picture, write_set
from trainer import cli, run_record, weights
from trainer.checkpoints import to_numpy
from trainer.configs import ConfigError, TrainConfig, load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sample import BadSampleError, Credit, DataError
from trainer.detection.batches import DetectorBatches
from trainer.detection.compose import Shares
from trainer.detection.labels import LabelledPicture, read_pictures
from trainer.detection.sets import DetectorSets, parse_sources, read_sets, split_sets
from trainer.train import EXIT_UNFINISHED
from trainer.train_detector import DetectorTrainer

TINY = TrainConfig(
    variant="hand_detector",
    steps=4,
    batch_size=2,
    input_sizes=((0.0, 64), (0.5, 96)),
    width_multiplier=0.1,
    ema_momentum=0.5,
    holdout=("held",),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of each kind; `held` is in the names of what is held out."""
    folder = tmp_path_factory.mktemp("sets")
    two = [hand(30, 30, 24), hand(66, 60, 26, degrees=40, side="left")]
    scenes = {"1.png": two, "2.png": two[:1], "empty.png": [], "held_1.png": two, "held_empty.png": []}
    return {
        "scenes": write_set(folder / "scenes", scenes),
        "close": write_set(folder / "close", {"1.png": [hand(48, 48, 70)], "held_2.png": [hand(48, 48, 60)]}),
        "rendered": write_set(folder / "rendered", {"1.png": two}),
    }


@pytest.fixture(scope="module")
def sets(folders: dict[str, Path]) -> DetectorSets:
    sources = parse_sources([f"{kind}:{folder}" for kind, folder in folders.items()])
    return split_sets(read_sets(sources), TINY.holdout)


@pytest.fixture
def without_graphs() -> Iterator[None]:
    """Tracing takes longer than a few updates."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_sets_are_split_by_name_and_only_scenes_are_measured_on(sets: DetectorSets) -> None:
    data = sets.data()
    assert [[each.name for each in stock] for stock in (data.rendered, data.scenes, data.close, data.empty)] == [
        ["1.png"],
        ["1.png", "2.png"],
        ["1.png"],
        ["empty.png"],
    ]
    assert [each.name for each in sets.held_out] == ["held_1.png", "held_empty.png"]


def test_groups_are_held_out_in_all_sets_and_never_on_both_sides() -> None:
    one = hand(60, 70, 50)
    pictures: list[tuple[str, LabelledPicture]] = [
        ("scenes", picture(one, group="ann", name="1.png")),
        ("close", picture(one, group="ann", name="2.png")),
        ("close", picture(one, group="bob", name="3.png")),
    ]
    split = split_sets(pictures, ["^ann$"])
    assert [each.name for _, each in split.train] == ["3.png"]
    assert [each.name for each in split.held_out] == ["1.png"]
    with pytest.raises(DataError, match=r"'ann' is trained on .* and held out"):
        split_sets(pictures, [r"^1\.png"])
    with pytest.raises(DataError, match="no picture with a hand to train on"):
        split_sets(pictures, ["ann|bob"])
    credited = [("scenes", picture(one, name=name, credit=Credit("x/hands", "MIT"))) for name in ("1.png", "2.png")]
    with pytest.raises(DataError, match="source 'x/hands' is trained on"):
        split_sets(credited, ["1"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [("coco:x", "KIND one of scenes, close, rendered"), ("scenes:x@2", "is the recipe's, not @2")],
)
def test_data_is_named_by_what_it_is_for(data: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_sources([data])


def test_a_picture_that_two_sets_have_is_refused(folders: dict[str, Path]) -> None:
    sources = parse_sources([f"scenes:{folders['scenes']}", f"close:{folders['scenes']}"])
    with pytest.raises(DataError, match="known as 'scenes'"):
        read_sets(sources)


def test_hands_with_few_labelled_keypoints_and_ignored_ones_are_excused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"1.png": [hand(30, 30, 24), hand(66, 60, 26), hand(60, 30, 20)]})
    document = json.loads((folder / "annotations.json").read_text())
    document["annotations"][0]["keypoints"][2::3] = [0] * 14 + [2] * 7
    document["annotations"][1]["ignore"] = True
    (folder / "annotations.json").write_text(json.dumps(document))
    (read,) = read_pictures(folder)
    assert (len(read.hands), len(read.ignored)) == (1, 2)
    document["annotations"][2]["keypoints"] = ["far", "away"]
    (folder / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(BadSampleError, match="annotation 3 is malformed"):
        read_pictures(folder)


def test_batches_depend_on_their_number_only(sets: DetectorSets) -> None:
    shares = Shares(mosaic_chance=0.5, paste_chance=1.0)
    batches = DetectorBatches(sets.data(), ImageStore(), batch_size=6, seed=3, shares=shares)
    first, second = batches.build(5, 96), batches.in_parts(2).build(5, 96)
    np.testing.assert_array_equal(first.pictures, second.pictures)
    np.testing.assert_array_equal(first.targets, second.targets)
    assert first.pictures.shape == (6, 96, 96, 3)
    assert first.targets.shape == (6, 12, 12, 14)
    assert np.isfinite(first.targets).all()
    assert (batches.build(6, 96).pictures != first.pictures).any()


def variables(trainer: DetectorTrainer) -> list[NDArray[Any]]:
    return [to_numpy(variable) for variable in trainer.model.variables]


@pytest.mark.usefixtures("without_graphs")
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(sets: DetectorSets, tmp_path: Path) -> None:
    class StopsAfterTwo(DetectorTrainer):
        def share_done(self, seconds: float) -> float:
            if self.progress.step == 2:
                self.ask_to_stop()
            return super().share_done(seconds)

    whole = DetectorTrainer(TINY, tmp_path / "whole", sets, ImageStore())
    assert whole.run().step == 4
    assert StopsAfterTwo(TINY, tmp_path / "pieces", sets, ImageStore()).run().step == 2
    second = DetectorTrainer(TINY, tmp_path / "pieces", sets, ImageStore())
    assert second.run().step == 4
    for one, other in zip(variables(whole), variables(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_loss_falls_and_hands_of_a_tiny_set_are_found(sets: DetectorSets, tmp_path: Path) -> None:
    from trainer.run_log import read_log

    config = replace(
        TINY, steps=150, batch_size=8, input_sizes=((0.0, 96),), width_multiplier=0.25, learning_rate=4e-3,
        ema_momentum=0.9, log_seconds=0.0, shares=Shares(mosaic_chance=0.0, paste_chance=0.0),
    )  # fmt: skip
    trainer = DetectorTrainer(config, tmp_path / "run", sets, ImageStore())
    trainer.run()
    rows = read_log(tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert rows[-1]["recall_at_0_1_alarms"] == 1.0


def test_recipes_of_the_detector_refuse_what_is_not_for_it() -> None:
    assert load_config("detector").variant == "hand_detector"
    with pytest.raises(ConfigError, match="trains the hand detector and no standard network"):
        load_config("detector", "standard")
    with pytest.raises(ConfigError, match="not for the hand detector"):
        replace(TINY, frozen_blocks=1)
    with pytest.raises(ConfigError, match="multiples of 32"):
        replace(TINY, input_sizes=((0.0, 72),))


@pytest.mark.usefixtures("without_graphs")
def test_the_commands_lead_from_pictures_to_a_measured_servable(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.py").write_text(
        "from trainer.configs import TrainConfig\n"
        "CONFIG = TrainConfig(variant='hand_detector', steps=2, batch_size=2, input_sizes=((0.0, 64),),"
        " width_multiplier=0.1)\n"
    )
    data = [word for kind, folder in folders.items() for word in ("--data", f"{kind}:{folder}")]
    train = ["train", "--config", "recipe.py", "--run", "tiny", "--workers", "0", *data, "--holdout", "held"]
    assert cli.main([*train, "--skip-bad"]) == 2
    assert cli.main([*train, "--stop-after-minutes", "0"]) == EXIT_UNFINISHED
    assert cli.main(train) == 0
    record = run_record.read(Path("runs/tiny"))
    assert record.hands == {"close": 1, "rendered": 2, "scenes": 3}
    assert record.held_out == {("scenes", "held_1.png"), ("scenes", "held_empty.png")}

    assert cli.main(["finish", "--run", "tiny"]) == 0
    path = Path("runs/tiny/weights/hand_detector.npz")
    stored = weights.load(path, "hand_detector")
    assert stored.info.metrics["held-out pictures"]["hands"] == 2
    assert stored.info.provenance["updates"] == 2

    scenes = ["--data", f"scenes:{folders['scenes']}", "--holdout", "held"]
    evaluate = ["evaluate", "--weights", str(path), *scenes, "--out", "results.json", "--plots", "plots"]
    assert cli.main([*evaluate, "--upright"]) == 2
    assert cli.main(evaluate) == 0
    assert json.loads(Path("results.json").read_text())["hand_free_pictures"] == 1
    assert sorted(file.name for file in Path("plots").iterdir()) == ["recall.png", "worst.png"]

    card = ["card", "--variant", "hand_detector", "--run", "tiny", "--results", "results.json", "--out", "docs"]
    assert cli.main([*card, "--overlays", scenes[1], "--holdout", "held"]) == 0
    assert stored.sha256 in Path("docs/hand_detector.md").read_text()

    assert cli.main(["export", "--variant", "hand_detector", "--weights", str(path), "--model-repo", "repo"]) == 0
    folder = Path("repo/hand_detector/1")
    card_of_service = DetectorCard.model_validate_json((folder / "model_card.json").read_text())
    assert (card_of_service.input_size, card_of_service.detections) == (64, 16)
    capsys.readouterr()
    assert cli.main(["evaluate", "--servable", str(folder), *scenes, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["weights_sha256"] == stored.sha256
    assert measured["recall"] == stored.info.metrics["held-out pictures"]["recall"]
