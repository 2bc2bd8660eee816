"""Two hands side by side: does each answer keep to one hand?

    python -m trainer synth --count 60 --seed 12 --out data/close
    python -m benchmarks.two_hands data/close --url http://127.0.0.1:8000 --sheet two_hands.png

The folder is a COCO set of close crops of single hands. Of the first 24 whose keypoints are all in the picture, every
pair is scaled to the same height and joined side by side: 276 pictures. An answer is of the hand whose keypoints are
nearer on average. It is mixed up if three or more of its keypoints lie more than 0.2 of that hand's size from their
place and nearer to the same keypoint of the other hand.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import add_json, show, write_json
from service.client import Estimate, HandPoseClient, draw

CROPS: Final = 24
HEIGHT: Final = 320
FAR: Final = 0.2
"""Of the hand's size: how far off a keypoint is not its own any more."""
MIXED: Final = 3
"""Keypoints on the other hand that make an answer mixed up."""


@dataclass(frozen=True, slots=True, eq=False)
class CloseCrop:
    """A picture of one hand, `HEIGHT` pixels high, and its keypoints [21, 2] in it."""

    picture: Image.Image
    keypoints: NDArray[np.float64]


def read_crops(folder: Path) -> list[CloseCrop]:
    """The first `CROPS` of the set whose keypoints are all in the picture."""
    document = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    of_image = {annotation["image_id"]: annotation for annotation in document["annotations"]}
    crops: list[CloseCrop] = []
    for image in document["images"]:
        if len(crops) == CROPS:
            break
        table = np.asarray(of_image[image["id"]]["keypoints"], np.float64).reshape(21, 3)
        if (table[:, 2] == 0).any():
            continue
        picture = Image.open(folder / image["file_name"]).convert("RGB")
        scale = HEIGHT / picture.height
        crops.append(CloseCrop(picture.resize((round(picture.width * scale), HEIGHT)), table[:, :2] * scale))
    return crops


def side_by_side(left: CloseCrop, right: CloseCrop) -> tuple[Image.Image, NDArray[np.float64]]:
    """The joined picture, and both hands' keypoints in it, [2, 21, 2]."""
    joined = Image.new("RGB", (left.picture.width + right.picture.width, HEIGHT))
    joined.paste(left.picture, (0, 0))
    joined.paste(right.picture, (left.picture.width, 0))
    return joined, np.stack([left.keypoints, right.keypoints + np.array((left.picture.width, 0))])


def strays(answer: NDArray[np.float64], hands: NDArray[np.float64]) -> tuple[int, int]:
    """Of an answer [21, 2] which of two hands [2, 21, 2] it is, and how many of its keypoints lie on the other one."""
    distances = np.linalg.norm(hands - answer, axis=-1)
    own = int(distances.mean(axis=1).argmin())
    size = float(np.ptp(hands[own], axis=0).max())
    astray = (distances[own] > FAR * size) & (distances[1 - own] < distances[own])
    return own, int(np.count_nonzero(astray))


def main() -> None:
    """Prints the table; writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path, help="folder in COCO form")
    parser.add_argument("--url", required=True, help="a running service")
    parser.add_argument("--variant", help="which model to ask")
    parser.add_argument("--sheet", type=Path, help="where to draw the worst answers")
    add_json(parser)
    arguments = parser.parse_args()
    crops = read_crops(arguments.crops)
    answers = mixed = both = 0
    worst: list[tuple[int, Image.Image, Estimate]] = []
    pairs = list(combinations(crops, 2))
    with HandPoseClient(arguments.url, variant=arguments.variant) as client:
        for pair in pairs:
            picture, hands = side_by_side(*pair)
            estimate = client.estimate(picture)
            found = set()
            for hand in estimate.hands:
                own, astray = strays(np.array([(point.x, point.y) for point in hand.keypoints]), hands)
                found.add(own)
                answers += 1
                mixed += astray >= MIXED
                worst.append((astray, picture, estimate))
            both += len(found) == 2
    show(
        ("", "count", "share"),
        [
            ("pictures in which both hands were found", f"{both} of {len(pairs)}", f"{both / len(pairs):.3f}"),
            ("answers that are mixed up", f"{mixed} of {answers}", f"{mixed / max(1, answers):.3f}"),
        ],
    )
    if arguments.sheet:
        worst.sort(key=lambda each: -each[0])
        _sheet([draw(picture, estimate) for _, picture, estimate in worst[:24]]).save(arguments.sheet)
    write_json({"pictures": len(pairs), "both": both, "answers": answers, "mixed": mixed}, arguments.json)


def _sheet(pictures: list[Image.Image], columns: int = 4) -> Image.Image:
    width, height = max(each.width for each in pictures), max(each.height for each in pictures)
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet


if __name__ == "__main__":
    main()
