"""Sets on disk: pictures, masks and one COCO-form JSON; started, stopped and gone on with at will.

While a set is being made, finished samples are noted one a line in `.synth/records.jsonl` (each line is written after
its picture). At the end the notes become `annotations.json` and go away, so a set that was interrupted has the same
bytes as one that was not. Making the samples is `sample`'s part.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from service.pose.keypoints import KEYPOINT_NAMES, SKELETON_EDGES
from trainer.data import label_convention
from trainer.data.synthetic.annotate import OUTSIDE, HandLabel
from trainer.data.synthetic.sample import Sample, SetKind
from trainer.errors import RefusedError

Record = dict[str, Any]

ANNOTATIONS: Final = "annotations.json"
# Goes up whenever the same seed gives other pictures or labels than before.
RENDERING_VERSION: Final = 2
# A hand of which fewer keypoints than this lie in the picture keeps its box, but is no sample for keypoints.
_FEWEST_KEYPOINTS: Final = 3


class SetError(RefusedError):
    """A folder cannot take this set; the message says why and what would do."""


@dataclass(frozen=True)
class SetSettings:
    """Everything that decides a set's bytes besides the number of its pictures."""

    seed: int
    kind: SetKind
    size: int
    masks: bool
    hand_meshes: str = ""  # digests of the folders given; empty where none
    panoramas: str = ""
    backgrounds: str = ""
    version: int = RENDERING_VERSION


def digest_of_files(paths: Iterable[Path], root: Path) -> str:
    """A short digest of names and sizes of files, to notice that a folder is not the one used before."""
    lines = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def image_name(index: int) -> str:
    """File name of a sample's picture below `images`."""
    return f"{index:08d}.jpg"


def write_sample(folder: Path, index: int, sample: Sample, *, masks: bool) -> Record:
    """Write the picture (and mask) of a sample; returns what is to be noted of it."""
    image = Image.fromarray(sample.image)
    _write(folder / "images" / image_name(index), _encoded(image, "JPEG", quality=sample.jpeg_quality, subsampling=2))
    if masks:
        _write(folder / "masks" / f"{index:08d}.png", _encoded(Image.fromarray(sample.mask), "PNG"))
    camera = sample.camera
    return {
        "index": index,
        "width": camera.width,
        "height": camera.height,
        "kind": sample.kind,
        "camera": [round(v, 6) for v in (camera.focal, camera.focal, camera.centre_x, camera.centre_y)],
        "hands": [_hand_record(label) for label in sample.labels],
    }


def _hand_record(label: HandLabel) -> Record:
    flat: list[float | int] = []
    for (x, y), seen in zip(label.keypoints_in_image, label.visibility, strict=True):
        flat.extend((round(float(x), 4), round(float(y), 4), int(seen)))
    return {
        "bbox": [round(v, 3) for v in label.box_in_image],
        "keypoints": flat,
        "num_keypoints": int((label.visibility != OUTSIDE).sum()),
        "handedness": label.handedness,
        "keypoints_3d": [[round(float(v), 7) for v in point] for point in label.keypoints_in_camera],
        "area": label.area,
        "gesture": label.label,
        "instance": label.instance,
    }


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the process dies half-way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


class SetFolder:
    """A set that is being made in a folder."""

    def __init__(self, folder: Path, settings: SetSettings) -> None:
        """Open or go on with a set. Raises SetError when the folder holds another set or other files."""
        self._folder = folder
        self._settings = settings
        self._notes = folder / ".synth"
        self._journal = self._notes / "records.jsonl"
        self.records: dict[int, Record] = {}
        if folder.exists() and not folder.is_dir():
            raise SetError(f"{folder}: is a file, wanted a folder to write to")
        if (self._notes / "settings.json").is_file():
            self._check(json.loads((self._notes / "settings.json").read_text(encoding="utf-8")))
            self._read_journal()
        elif (folder / ANNOTATIONS).is_file():
            self._reopen()
        elif folder.is_dir() and any(folder.iterdir()):
            raise SetError(f"{folder}: not empty and no set of synthetic hands; name a new or empty folder")
        for name in ("images", "masks") if settings.masks else ("images",):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def missing(self, count: int) -> list[int]:
        """Indices below `count` that are still to be made."""
        return [i for i in range(count) if i not in self.records]

    def start(self) -> None:
        """Note the settings, so that the work can be gone on with."""
        self._notes.mkdir(exist_ok=True)
        _write(self._notes / "settings.json", json.dumps(asdict(self._settings)).encode())
        lines = "".join(json.dumps(self.records[i]) + "\n" for i in sorted(self.records))
        _write(self._journal, lines.encode())

    def note(self, records: list[Record]) -> None:
        """Note finished samples."""
        with self._journal.open("a", encoding="utf-8") as file:
            for record in records:
                self.records[record["index"]] = record
                file.write(json.dumps(record) + "\n")

    def finish(self) -> Path:
        """Write `annotations.json` of every sample there is and clear the notes away. Returns its path."""
        path = self._folder / ANNOTATIONS
        document = coco_document(self._settings, [self.records[i] for i in sorted(self.records)])
        _write(path, json.dumps(document, separators=(",", ":")).encode())
        if self._notes.is_dir():
            shutil.rmtree(self._notes)
        for name in ("images", "masks"):
            for left_over in (self._folder / name).glob(".*.tmp"):
                left_over.unlink(missing_ok=True)
        return path

    def _check(self, found: Record) -> None:
        wanted = asdict(self._settings)
        for name, value in wanted.items():
            if found.get(name) != value:
                raise SetError(
                    f"{self._folder}: holds a set made with {name} {found.get(name)!r}, asked for {value!r}; "
                    "use the same settings to go on with it, or another folder"
                )

    def _has_files(self, index: int) -> bool:
        there = (self._folder / "images" / image_name(index)).is_file()
        return there and (not self._settings.masks or (self._folder / "masks" / f"{index:08d}.png").is_file())

    def _read_journal(self) -> None:
        if not self._journal.is_file():
            return
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line being written when the process died
            if self._has_files(record["index"]):
                self.records[record["index"]] = record

    def _reopen(self) -> None:
        """A finished set: take its records back, so that it can grow or be mended."""
        try:
            document = json.loads((self._folder / ANNOTATIONS).read_text(encoding="utf-8"))
            settings = document["info"]["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetError(
                f"{self._folder / ANNOTATIONS}: not a set made by this command; name another folder"
            ) from error
        self._check(settings)
        for record in records_of(document):
            if self._has_files(record["index"]):
                self.records[record["index"]] = record


def coco_document(settings: SetSettings, records: list[Record]) -> Record:
    """The whole annotation file as COCO keypoints, with handedness, 3D points and cameras besides."""
    images: list[Record] = []
    annotations: list[Record] = []
    for record in records:
        index = record["index"]
        images.append(
            {
                "id": index,
                "file_name": f"images/{image_name(index)}",
                "width": record["width"],
                "height": record["height"],
                "kind": record["kind"],
                "camera": record["camera"],
            }
        )
        for hand in record["hands"]:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": 1,
                    "iscrowd": 0 if hand["num_keypoints"] >= _FEWEST_KEYPOINTS else 1,
                    **hand,
                    "camera": record["camera"],
                }
            )
    return {
        "info": {
            "description": "synthetic hands",
            "pixel_centre": 0.5,
            "label_convention": label_convention.CURRENT,
            "units": "pixels; keypoints_3d in metres, camera frame (x right, y down, z forward)",
            "camera": "[fx, fy, cx, cy] in pixels",
            "mask_values": "0 background, 1 arm or body, 255 thing, else the annotation's instance",
            "settings": asdict(settings),
        },
        "categories": [
            {
                "id": 1,
                "name": "hand",
                "keypoints": list(KEYPOINT_NAMES),
                "skeleton": [[a + 1, b + 1] for a, b in SKELETON_EDGES],
            }
        ],
        "images": images,
        "annotations": annotations,
    }


def records_of(document: Record) -> list[Record]:
    """The inverse of `coco_document`."""
    hands: dict[int, list[Record]] = {}
    added = {"id", "image_id", "category_id", "iscrowd", "camera"}
    for annotation in document["annotations"]:
        hands.setdefault(annotation["image_id"], []).append({k: v for k, v in annotation.items() if k not in added})
    return [
        {
            "index": image["id"],
            "width": image["width"],
            "height": image["height"],
            "kind": image["kind"],
            "camera": image["camera"],
            "hands": hands.get(image["id"], []),
        }
        for image in document["images"]
    ]


def bytes_digest(folder: Path) -> str:
    """One digest over names and bytes of every file of a set, to compare two sets."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()
