"""A picture of many samples with their keypoints drawn in, to look a set over. Reads any COCO-form set of hands."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw

from trainer.data.coco import annotation_file, annotations_of, find_image, images_by_id, keypoint_orders, load_json
from trainer.data.sample import DataError

_FINGER_COLOURS: Final = ((255, 92, 92), (255, 196, 0), (40, 210, 70), (40, 150, 255), (214, 88, 255))


@dataclass(frozen=True)
class SheetLayout:
    """How the sheet looks."""

    columns: int = 8
    rows: int = 4
    tile: int = 192  # pixels
    overlay: bool = True
    plain_too: bool = False  # each picture twice: as it is, then with its keypoints
    zoom: bool = False  # show the surroundings of one hand instead of whole pictures


def make_sheet(path: Path, layout: SheetLayout, seed: int | None = None) -> Image.Image:
    """A sheet of the set's first pictures, or of random ones for a seed. DataError names the file and the reason."""
    file = annotation_file(path)
    document = load_json(file)
    images = list(images_by_id(document, file).values())
    order_of = keypoint_orders(document)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in annotations_of(document, file):
        try:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        except (KeyError, TypeError):
            raise DataError(f"{file}: an annotation without image_id: {annotation!r:.60}") from None
    if not images:
        raise DataError(f"{file}: the set is empty")
    places = layout.columns * layout.rows // (2 if layout.plain_too else 1)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(images))[:places]
        images = [images[int(i)] for i in sorted(order)]
    tiles: list[Image.Image] = []
    for image in images[:places]:
        picture = _open(find_image(file, image))
        hands = by_image.get(image["id"], [])
        try:
            plain, drawn = _tile(picture, hands, order_of, layout)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: a hand of {image['file_name']} is malformed: {error!r}") from error
        tiles.extend([plain, drawn] if layout.plain_too else [drawn if layout.overlay else plain])
    rows = -(-len(tiles) // layout.columns)
    sheet = Image.new("RGB", (layout.columns * layout.tile, rows * layout.tile), (24, 24, 24))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % layout.columns * layout.tile, number // layout.columns * layout.tile))
    return sheet


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not a readable picture ({error})") from error


def _tile(
    picture: Image.Image,
    hands: list[dict[str, Any]],
    order_of: Callable[[dict[str, Any]], list[int]],
    layout: SheetLayout,
) -> tuple[Image.Image, Image.Image]:
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
        table = table[order_of(hand)]
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
