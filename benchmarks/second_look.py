"""What a second look is worth: keypoints near the labels when whole pictures are asked about, once and twice.

    python -m benchmarks.second_look model_repo/cpm_lightweight/1 DIR --names '^(96|996)_'

DIR is a data set in COCO form; of it, pictures that show one labelled hand, and whose names match. Beside the two,
what a roi from the labels gives, which is the most that a better place to look could give. Prints a table and JSON:
shares of keypoints whose distance from the label, over the longer side of the hand's box, is below 0.1 and 0.2.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_servers.work import Run, input_size, open_model
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import DecodedImage, decode_image
from service.pose.preprocessing import crop, hand_box_to_crop
from service.pose.second_look import ENOUGH, LEAST_SHARE, region_to_look_closer, small_copy
from trainer.data.coco import read_coco
from trainer.data.sample import Sample

LOOKS = ("whole picture", "and a second look", "roi from the labels")


def main() -> int:
    """Ask about every picture in the three ways."""
    parser = argparse.ArgumentParser(description="What a second look at whole pictures is worth.")
    parser.add_argument("model", help="a SavedModel's folder")
    parser.add_argument("data", type=Path, help="folder of a data set in COCO form")
    parser.add_argument("--names", default="", help="regular expression of the pictures' names")
    parser.add_argument("--limit", type=int, default=200, help="pictures at the most (default %(default)s)")
    arguments = parser.parse_args()
    samples = single_hands(read_coco(arguments.data), arguments.names)[: arguments.limit]
    if not samples:
        parser.error(f"{arguments.data} has no picture of one hand whose name matches {arguments.names!r}")
    run, size = open_model(arguments.model), input_size(arguments.model)
    distances: dict[str, list[NDArray[np.float64]]] = {name: [] for name in LOOKS}
    shares = []
    for number, sample in enumerate(samples, start=1):
        image = decode_image(sample.image_path.read_bytes())
        box = Box.around(sample.keypoints_in_image[sample.labelled])
        side = max(box.width, box.height)
        shares.append(side / max(image.width, image.height))
        for name, points in zip(LOOKS, look(run, size, image, box), strict=True):
            away = np.linalg.norm(points - sample.keypoints_in_image, axis=-1)[sample.labelled]
            distances[name].append(away / side)
        print(f"\r{number} of {len(samples)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result: dict[str, Any] = {
        "pictures": len(samples),
        "hand_over_picture": {str(part): round(float(np.percentile(shares, part)), 3) for part in (5, 50, 95)},
    }
    print(f"{'':22}{'< 0.1':>8}{'< 0.2':>8}")
    for name in LOOKS:
        away = np.concatenate(distances[name])
        near = {str(limit): round(float((away < limit).mean()), 3) for limit in (0.1, 0.2)}
        result[name] = near
        print(f"{name:22}{near['0.1']:8.3f}{near['0.2']:8.3f}")
    print(json.dumps(result))
    return 0


def single_hands(samples: Sequence[Sample], names: str) -> list[Sample]:
    """Samples whose picture shows no other labelled hand and whose name matches."""
    hands = Counter(sample.image_path for sample in samples)
    return [sample for sample in samples if hands[sample.image_path] == 1 and re.search(names, sample.name)]


def look(run: Run, size: int, image: DecodedImage, box: Box) -> tuple[NDArray[np.float64], ...]:
    """Keypoints [21, 2] in the image for each of `LOOKS`."""
    held = small_copy(image, math.ceil(ENOUGH * size))
    first, scores = _ask(run, size, held, Box(0.0, 0.0, float(image.width), float(image.height)))
    second = first
    region = region_to_look_closer(first, scores, (image.width, image.height))
    if region is not None:
        closer, closer_scores = _ask(run, size, held, region)
        if closer_scores.mean() >= LEAST_SHARE * scores.mean():
            second = closer
    with_roi, _ = _ask(run, size, image, hand_box_to_crop(box))
    return first, second, with_roi


def _ask(run: Run, size: int, image: DecodedImage, region: Box) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    shown = crop(image, region, (size, size))
    found = decode(run(shown.pixels[None]))
    return shown.to_image(found.in_input[0]), found.scores[0]


if __name__ == "__main__":
    sys.exit(main())
