"""Pictures with labelled hands for tests of the detector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.geometry import Box
from trainer.data.sample import Credit, Handedness
from trainer.detection.labels import LabelledHand, LabelledPicture

UPRIGHT: NDArray[np.float64] = np.array(
    [(0.0, 0.5)] + [(x / 10 - 1.0, y / 4) for x in range(6, 16, 2) for y in (1, 0, -1, -2)]
)
"""A made-up hand of size 1 about (0, 0) that points up: 21 points, the wrist below."""


def hand(x: float, y: float, size: float, *, degrees: float = 0.0, side: Handedness | None = "right") -> LabelledHand:
    """A hand about (x, y), turned clockwise from upright."""
    turn = np.radians(degrees)
    points = UPRIGHT * size
    points = points @ np.array(((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn)))) + (x, y)
    return LabelledHand(points, points[9] - points[0], side)


def picture(
    *hands: LabelledHand,
    ignored: tuple[Box, ...] = (),
    size: tuple[int, int] = (256, 256),
    group: str | None = None,
    name: str = "1.png",
    credit: Credit | None = None,
) -> LabelledPicture:
    return LabelledPicture(Path(name), size, hands, ignored, group, "set", name, credit)


def write_set(folder: Path, pictures: dict[str, list[LabelledHand]], *, side: int = 96, **of_image: Any) -> Path:
    """A data set in COCO form: white discs on noise where hands are, by file name."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side]
    for number, (name, hands) in enumerate(pictures.items(), start=1):
        pixels = rng.integers(0, 100, (side, side, 3)).astype(np.uint8)
        for each in hands:
            centre, size = each.upright_square()
            pixels[(columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < (size / 2) ** 2] = 240
            keypoints = np.column_stack([each.keypoints, np.full(21, 2.0)]).ravel().tolist()
            box = each.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "keypoints": keypoints,
                    "bbox": [box.x, box.y, box.width, box.height],
                    "handedness": each.handedness,
                }
            )
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": side, "height": side, **of_image})
    document = {"info": {"pixel_centre": 0.5}, "images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder
