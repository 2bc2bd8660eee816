"""Label conventions: sets of another version are refused with both versions named, photos count as current."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.data.coco import read_coco
from trainer.data.label_convention import CURRENT, label_convention
from trainer.data.sample import DataError

SETTINGS = {"seed": 3, "kind": "crop", "version": 1}


def set_with(folder: Path, info: dict[str, Any] | None) -> Path:
    """A set of one labelled hand whose file has this `info`."""
    Image.new("RGB", (64, 64)).save(folder / "hand.png")
    keypoints = [value for number in range(21) for value in (10.5 + number, 40.5 - number, 2)]
    document = {
        "images": [{"id": 1, "file_name": "hand.png"}],
        "annotations": [{"id": 1, "image_id": 1, "keypoints": keypoints}],
    }
    (folder / "annotations.json").write_text(json.dumps(document if info is None else {"info": info, **document}))
    return folder


@pytest.mark.parametrize("info", [None, {"pixel_centre": 0.5}, {"settings": SETTINGS, "label_convention": CURRENT}])
def test_photos_and_sets_of_the_current_convention_are_read(tmp_path: Path, info: dict[str, Any] | None) -> None:
    assert len(read_coco(set_with(tmp_path, info))) == 1


@pytest.mark.parametrize(
    ("info", "version"), [({"settings": SETTINGS}, 1), ({"label_convention": 1}, 1), ({"label_convention": 3}, 3)]
)
def test_a_set_of_another_convention_is_refused_and_both_versions_are_named(
    tmp_path: Path, info: dict[str, Any], version: int
) -> None:
    with pytest.raises(DataError, match=rf"follow convention {version}, this trainer's follow convention {CURRENT}"):
        read_coco(set_with(tmp_path, info))


@pytest.mark.parametrize("version", ["2", 2.0, True])
def test_a_version_that_is_no_whole_number_is_refused(version: Any) -> None:
    with pytest.raises(DataError, match=r"info\.label_convention is a whole number"):
        label_convention({"info": {"label_convention": version}}, Path("annotations.json"))
