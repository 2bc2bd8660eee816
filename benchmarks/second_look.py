"""What a second look is worth: keypoints near the labels when whole pictures are asked about, once and twice.

    python -m benchmarks.second_look model_repo/cpm_lightweight/1 DIR --names '^(96|996)_'

DIR is a data set in COCO form; of it, pictures that show one labelled hand, and whose names match. Beside the two,
what a roi from the labels gives, which is the most that a better place to look could give. Prints a table and JSON:
shares of keypoints whose distance from the label, over the longer side of the hand's box, is below 0.1 and 0.2.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.labelled import NEAR, find, labelled_box, labelled_hands, shares_near
from benchmarks.peer_servers.work import Run, input_size, open_model
from benchmarks.report import add_json, show, write_json
from service.pose.geometry import Box
from service.pose.images import DecodedImage, decode_image
from service.pose.preprocessing import hand_box_to_crop
from service.pose.second_look import ENOUGH, LEAST_SHARE, region_to_look_closer, small_copy

LOOKS = ("whole picture", "and a second look", "roi from the labels")


def main() -> int:
    """Ask about every picture in the three ways."""
    parser = argparse.ArgumentParser(description="What a second look at whole pictures is worth.")
    parser.add_argument("model", help="a SavedModel's folder")
    parser.add_argument("data", type=Path, help="folder of a data set in COCO form")
    parser.add_argument("--names", default="", help="regular expression of the pictures' names")
    parser.add_argument("--limit", type=int, default=200, help="pictures at the most (default %(default)s)")
    add_json(parser)
    arguments = parser.parse_args()
    hands = labelled_hands(arguments.data, arguments.names)
    hands_of = Counter(sample.image_path for sample in hands)
    samples = [sample for sample in hands if hands_of[sample.image_path] == 1][: arguments.limit]
    run, size = open_model(arguments.model), input_size(arguments.model)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in LOOKS}
    shares = []
    for sample in track(samples, "pictures", transient=True):
        image = decode_image(sample.image_path.read_bytes())
        box = labelled_box(sample)
        shares.append(max(box.width, box.height) / max(image.width, image.height))
        for name, keypoints in zip(LOOKS, look(run, size, image, box), strict=True):
            found[name].append(keypoints)
    near = {name: shares_near(samples, keypoints) for name, keypoints in found.items()}
    show(
        ["", *(f"< {limit}" for limit in NEAR)], [[name, *map("{:.3f}".format, near[name].values())] for name in LOOKS]
    )
    result: dict[str, Any] = {
        "pictures": len(samples),
        "hand_over_picture": {str(part): round(float(np.percentile(shares, part)), 3) for part in (5, 50, 95)},
    }
    write_json(result | near, arguments.json)
    return 0


def look(run: Run, size: int, image: DecodedImage, box: Box) -> tuple[NDArray[np.float64], ...]:
    """Keypoints [21, 2] in the image for each of `LOOKS`."""
    held = small_copy(image, math.ceil(ENOUGH * size))
    first, scores = find(run, size, held, Box(0.0, 0.0, float(image.width), float(image.height)))
    second = first
    region = region_to_look_closer(first, scores, (image.width, image.height))
    if region is not None:
        closer, closer_scores = find(run, size, held, region)
        if closer_scores.mean() >= LEAST_SHARE * scores.mean():
            second = closer
    return first, second, find(run, size, image, hand_box_to_crop(box))[0]


if __name__ == "__main__":
    sys.exit(main())
