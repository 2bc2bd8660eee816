import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.sample import DataError
from trainer.data.synthetic import preview
from trainer.data.synthetic.contact_sheet import SheetLayout, make_sheet
from trainer.errors import RefusedError


def write_set(folder: Path, *, pictures: int = 3, visible: int = 2) -> Path:
    (folder / "images").mkdir(parents=True)
    # A row of its own for each finger.
    keypoints = [v for k in range(21) for v in (20.0 + 4 * k, 50.0 + 10.0 * max(0, (k - 1) // 4), visible)]
    for i in range(pictures):
        Image.new("RGB", (128, 128), (10 * i, 10 * i, 10 * i)).save(folder / "images" / f"{i}.png")
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 128, "height": 128} for i in range(pictures)],
        "annotations": [
            {"id": i, "image_id": i, "keypoints": keypoints, "bbox": [15, 40, 95, 60], "handedness": "left"}
            for i in range(pictures)
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def test_the_sheet_draws_keypoints_where_they_are(tmp_path: Path) -> None:
    layout = SheetLayout(columns=2, rows=2, tile=128)
    sheet = np.asarray(make_sheet(write_set(tmp_path / "set"), layout), dtype=int)

    assert sheet.shape == (256, 256, 3)
    # Keypoint 4 (thumb, reddish) at (36, 50); keypoint 12 (middle finger, green) at (68, 70).
    assert sheet[50, 36, 0] > 180 > sheet[50, 36, 2]
    assert sheet[70, 68, 1] > 150 > sheet[70, 68, 0]
    assert sheet[110, 64].tolist() == [0, 0, 0]


def test_a_plain_sheet_draws_nothing_and_both_shows_each_picture_twice(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    plain = np.asarray(make_sheet(folder, SheetLayout(columns=2, rows=2, tile=64, overlay=False)))
    both = np.asarray(make_sheet(folder, SheetLayout(columns=2, rows=2, tile=64, plain_too=True)))

    assert plain[:64, :64].max() == 0
    assert both[:64, :64].max() == 0
    assert both[:64, 64:].max() > 150


def test_unlabelled_keypoints_are_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", pictures=1, visible=0)
    sheet = np.asarray(make_sheet(folder, SheetLayout(columns=1, rows=1, tile=128)))

    assert sheet[45:95, 24:105].max() < 8


def test_annotations_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "annotations").mkdir()
    (folder / "annotations.json").rename(folder / "annotations" / "keypoints.json")

    assert make_sheet(folder, SheetLayout(columns=3, rows=1, tile=64)).size == (192, 64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "is no JSON"),
        ('{"images": []}', "expected a list named 'annotations'"),
        ('{"images": [], "annotations": [3]}', "an annotation without image_id: 3"),
        ('{"images": [], "annotations": []}', "the set is empty"),
        ('{"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []}', "missing picture"),
    ],
)
def test_unusable_sets_are_refused_with_file_and_reason(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "annotations.json").write_text(content)

    with pytest.raises(DataError, match=rf"{tmp_path}.*{reason}"):
        make_sheet(tmp_path, SheetLayout())


def test_a_malformed_hand_is_refused_with_its_picture(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set", pictures=1) / "annotations.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["keypoints"][0] = "left"
    file.write_text(json.dumps(document))

    with pytest.raises(DataError, match=r"a hand of 0\.png is malformed: .*left"):
        make_sheet(file, SheetLayout())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        make_sheet(tmp_path / "nowhere", SheetLayout())


def test_the_preview_command_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    folder, out = write_set(tmp_path / "set"), tmp_path / "new" / "sheet.png"

    assert preview.run(parser.parse_args([str(folder), "--out", str(out), "--columns", "3", "--rows", "1"])) == 0
    with Image.open(out) as image:
        assert image.size == (3 * 192, 192)
    assert "sheet.png" in capsys.readouterr().out
    with pytest.raises(RefusedError, match=r"written as \.png or \.jpg"):
        preview.run(parser.parse_args([str(folder), "--out", str(tmp_path / "sheet.gif")]))
