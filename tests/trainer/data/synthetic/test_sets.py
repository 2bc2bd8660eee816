"""Sets on disk: same bytes for the same seed, going on after an interruption, clear refusals."""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from trainer.data.coco import read_coco
from trainer.data.synthetic import synth
from trainer.data.synthetic.generate import Maker, Sources, generate
from trainer.data.synthetic.renderer import Renderer
from trainer.data.synthetic.writer import SetError, SetFolder, SetSettings, bytes_digest
from trainer.errors import RefusedError

SETTINGS = SetSettings(seed=3, kind="mixed", size=64, masks=True)
COUNT = 5


def quiet() -> Console:
    return Console(file=io.StringIO())


def make(folder: Path, settings: SetSettings = SETTINGS, count: int = COUNT, workers: int = 0) -> int:
    return generate(folder, settings, Sources(), count, workers, quiet()).made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, renderer: Renderer) -> Path:
    """A set made without interruption (`renderer` skips the tests where there is no OpenGL)."""
    folder = tmp_path_factory.mktemp("sets") / "whole"
    make(folder)
    return folder


def test_the_set_holds_pictures_masks_and_one_annotation_file(whole: Path) -> None:
    names = sorted(p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file())

    assert names == sorted(
        [
            "annotations.json",
            *(f"{d}/{i:08d}.{e}" for d, e in (("images", "jpg"), ("masks", "png")) for i in range(COUNT)),
        ]
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "again")
    make(tmp_path / "other", replace(SETTINGS, seed=4))

    assert bytes_digest(tmp_path / "again") == bytes_digest(whole)
    assert bytes_digest(tmp_path / "other") != bytes_digest(whole)


def test_an_interrupted_set_gone_on_with_has_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    part = SetFolder(folder, SETTINGS)
    part.start()
    maker = Maker(folder, SETTINGS, Sources())
    part.note(maker.make([0, 3]))
    maker.make([1])  # drawn, but the process died before it was noted
    maker.close()
    (folder / "images" / ".00000002.jpg.123.tmp").write_bytes(b"half a pict")
    with (folder / ".synth" / "records.jsonl").open("a") as notes:
        notes.write('{"index": 2, "wid')

    assert make(folder) == COUNT - 2
    assert bytes_digest(folder) == bytes_digest(whole)


def test_a_picture_that_went_missing_is_made_again(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "set")
    (tmp_path / "set" / "images" / "00000002.jpg").unlink()

    assert make(tmp_path / "set") == 1
    assert bytes_digest(tmp_path / "set") == bytes_digest(whole)


def test_a_finished_set_can_grow_and_is_left_alone_otherwise(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "set", count=2)

    assert make(tmp_path / "set", count=COUNT) == COUNT - 2
    assert bytes_digest(tmp_path / "set") == bytes_digest(whole)
    assert make(tmp_path / "set", count=COUNT) == 0
    assert make(tmp_path / "set", count=2) == 0
    assert bytes_digest(tmp_path / "set") == bytes_digest(whole)


def test_a_set_mended_with_a_smaller_count_keeps_every_label(tmp_path: Path, renderer: Renderer) -> None:
    folder = tmp_path / "set"
    make(folder)
    for index in (1, 3):
        (folder / "images" / f"{index:08d}.jpg").unlink()

    assert make(folder, count=2) == 1
    document = json.loads((folder / "annotations.json").read_text())
    assert [image["id"] for image in document["images"]] == [0, 1, 2, 4]


@pytest.mark.slow
def test_the_number_of_processes_does_not_show_in_the_bytes(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "set", workers=2)

    assert bytes_digest(tmp_path / "set") == bytes_digest(whole)


def test_the_trainers_reader_takes_the_set(whole: Path) -> None:
    samples = read_coco(whole)
    document = json.loads((whole / "annotations.json").read_text())
    hands = [a for a in document["annotations"] if not a["iscrowd"]]

    assert len(samples) == len(hands)
    table = np.array(hands[0]["keypoints"]).reshape(21, 3)
    labelled = table[:, 2] > 0
    assert samples[0].handedness == hands[0]["handedness"]
    assert np.abs(samples[0].keypoints_in_image - table[:, :2])[labelled].max() < 1e-9
    assert (samples[0].labelled == labelled).all()


def test_written_points_are_the_projections_of_the_written_3d_points(whole: Path) -> None:
    document = json.loads((whole / "annotations.json").read_text())

    assert document["annotations"]
    for annotation in document["annotations"]:
        fx, fy, cx, cy = annotation["camera"]
        x, y, z = np.array(annotation["keypoints_3d"]).T
        found = np.array(annotation["keypoints"]).reshape(21, 3)
        assert np.abs(fx * x / z + cx - found[:, 0]).max() < 0.01
        assert np.abs(fy * y / z + cy - found[:, 1]).max() < 0.01


def test_masks_hold_the_instances_that_the_annotations_name(whole: Path) -> None:
    document = json.loads((whole / "annotations.json").read_text())

    for annotation in document["annotations"]:
        mask = np.asarray(Image.open(whole / "masks" / f"{annotation['image_id']:08d}.png"))
        assert (mask == annotation["instance"]).sum() == annotation["area"]


def test_another_seed_in_the_same_folder_is_refused(whole: Path) -> None:
    with pytest.raises(SetError, match="made with seed 3, asked for 4"):
        SetFolder(whole, replace(SETTINGS, seed=4))


def test_another_seed_is_refused_also_while_the_set_is_unfinished(tmp_path: Path) -> None:
    SetFolder(tmp_path / "set", SETTINGS).start()

    with pytest.raises(SetError, match="made with size 64, asked for 128"):
        SetFolder(tmp_path / "set", replace(SETTINGS, size=128))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("sun")

    with pytest.raises(SetError, match="not empty and no set of synthetic hands"):
        SetFolder(tmp_path, SETTINGS)


def run_synth(*words: str) -> int:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return synth.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--count", "0"], "--count must be above 0, got 0"),
        (["--count", "1", "--size", "8"], r"--size must be in 32\.\.2048, got 8"),
        (["--count", "1", "--seed", "-1"], "--seed must not be negative"),
        (["--count", "1", "--workers", "-1"], "--workers must not be negative"),
        (["--count", "1", "--backgrounds", "/no/such"], "/no/such: no such folder"),
        (["--count", "1", "--panoramas", "/no/such"], "/no/such: no such folder"),
        (["--count", "1", "--hand-meshes", "/no/such"], "/no/such: no such folder"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(tmp_path: Path, words: list[str], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        run_synth(*words, "--out", str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_a_folder_without_panoramas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no panoramas in it"):
        run_synth("--count", "1", "--out", str(tmp_path / "set"), "--panoramas", str(tmp_path))


def test_the_command_makes_a_set_and_says_so(
    tmp_path: Path, renderer: Renderer, capsys: pytest.CaptureFixture[str]
) -> None:
    backgrounds = tmp_path / "photos"
    backgrounds.mkdir()
    Image.new("RGB", (80, 60), (10, 200, 30)).save(backgrounds / "green.png")
    words = ["--count", "2", "--out", str(tmp_path / "set"), "--size", "64", "--workers", "0"]

    assert run_synth(*words, "--backgrounds", str(backgrounds)) == 0
    assert "made 2 of 2 pictures" in capsys.readouterr().out
    assert run_synth(*words, "--backgrounds", str(backgrounds)) == 0
    assert "all 2 pictures were there already" in capsys.readouterr().out
    with pytest.raises(RefusedError, match="made with backgrounds"):
        run_synth(*words)
