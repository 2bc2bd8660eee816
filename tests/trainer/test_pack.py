"""Packs: what comes out is trained on as what went in, and is as small as asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer import cli
from trainer.data.augment import NO_AUGMENTATION
from trainer.data.coco import read_coco
from trainer.data.pipeline import ImageStore, make_crop
from trainer.data.sample import Credit, Sample


def write_set(folder: Path, count: int = 3, *, side: int = 300, **fields: Any) -> Path:
    """Photos with one hand each, whose wrist is white; the last hand has a keypoint without a label."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        angles = np.linspace(0, 2 * np.pi, 21, endpoint=False)
        points = np.stack((side / 2 + side / 6 * np.cos(angles), side / 2 + side / 5 * np.sin(angles)), axis=1)
        pixels = np.random.default_rng(number).integers(0, 90, (side, side, 3), dtype=np.uint8)
        x, y = points[0].astype(int)
        pixels[y - 5 : y + 6, x - 5 : x + 6] = 255
        Image.fromarray(pixels).save(folder / f"images/ann_{number}.png")
        images.append(
            {
                "id": number,
                "file_name": f"ann_{number}.png",
                "group": f"people {number}",
                "source": "ann/hands",
                "licence": "CC BY 4.0",
            }
        )
        states = [2] * 20 + [0 if number == count - 1 else 1]
        keypoints = [v for (px, py), state in zip(points.tolist(), states, strict=True) for v in (px, py, state)]
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "bbox": [side / 4, side / 4, side / 2, side / 2],
                "keypoints": keypoints,
                "handedness": "left",
                "spread": 0.01,
                "view": "palm",
                "extended": 4,
                **fields,
            }
        )
    document = {"info": {"pixel_centre": 0.5}, "images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def _about(sample: Sample) -> tuple[Any, ...]:
    return (
        sample.source, sample.name, sample.group, sample.credit, sample.handedness, sample.spread, sample.view,
        sample.extended, sample.labelled.tolist(), sample.visible.tolist(),
    )  # fmt: skip


def test_a_packed_hand_is_known_as_before_and_looks_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_set(tmp_path / "photos")
    assert cli.main(["pack", "--data", f"coco:{photos}", "--out", str(tmp_path / "pack")]) == 0
    assert "3 hands" in capsys.readouterr().out

    before, after = read_coco(photos), read_coco(tmp_path / "pack")
    assert [_about(sample) for sample in after] == [_about(sample) for sample in before]
    assert after[0].credit == Credit("ann/hands", "CC BY 4.0", "ann")
    store = ImageStore()
    for old, new in zip(before, after, strict=True):
        crops = [make_crop(s, store, 64, np.random.default_rng(0), NO_AUGMENTATION) for s in (old, new)]
        np.testing.assert_allclose(crops[1].keypoints_in_input, crops[0].keypoints_in_input, atol=0.1)
        column, row = crops[1].keypoints_in_input[0].astype(int)
        assert crops[1].pixels[row, column].min() > 180


def test_shares_of_the_sets_are_kept(tmp_path: Path) -> None:
    some, others = write_set(tmp_path / "some", 3), write_set(tmp_path / "others", 2)
    data = ["--data", f"coco:{some}@25%", "--data", f"coco:{others}@75%"]
    assert cli.main(["pack", *data, "--out", str(tmp_path / "pack")]) == 0
    weights = dict.fromkeys(("some", "others"), 0.0)
    for sample in read_coco(tmp_path / "pack"):
        weights[sample.source] += sample.weight
    assert weights["others"] / weights["some"] == pytest.approx(3.0, rel=1e-4)


def test_a_pack_is_no_larger_than_asked_and_worse_pictures_make_it_fit(tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", 12)

    def size_at(megabytes: float, out: str) -> int:
        command = ["pack", "--data", f"coco:{photos}", "--out", str(tmp_path / out), "--megabytes", str(megabytes)]
        assert cli.main(command) == 0
        return sum(path.stat().st_size for path in (tmp_path / out).rglob("*") if path.is_file())

    free = size_at(60, "free")
    assert size_at(0.6 * free / 1e6, "tight") <= 0.6 * free


def test_what_cannot_fit_and_a_folder_that_is_not_empty_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_set(tmp_path / "photos")
    command = ["pack", "--data", f"coco:{photos}", "--out", str(tmp_path / "pack")]
    assert cli.main([*command, "--megabytes", "0.001"]) == 2
    assert "do not fit into 1,000 bytes" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(photos)]) == 2
    assert "not empty; name a new folder" in capsys.readouterr().err
    assert cli.main([*command, "--reach", "0.5"]) == 2


def test_a_small_hand_is_not_enlarged(tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", 1, side=100)
    assert cli.main(["pack", "--data", f"coco:{photos}", "--out", str(tmp_path / "pack")]) == 0
    with Image.open(tmp_path / "pack/images/000000.jpg") as picture:
        assert picture.width < 192
