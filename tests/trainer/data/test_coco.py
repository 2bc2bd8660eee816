"""COCO-form hand keypoints: conventions of several sets, and errors that name the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_NAMES
from trainer.data.coco import read_coco
from trainer.data.rhd import read_mmpose_rhd
from trainer.data.sample import BadSampleError, Credit, DataError, Sample, SkippedSamples

REAL_SAMPLES = Path(os.environ.get("HANDPOSE_REAL_SAMPLES", Path(__file__).parents[4] / "shared/data/real_samples"))


def _keypoints(visibility: int = 2, offset: float = 0.25) -> list[float]:
    return [value for i in range(21) for value in (10 + i + offset, 20 + 2 * i + offset, visibility)]


def _write(folder: Path, annotations: list[dict[str, Any]], *, file: str = "annotations.json", **extra: Any) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 80), (90, 120, 60)).save(folder / "images/a.png")
    document = {
        "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 80}],
        "annotations": [{"id": i, "image_id": 7, **annotation} for i, annotation in enumerate(annotations)],
        **extra,
    }
    (folder / file).write_text(json.dumps(document))
    return folder


def test_fractional_coordinates_are_continuous_and_kept(tmp_path: Path) -> None:
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": _keypoints()}]))
    np.testing.assert_array_equal(sample.keypoints_in_image[3], [13.25, 26.25])
    assert sample.image_path == tmp_path / "images/a.png"
    assert sample.name == "a.png"
    assert sample.source == tmp_path.name


def test_whole_number_coordinates_are_pixel_indices_and_move_to_pixel_centres(tmp_path: Path) -> None:
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": _keypoints(offset=0)}]))
    np.testing.assert_array_equal(sample.keypoints_in_image[3], [13.5, 26.5])


MMPOSE_NAMES = [
    "wrist",
    *(f"{f}{n}" for f in ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger") for n in range(1, 5)),
]


@pytest.mark.parametrize("names", [list(KEYPOINT_NAMES), MMPOSE_NAMES], ids=["ours", "mmpose"])
@pytest.mark.parametrize("named_by", [{"category_id": 4}, {}], ids=["by id", "the only one"])
def test_a_file_that_names_its_keypoints_may_have_them_in_any_order(
    names: list[str], named_by: dict[str, Any], tmp_path: Path
) -> None:
    annotation = {"keypoints": _keypoints(), **named_by}
    category = {"id": 4, "name": "hand", "keypoints": names}
    (as_it_is,) = read_coco(_write(tmp_path / "a", [annotation], categories=[category]))
    (backwards,) = read_coco(_write(tmp_path / "b", [annotation], categories=[{**category, "keypoints": names[::-1]}]))
    np.testing.assert_array_equal(as_it_is.keypoints_in_image[3], [13.25, 26.25])
    np.testing.assert_array_equal(backwards.keypoints_in_image, as_it_is.keypoints_in_image[::-1])


@pytest.mark.parametrize(
    "categories",
    [
        None,
        "hands",
        [3, {"id": 4}],
        [{"id": 4, "keypoints": ["wrist"]}],
        [{"id": 4, "keypoints": [f"k{n}" for n in range(21)]}],
        [{"id": 5, "keypoints": MMPOSE_NAMES[::-1]}, {"id": 6, "keypoints": MMPOSE_NAMES}],
    ],
)
def test_names_that_say_nothing_of_the_order_leave_it_as_it_is(categories: Any, tmp_path: Path) -> None:
    folder = _write(tmp_path, [{"keypoints": _keypoints(), "category_id": 4}], categories=categories)
    np.testing.assert_array_equal(read_coco(folder)[0].keypoints_in_image[3], [13.25, 26.25])


def test_panoptic_is_zero_based_and_keeps_its_head_size(tmp_path: Path) -> None:
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": _keypoints(1), "head_size": 72.5}]))
    np.testing.assert_array_equal(sample.keypoints_in_image[0], [10.75, 20.75])
    assert sample.head_size_px == 72.5


@pytest.mark.parametrize(("pixel_centre", "shift"), [(0, 0.5), (0.5, 0.0)])
def test_the_files_own_word_about_pixel_centres_wins(tmp_path: Path, pixel_centre: float, shift: float) -> None:
    folder = _write(tmp_path, [{"keypoints": _keypoints(offset=0)}], info={"pixel_centre": pixel_centre})
    (sample,) = read_coco(folder)
    np.testing.assert_array_equal(sample.keypoints_in_image[0], [10 + shift, 20 + shift])


def test_visibility_2_is_seen_and_1_is_hidden_where_the_set_tells_them_apart(tmp_path: Path) -> None:
    keypoints = _keypoints(2)
    keypoints[5 * 3 + 2], keypoints[6 * 3 + 2] = 1, 0
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": keypoints}]))
    assert sample.labelled[5]
    assert not sample.visible[5]
    assert not sample.labelled[6]
    np.testing.assert_array_equal(sample.keypoints_in_image[6], [0, 0])


def test_visibility_of_only_0_and_1_says_nothing_about_occlusion(tmp_path: Path) -> None:
    keypoints = _keypoints(1)
    keypoints[2] = 0
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": keypoints}]))
    assert not sample.visible[0]
    assert sample.visible[1:].all()


def test_box_is_tight_about_labelled_keypoints(tmp_path: Path) -> None:
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": _keypoints(), "bbox": [0, 0, 60, 70]}]))
    assert sample.box_in_image == Box(10.25, 20.25, 20.0, 40.0)


def test_the_sets_own_box_is_taken_where_keypoints_are_missing(tmp_path: Path) -> None:
    keypoints = _keypoints(1, offset=0)
    keypoints[2] = 0
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": keypoints, "bbox": [3, 4, 50, 60]}]))
    assert sample.box_in_image == Box(3.5, 4.5, 50.0, 60.0)


@pytest.mark.parametrize(
    ("fields", "hand"),
    [
        ({"handedness": "left"}, "left"),
        ({"handedness_mediapipe_label": "Left"}, "right"),  # MediaPipe assumes a mirrored picture
        ({"handedness": "unknown"}, None),
        ({}, None),
    ],
)
def test_handedness(tmp_path: Path, fields: dict[str, str], hand: str | None) -> None:
    (sample,) = read_coco(_write(tmp_path, [{"keypoints": _keypoints(), **fields}]))
    assert sample.handedness == hand


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": True}])
def test_crowds_and_hands_to_be_ignored_are_left_out(tmp_path: Path, mark: dict[str, Any]) -> None:
    assert len(read_coco(_write(tmp_path, [{"keypoints": _keypoints()}, {"keypoints": _keypoints(), **mark}]))) == 1


def _read_with_image(folder: Path, image: dict[str, Any], **annotation: Any) -> Sample:
    images = [{"id": 7, "file_name": "a.png", **image}]
    (sample,) = read_coco(_write(folder, [{"keypoints": _keypoints(), **annotation}], images=images))
    return sample


def test_what_a_set_tells_of_a_hand_and_its_picture_is_kept(tmp_path: Path) -> None:
    about = {"spread": 0.01, "view": "palm", "extended": 5, "weight": 2}
    sample = _read_with_image(tmp_path, {"group": "people/1"}, **about)
    assert (sample.group, sample.spread, sample.view, sample.extended) == ("people/1", 0.01, "palm", 5)
    assert sample.weight == 2.0
    plain = _read_with_image(tmp_path, {})
    assert (plain.group, plain.spread, plain.view, plain.extended, plain.weight) == (None, None, None, None, 1.0)


@pytest.mark.parametrize(
    ("image", "credit"),
    [
        ({}, None),
        ({"source": "ann/hands", "licence": "CC BY 4.0"}, Credit("ann/hands", "CC BY 4.0", "ann")),
        ({"source_repo": "ann/hands", "licence": "MIT"}, Credit("ann/hands", "MIT", "ann")),
        ({"source": "ann/hands", "licence": "MIT", "author": "Ann B."}, Credit("ann/hands", "MIT", "Ann B.")),
        ({"licence": "CC0"}, Credit("", "CC0")),
    ],
)
def test_source_licence_and_author_of_a_picture_are_kept(
    tmp_path: Path, image: dict[str, Any], credit: Credit | None
) -> None:
    assert _read_with_image(tmp_path, image).credit == credit


def test_a_packed_picture_is_known_by_its_set_and_its_name_there(tmp_path: Path) -> None:
    sample = _read_with_image(tmp_path, {"data_set": "people", "original_name": "ann_1.jpg"})
    assert (sample.source, sample.name) == ("people", "ann_1.jpg")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"keypoints": _keypoints()[:60]}, r"images/a\.png: .* 21 keypoints .*got 60 numbers"),
        ({}, r"images/a\.png: .*got none"),
        ({"keypoints": [0.0] * 63}, r"images/a\.png: fewer than two keypoints"),
        ({"keypoints": [float("nan"), 1, 2] * 21}, r"images/a\.png: "),
        ({"keypoints": _keypoints(), "image_id": 99}, "names image 99, which is not listed"),
        ({"keypoints": _keypoints(), "image_id": [7]}, r"annotations\.json: annotation 0 is malformed: unhashable"),
        ({"keypoints": [None, *_keypoints()[1:]]}, r"images/a\.png: a keypoint is not a finite number"),
        ({"keypoints": ["x", *_keypoints()[1:]]}, r"annotations\.json: annotation 0 is malformed: .*'x'"),
        ({"keypoints": [*_keypoints()[:-1], 0], "bbox": [0, 0, None, 1]}, "annotation 0 is malformed"),
        ({"keypoints": _keypoints(), "head_size": "big"}, "annotation 0 is malformed: .*'big'"),
    ],
)
def test_an_unusable_annotation_is_named_or_skipped(tmp_path: Path, annotation: dict[str, Any], reason: str) -> None:
    folder = _write(tmp_path, [annotation, {"keypoints": _keypoints()}])
    with pytest.raises(BadSampleError, match=reason):
        read_coco(folder)
    skipped = SkippedSamples()
    assert len(read_coco(folder, on_bad=skipped)) == 1
    assert skipped.summary().startswith("left out 1 bad samples: ")


@pytest.mark.parametrize("read", [read_coco, read_mmpose_rhd])
def test_an_annotation_that_is_no_object_is_named_or_skipped(tmp_path: Path, read: Callable[..., list[Sample]]) -> None:
    file = _write(tmp_path, [{"keypoints": _keypoints()}]) / "annotations.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "annotations": [None, *document["annotations"]]}))
    with pytest.raises(BadSampleError, match=r"annotations\.json: annotation number 0 is malformed: .*None"):
        read(tmp_path)
    skipped = SkippedSamples()
    assert len(read(tmp_path, on_bad=skipped)) == 1
    assert len(skipped.reasons) == 1


@pytest.mark.parametrize("read", [read_coco, read_mmpose_rhd])
def test_annotations_in_a_folder_of_their_own_belong_to_the_folder_above(
    tmp_path: Path, read: Callable[..., list[Sample]]
) -> None:
    folder = _write(tmp_path / "photos", [{"keypoints": _keypoints()}])
    (folder / "annotations").mkdir()
    (folder / "annotations.json").rename(folder / "annotations/keypoints.json")
    (sample,) = read(folder)
    assert sample.image_path == folder / "images/a.png"
    if read is read_coco:
        assert sample.source == "photos"


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, [{"keypoints": _keypoints()}])
    (folder / "images/a.png").unlink()
    with pytest.raises(BadSampleError, match=r"a\.png: missing picture"):
        read_coco(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "expected an object"),
        ('{"images": []}', "a list named 'annotations'"),
        ('{"images": [], "annotations": []}', "the set is empty"),
        ('{"images": [{"id": 1}], "annotations": []}', "image number 0 has no file_name"),
        ('{"images": [{"file_name": "a.png"}], "annotations": []}', r"image number 0 \(a.png\) has no id"),
        ('{"images": [], "annotations": [], "info": {"pixel_centre": "x"}}', "pixel_centre is 0 or 0.5, got 'x'"),
    ],
)
def test_a_file_that_is_no_set_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DataError, match=reason) as raised:
        read_coco(tmp_path)
    assert "annotations.json" in str(raised.value)


def test_folder_or_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_coco(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no annotations"):
        read_coco(tmp_path)


def test_a_folder_with_one_json_of_any_name_is_read(tmp_path: Path) -> None:
    folder = _write(tmp_path, [{"keypoints": _keypoints()}], file="test_freihand.json")
    assert len(read_coco(folder)) == 1
    (folder / "second.json").write_text("{}")
    with pytest.raises(DataError, match=r"several \.json files"):
        read_coco(folder)
    assert len(read_coco(folder / "test_freihand.json")) == 1


def test_mmpose_files_are_read_as_they_are() -> None:
    if not REAL_SAMPLES.is_dir():
        pytest.skip("MMPose's samples are not here")
    freihand = read_coco(REAL_SAMPLES / "freihand")
    onehand = read_coco(REAL_SAMPLES / "onehand10k")
    panoptic = read_coco(REAL_SAMPLES / "panoptic")
    assert [len(freihand), len(onehand), len(panoptic)] == [8, 4, 4]
    assert sorted(int(sample.labelled.sum()) for sample in onehand) == [7, 15, 20, 21]
    assert all(sample.head_size_px for sample in panoptic)
    assert (onehand[0].keypoints_in_image[1] == [81.5, 251.5]).all()
    assert freihand[0].keypoints_in_image[0, 0] == pytest.approx(75.09007144965095)
    assert panoptic[0].keypoints_in_image[0].tolist() == [721.5, 224.5]
