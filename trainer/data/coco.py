"""Reads hand keypoints in COCO form: one JSON of `images` and `annotations` with 21 keypoints a hand, base to tip.

This is the form of the project's own rendered sets, and of the files in which MMPose keeps OneHand10K, FreiHAND and
Panoptic. Fields beyond COCO's that are read, where a set has them:

* of an annotation `handedness`, `spread`, `view`, `extended`, `weight` (`trainer.data.sample.Sample` explains them),
  Panoptic's `head_size`, and `ignore`, which leaves the hand out as `iscrowd` does;
* of an image `group`, `source` (or `source_repo`), `licence` and `author`, and what `pack` writes: `data_set` and
  `original_name`, by which a packed picture goes on to be known.

Visibility follows COCO: 0 not labelled, 1 labelled, 2 labelled and seen. Sets whose numbers are only 0 and 1 mean
"labelled" by 1 and tell nothing about occlusion; there every labelled keypoint counts as visible.

Where a category of the file names the 21 keypoints, in this project's words or in MMPose's, the order of its names
counts, whatever it is. Other names say nothing here: then the order has to be wrist, thumb, index, middle, ring,
little, each from base to tip.

COCO files do not say where the centre of a pixel is. Labels clicked on whole pixels put the centre of the first one at
0; this project puts it at 0.5. The reader adds the difference, and nothing else does. It takes the file's
`info.pixel_centre` (0 or 0.5) if there is one; else a file whose coordinates are all whole
numbers (OneHand10K) and Panoptic's (known by its `head_size`; MMPose writes it zero-based) count pixel centres from 0,
and everything else, FreiHAND with its principal point at half the width included, is continuous already.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_COUNT, KEYPOINT_NAMES
from trainer.data.label_convention import check_label_convention
from trainer.data.sample import BadSampleError, Credit, DataError, Handedness, OnBad, Sample, refuse_bad

_MMPOSE_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_MMPOSE_NAMES = ("wrist", *(f"{finger}{joint}" for finger in _MMPOSE_FINGERS for joint in range(1, 5)))

ANNOTATION_FILES = ("annotations.json", "keypoints.json", "annotations/keypoints.json")
"""Where the JSON is looked for when a folder is given; after these, the only .json file of the folder."""


def read_coco(path: Path, *, source: str | None = None, on_bad: OnBad = refuse_bad) -> list[Sample]:
    """Every annotated hand of a data set in COCO form.

    Args:
        path: the JSON file, or the set's folder. Pictures lie in the set's folder, or in `images` in it.
        source: the name in reports; by default that of the set's folder.
        on_bad: what to do about an unusable annotation.

    Raises:
        DataError: the file is missing, is no COCO keypoint JSON, holds no hand, or its labels follow another convention
            than the trainer's (`trainer.data.label_convention`).
        BadSampleError: an annotation is unusable, unless `on_bad` lets it pass.
    """
    file = annotation_file(path)
    document = load_json(file)
    check_label_convention(document, file)
    images = images_by_id(document, file)
    annotations = annotations_of(document, file)
    well_formed = [annotation for annotation in annotations if isinstance(annotation, dict)]
    shift = shift_to_continuous(document, well_formed, file)
    tells_occlusion = any(2 in _visibility(annotation) for annotation in well_formed)
    source = source or set_folder(file).name
    order_of = keypoint_orders(document)

    def sample(annotation: dict[str, Any]) -> Sample | None:
        if annotation.get("iscrowd") or annotation.get("ignore"):
            return None
        return _sample(
            annotation, images, file, shift, order_of(annotation), source=source, tells_occlusion=tells_occlusion
        )

    return read_each(annotations, sample, file, on_bad)


def read_each(
    annotations: list[Any], read: Callable[[dict[str, Any]], Sample | None], file: Path, on_bad: OnBad
) -> list[Sample]:
    """The samples of a file's annotations; `on_bad` is called for those that `read` cannot use.

    `read` returns None to leave an annotation out silently. Raises DataError if no sample is left.
    """
    samples: list[Sample] = []
    for place, annotation in enumerate(annotations):
        try:
            if not isinstance(annotation, dict):
                raise TypeError(f"expected an object, got {annotation!r:.40}")
            sample = read(annotation)
        except BadSampleError as error:
            on_bad(error)
        except (TypeError, ValueError, OverflowError) as error:  # a value of the wrong kind, somewhere in it
            name = annotation.get("id", f"number {place}") if isinstance(annotation, dict) else f"number {place}"
            on_bad(BadSampleError(f"{file}: annotation {name} is malformed: {error}"))
        else:
            samples.extend([sample] if sample else [])
    if not samples:
        raise DataError(f"{file}: the set is empty: no usable hand among {len(annotations)} annotations")
    return samples


def annotation_file(path: Path) -> Path:
    """The JSON that `path` means: itself, or the one inside the folder. DataError if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    for name in ANNOTATION_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.json"))
    if len(found) == 1:
        return found[0]
    what = "several .json files; name one" if found else f"no annotations (looked for {ANNOTATION_FILES[0]})"
    raise DataError(f"{path}: the folder has {what}")


def load_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. DataError if it is not there or not one."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{file}: expected an object with images and annotations, got a {type(document).__name__}")
    return document


def set_folder(file: Path) -> Path:
    """The folder of the set that a JSON file belongs to: where it lies, or the one above a folder `annotations`."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def images_by_id(document: dict[str, Any], file: Path) -> dict[Any, dict[str, Any]]:
    """The entries of `images` by their id. DataError if one has no id or no file name."""
    images: dict[Any, dict[str, Any]] = {}
    for place, image in enumerate(_list_of(document, "images", file)):
        if not (isinstance(image, dict) and isinstance(image.get("file_name"), str)):
            raise DataError(f"{file}: image number {place} has no file_name")
        if not isinstance(image.get("id"), int | str):
            raise DataError(f"{file}: image number {place} ({image['file_name']}) has no id")
        images[image["id"]] = image
    return images


def find_image(file: Path, image: dict[str, Any]) -> Path:
    """The picture that an `images` entry names. BadSampleError if it is not there."""
    name = str(image["file_name"])
    folder = set_folder(file)
    for place in (folder / "images", folder, file.parent):
        if (place / name).is_file():
            return place / name
    raise BadSampleError(f"{folder / name}: missing picture (also not in {folder / 'images'})")


def _list_of(document: dict[str, Any], key: str, file: Path) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise DataError(f"{file}: expected a list named {key!r}, the keys are {sorted(document)}")
    return value


def annotations_of(document: dict[str, Any], file: Path) -> list[Any]:
    """The entries of `annotations`, unchecked. DataError if there is no such list."""
    return _list_of(document, "annotations", file)


def keypoint_orders(document: dict[str, Any]) -> Callable[[dict[str, Any]], list[int]]:
    """For an annotation of this file: where in its keypoints each of ours stands, by the names of its category.

    An annotation that names no category has that of the only one that says.
    """
    categories = document.get("categories")
    orders: dict[str, list[int]] = {}
    for category in categories if isinstance(categories, list) else ():
        names = category.get("keypoints") if isinstance(category, dict) else None
        for known in (KEYPOINT_NAMES, _MMPOSE_NAMES):
            if isinstance(names, list) and sorted(map(str, names)) == sorted(known):
                orders[str(category.get("id"))] = [names.index(name) for name in known]
    only = next(iter(orders)) if len(orders) == 1 else None
    as_they_are = list(range(KEYPOINT_COUNT))
    return lambda annotation: orders.get(str(annotation.get("category_id", only)), as_they_are)


def _visibility(annotation: dict[str, Any]) -> list[Any]:
    keypoints = annotation.get("keypoints")
    return keypoints[2::3] if isinstance(keypoints, list) else []


def shift_to_continuous(document: dict[str, Any], annotations: list[dict[str, Any]], file: Path) -> float:
    """What to add to the file's coordinates so that the centre of the first pixel is at 0.5."""
    info = document.get("info")
    if isinstance(info, dict) and info.get("pixel_centre") is not None:
        if info["pixel_centre"] not in (0, 0.5):
            raise DataError(f"{file}: info.pixel_centre is 0 or 0.5, got {info['pixel_centre']!r}")
        return 0.5 - float(info["pixel_centre"])
    if annotations and all("head_size" in annotation for annotation in annotations):
        return 0.5
    coordinates = [
        value
        for annotation in annotations
        if isinstance(annotation.get("keypoints"), list)
        for index, value in enumerate(annotation["keypoints"])
        if index % 3 != 2 and isinstance(value, int | float)
    ]
    return 0.5 if coordinates and all(float(value).is_integer() for value in coordinates) else 0.0


def _sample(
    annotation: dict[str, Any],
    images: dict[Any, dict[str, Any]],
    file: Path,
    shift: float,
    order: list[int],
    *,
    source: str,
    tells_occlusion: bool,
) -> Sample:
    image = images.get(annotation.get("image_id"))
    if image is None:
        raise BadSampleError(
            f"{file}: annotation {annotation.get('id')} names image {annotation.get('image_id')}, which is not listed"
        )
    image_path = find_image(file, image)
    values = annotation.get("keypoints")
    if not isinstance(values, list) or len(values) != 3 * KEYPOINT_COUNT:
        count = f"{len(values)} numbers" if isinstance(values, list) else "none"
        raise BadSampleError(
            f"{image_path}: annotation {annotation.get('id')} of {file.name} must hold {KEYPOINT_COUNT} keypoints of "
            f"x, y, visibility ({3 * KEYPOINT_COUNT} numbers), got {count}"
        )
    table = np.array(values, np.float64).reshape(KEYPOINT_COUNT, 3)[order]
    labelled = table[:, 2] > 0
    visible = table[:, 2] > 1 if tells_occlusion else labelled
    keypoints = np.where(labelled[:, None], table[:, :2] + shift, 0.0)
    return Sample(
        image_path=image_path,
        keypoints_in_image=keypoints,
        labelled=labelled,
        visible=visible,
        box_in_image=_box(annotation, keypoints, labelled, shift, image_path),
        handedness=_handedness(annotation),
        source=str(image.get("data_set", source)),
        name=str(image.get("original_name", image["file_name"])),
        head_size_px=float(annotation["head_size"]) if annotation.get("head_size") else None,
        spread=None if annotation.get("spread") is None else float(annotation["spread"]),
        group=_text(image.get("group")),
        view=_text(annotation.get("view")),
        extended=None if annotation.get("extended") is None else int(annotation["extended"]),
        credit=credit_of(image),
        weight=float(annotation.get("weight", 1.0)),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def credit_of(image: dict[str, Any]) -> Credit | None:
    """Where a picture comes from. Of a source "owner/name" the owner counts as author, unless another is named."""
    source = image.get("source") or image.get("source_repo")
    if not source and not image.get("licence"):
        return None
    return Credit(
        source=str(source or ""),
        licence=str(image.get("licence") or ""),
        author=str(image.get("author") or str(source or "").rpartition("/")[0]),
    )


def _box(
    annotation: dict[str, Any],
    keypoints: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    shift: float,
    image_path: Path,
) -> Box:
    """The tight box; but where keypoints are missing, the file's own, which covers them as well."""
    given = annotation.get("bbox")
    if labelled.all() or not isinstance(given, list) or len(given) != 4 or min(given[2:]) <= 0:
        return hand_box(keypoints, labelled, image_path)
    x, y, width, height = (float(value) for value in given)
    return Box(x + shift, y + shift, width, height)


def hand_box(keypoints: NDArray[np.float64], labelled: NDArray[np.bool_], image_path: Path) -> Box:
    """The tight box about the labelled keypoints. BadSampleError if fewer than two are labelled."""
    if labelled.sum() < 2:
        raise BadSampleError(f"{image_path}: fewer than two keypoints are labelled")
    return Box.around(keypoints[labelled])


_HAND_OF_LABEL: dict[str, Handedness] = {"left": "left", "right": "right"}
_HAND_OF_MEDIAPIPE_LABEL: dict[str, Handedness] = {"Left": "right", "Right": "left"}
"""MediaPipe's label assumes a mirrored (selfie) picture, so in an ordinary photo it names the other hand."""


def _handedness(annotation: dict[str, Any]) -> Handedness | None:
    if "handedness" in annotation:
        return _HAND_OF_LABEL.get(str(annotation["handedness"]))
    return _HAND_OF_MEDIAPIPE_LABEL.get(str(annotation.get("handedness_mediapipe_label")))
