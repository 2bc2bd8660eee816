"""Packs data sets into one folder of limited size: each hand's surroundings as a JPEG, labels and origin kept.

    python -m trainer pack --data coco:PHOTOS@60% --data coco:RENDERS@40% --out pack
    python -m trainer train --config photos --data coco:pack --holdout REGEX --run mine

For a machine that a few dozen megabytes can be sent to. A packed hand goes on to be known by its set's name and its
picture's, so that hold-out rules and records mean the same; it keeps `group`, `spread`, `view`, `extended`, source,
licence and author; and its annotation's `weight` keeps how often it is drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from service.pose.geometry import Box, crop_affine
from service.pose.keypoints import KEYPOINT_NAMES
from service.pose.preprocessing import hand_box_to_crop, show
from trainer.data import label_convention
from trainer.data.pipeline import ImageStore
from trainer.data.sample import OnBad, Sample, SkippedSamples, refuse_bad
from trainer.data.sources import Source, WeightedSamples, read_sources
from trainer.errors import RefusedError

ANNOTATIONS: Final = "annotations.json"
_QUALITIES: Final = (92, 88, 84, 80, 75, 70, 60, 50)
_SAMPLED: Final = 200  # hands that the size is estimated from
_HEADROOM: Final = 0.97


@dataclass(frozen=True, slots=True)
class PackedHand:
    """One hand cut out of its picture.

    Attributes:
        jpeg: the file's content.
        image, annotation: its entries in the COCO file.
    """

    jpeg: bytes
    image: dict[str, Any]
    annotation: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes that it takes, labels included."""
        return len(self.jpeg) + len(_compact(self.image)) + len(_compact(self.annotation)) + 2


def pack_hand(
    sample: Sample, weight: float, number: int, store: ImageStore, *, reach: float, side: int, quality: int
) -> PackedHand:
    """Cuts a hand out.

    Args:
        sample: the hand.
        weight: how often it is drawn.
        number: of the hand in the pack.
        store: of the pictures.
        reach: side of what is cut out, over that of serving's crop.
        side: largest side of the JPEG in pixels; a smaller region keeps its own.
        quality: of the JPEG.
    """
    region = hand_box_to_crop(sample.box_in_image).scaled(reach)
    side = max(8, min(side, round(region.width)))
    to_cut = crop_affine(region, (side, side))
    file = io.BytesIO()
    pixels = show(store.get(sample.image_path), to_cut, (side, side))
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    keypoints = np.where(sample.labelled[:, None], to_cut.apply(sample.keypoints_in_image), 0.0)
    states = np.where(sample.visible, 2, 1) * sample.labelled
    image = {
        "id": number,
        "file_name": f"images/{number:06d}.jpg",
        "width": side,
        "height": side,
        "data_set": sample.source,
        "original_name": sample.name,
        "group": sample.group,
    }
    if sample.credit is not None:
        image |= {"source": sample.credit.source, "licence": sample.credit.licence, "author": sample.credit.author}
    annotation = {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "bbox": _rounded_box(sample.box_in_image, to_cut.scale, to_cut.apply(np.array(sample.box_in_image.centre))),
        "keypoints": [
            value
            for (x, y), state in zip(keypoints.round(2).tolist(), states.tolist(), strict=True)
            for value in (x, y, state)
        ],
        "handedness": sample.handedness,
        "spread": sample.spread,
        "view": sample.view,
        "extended": sample.extended,
        "head_size": None if sample.head_size_px is None else round(sample.head_size_px * to_cut.scale, 2),
        "weight": float(f"{weight:.6g}"),
    }
    return PackedHand(file.getvalue(), _without_none(image), _without_none(annotation))


def _rounded_box(box: Box, scale: float, centre: Any) -> list[float]:
    width, height = box.width * scale, box.height * scale
    return [round(float(v), 2) for v in (centre[0] - width / 2, centre[1] - height / 2, width, height)]


def _without_none(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def quality_that_fits(data: WeightedSamples, store: ImageStore, limit_bytes: int, *, reach: float, side: int) -> int:
    """The best JPEG quality at which all hands fit, estimated from some. RefusedError if none does."""
    places = np.unique(np.linspace(0, len(data) - 1, min(_SAMPLED, len(data))).astype(int)).tolist()
    each = 0.0
    for quality in _QUALITIES:
        sizes = [
            pack_hand(data.samples[i], data.weights[i], i, store, reach=reach, side=side, quality=quality).size
            for i in places
        ]
        each = float(np.mean(sizes))
        if each * len(data) <= _HEADROOM * limit_bytes:
            return quality
    raise RefusedError(
        f"{len(data)} hands of about {each:,.0f} bytes do not fit into {limit_bytes:,} bytes at --side {side}: "
        "make --side or --reach smaller, or leave data out"
    )


def write_pack(folder: Path, hands: Iterator[PackedHand], limit_bytes: int) -> tuple[int, int]:
    """Writes hands and `annotations.json` into a folder that is new or empty.

    Returns:
        How many hands, and how many bytes.

    Raises:
        RefusedError: the folder holds files, or the limit is passed; what is written stays without annotations.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefusedError(f"{folder}: not empty; name a new folder for the pack")
    (folder / "images").mkdir(parents=True)
    images, annotations, size = [], [], 0
    for hand in hands:
        (folder / str(hand.image["file_name"])).write_bytes(hand.jpeg)
        images.append(hand.image)
        annotations.append(hand.annotation)
        size += len(hand.jpeg)
    content = _compact(
        {
            "info": {
                "description": "hands cut out of other data sets",
                "pixel_centre": 0.5,
                "label_convention": label_convention.CURRENT,
            },
            "categories": [{"id": 1, "name": "hand", "keypoints": list(KEYPOINT_NAMES)}],
            "images": images,
            "annotations": annotations,
        }
    ).encode()
    size += len(content)
    if size > limit_bytes:
        raise RefusedError(f"{folder}: {size:,} bytes, more than {limit_bytes:,}: give a smaller --side or --megabytes")
    (folder / ANNOTATIONS).write_bytes(content)
    return len(images), size


def packed(data: WeightedSamples, store: ImageStore, *, reach: float, side: int, quality: int) -> Iterator[PackedHand]:
    """All hands, in order."""
    pairs: Sequence[tuple[Sample, float]] = list(zip(data.samples, data.weights, strict=True))
    console = Console(stderr=True)
    for number, (sample, weight) in enumerate(track(pairs, "packing", console=console, transient=True)):
        yield pack_hand(sample, weight, number, store, reach=reach, side=side, quality=quality)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pack`."""
    parser.add_argument(
        "--data", required=True, action="append", metavar="KIND:PATH[@WEIGHT]", help="as in `train`; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--megabytes", type=float, default=60.0, help="largest size (default: %(default)g)")
    parser.add_argument(
        "--side", type=int, default=192, metavar="PX", help="largest side of a picture (default: %(default)s)"
    )
    parser.add_argument(
        "--reach",
        type=float,
        default=1.6,
        help="side of what is kept over that of serving's crop: room for augmentation (default: %(default)g)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable samples out, and count them")


def run(arguments: argparse.Namespace) -> int:
    """Packs, and says how large the result is."""
    if arguments.megabytes <= 0 or arguments.side < 32 or arguments.reach < 1.0:
        raise RefusedError("--megabytes must be positive, --side at least 32 and --reach at least 1")
    skipped = SkippedSamples()
    on_bad: OnBad = skipped if arguments.skip_bad else refuse_bad
    data = read_sources([Source.parse(text) for text in arguments.data], on_bad)
    if skipped.reasons:
        print(skipped.summary(), file=sys.stderr)
    store, limit = ImageStore(memory_bytes=0), round(1e6 * arguments.megabytes)
    shape = {"reach": arguments.reach, "side": arguments.side}
    quality = quality_that_fits(data, store, limit, **shape)
    count, size = write_pack(arguments.out, packed(data, store, **shape, quality=quality), limit)
    print(f"{arguments.out}: {count} hands, {size / 1e6:.1f} MB, JPEG quality {quality}")
    return 0
