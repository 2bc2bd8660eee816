"""A picture of many samples with their keypoints drawn in, to look a set over. Reads any COCO-form set of hands."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw

from trainer.errors import RefusedError

_FINGER_COLOURS: Final = ((255, 92, 92), (255, 196, 0), (40, 210, 70), (40, 150, 255), (214, 88, 255))
_CANDIDATES: Final = ("annotations.json", "keypoints.json", "annotations/keypoints.json")


class SheetError(RefusedError):
    """No contact sheet can be made of this; the message names the file and the reason."""


@dataclass(frozen=True)
class SheetLayout:
    """How the sheet looks."""

    columns: int = 8
    rows: int = 4
    tile: int = 192  # pixels
    overlay: bool = True
    plain_too: bool = False  # each picture twice: as it is, then with its keypoints
    zoom: bool = False  # show the surroundings of one hand instead of whole pictures


def find_annotations(path: Path) -> Path:
    """The JSON of a set given by its folder or by the file itself. Raises SheetError."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise SheetError(f"{path}: no such file or folder")
    for name in _CANDIDATES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.json"))
    if len(found) != 1:
        raise SheetError(f"{path}: holds {len(found)} JSON files and no {_CANDIDATES[0]}; name the file")
    return found[0]


def make_sheet(path: Path, layout: SheetLayout, seed: int | None = None) -> Image.Image:
    """A sheet of the set's first pictures, or of random ones for a seed. Raises SheetError."""
    file = find_annotations(path)
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        images = list(document["images"])
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for annotation in document["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise SheetError(f"{file}: not a COCO-form annotation file ({type(error).__name__}: {error})") from error
    if not images:
        raise SheetError(f"{file}: the set is empty")
    places = layout.columns * layout.rows // (2 if layout.plain_too else 1)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(images))[:places]
        images = [images[int(i)] for i in sorted(order)]
    tiles: list[Image.Image] = []
    for image in images[:places]:
        picture = _open(file, str(image["file_name"]))
        hands = by_image.get(image["id"], [])
        plain, drawn = _tile(picture, hands, layout)
        tiles.extend([plain, drawn] if layout.plain_too else [drawn if layout.overlay else plain])
    rows = -(-len(tiles) // layout.columns)
    sheet = Image.new("RGB", (layout.columns * layout.tile, rows * layout.tile), (24, 24, 24))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % layout.columns * layout.tile, number // layout.columns * layout.tile))
    return sheet


def _open(file: Path, name: str) -> Image.Image:
    for place in (file.parent / name, file.parent / "images" / name, file.parent.parent / name):
        if place.is_file():
            try:
                with Image.open(place) as image:
                    return image.convert("RGB")
            except OSError as error:
                raise SheetError(f"{place}: not a readable picture ({error})") from error
    raise SheetError(f"{file.parent / name}: no such picture, named in {file.name}")


def _tile(picture: Image.Image, hands: list[dict[str, Any]], layout: SheetLayout) -> tuple[Image.Image, Image.Image]:
    left, top, side = 0.0, 0.0, float(max(picture.size))
    if layout.zoom and hands:
        x, y, w, h = hands[0]["bbox"]
        side = 1.4 * max(w, h)
        left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    scale = layout.tile / side
    # Draw at twice the size and shrink, for smooth lines.
    fine = layout.tile * 2
    matrix = (side / fine, 0.0, left, 0.0, side / fine, top)
    canvas = picture.transform((fine, fine), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    plain = canvas.resize((layout.tile, layout.tile), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    for hand in hands:
        table = np.array(hand["keypoints"], dtype=np.float64).reshape(-1, 3)
        if len(table) != 21:
            continue
        points = [(float((x - left) * scale * 2), float((y - top) * scale * 2)) for x, y, _ in table]
        for finger, colour in enumerate(_FINGER_COLOURS):
            chain = [0, *range(1 + 4 * finger, 5 + 4 * finger)]
            for a, b in pairwise(chain):
                if table[a, 2] > 0 and table[b, 2] > 0:
                    draw.line([points[a], points[b]], fill=colour, width=3)
            for k in chain:
                x, y = points[k]
                if table[k, 2] >= 2:
                    draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour, outline=(0, 0, 0))
                elif table[k, 2] > 0:
                    draw.ellipse([x - 4, y - 4, x + 4, y + 4], outline=colour, width=2)
        side_of = str(hand.get("handedness", ""))[:1].upper()
        if side_of and "bbox" in hand:
            x, y, w, h = ((float(v)) for v in hand["bbox"])
            corner = ((x - left) * scale * 2, (y - top) * scale * 2)
            far = ((x + w - left) * scale * 2, (y + h - top) * scale * 2)
            draw.rectangle([*corner, *far], outline=(255, 255, 255))
            draw.text(
                (corner[0] + 5, corner[1] + 3),
                side_of,
                fill=(255, 255, 255),
                stroke_width=2,
                stroke_fill=(0, 0, 0),
                font_size=22,
            )
    return plain, canvas.resize((layout.tile, layout.tile), Image.Resampling.LANCZOS)
