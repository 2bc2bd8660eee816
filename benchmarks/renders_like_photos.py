"""How alike are rendered hands and photos? The share of pictures in which MediaPipe Hands finds the labelled hand.

    python -m venv .venv-mediapipe && .venv-mediapipe/bin/pip install mediapipe==0.10.21
    python -m benchmarks.renders_like_photos --python .venv-mediapipe/bin/python data/renders data/photos

MediaPipe's packages do not fit this project's, so an environment of its own is named with `--python`. A hand counts as
found if half of its keypoints lie within a tenth of its size. Pictures are taken whole, so give close crops (`synth`
without `--kind`) on one side and photos of single hands on the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

# Run by the other interpreter. In: a list of pictures with their hands. Out: for each the nearest median distance.
PROGRAM = """
import json, sys
import mediapipe, numpy
from PIL import Image

hands = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.5)
answers = []
for picture in json.load(sys.stdin):
    pixels = numpy.asarray(Image.open(picture["path"]).convert("RGB"))
    nearest = None
    for found in hands.process(pixels).multi_hand_landmarks or ():
        points = numpy.array([(p.x * pixels.shape[1], p.y * pixels.shape[0]) for p in found.landmark])
        for hand in picture["hands"]:
            true = numpy.array(hand)
            distance = float(numpy.median(numpy.linalg.norm(points - true, axis=1)) / numpy.ptp(true, axis=0).max())
            nearest = distance if nearest is None else min(nearest, distance)
    answers.append(nearest)
json.dump(answers, sys.stdout)
"""


def pictures_of(folder: Path, count: int) -> list[dict[str, Any]]:
    """Pictures of a COCO set, evenly spread over it, with the fully labelled hands in each."""
    document = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    hands: dict[Any, list[list[list[float]]]] = {}
    for annotation in document["annotations"]:
        values = annotation["keypoints"]
        if not annotation.get("iscrowd") and all(values[2::3]):
            points = [list(point) for point in zip(values[::3], values[1::3], strict=True)]
            hands.setdefault(annotation["image_id"], []).append(points)
    images = [image for image in document["images"] if image["id"] in hands]
    chosen = [images[i * len(images) // count] for i in range(count)] if count < len(images) else images
    places = ((image, folder / "images" / image["file_name"]) for image in chosen)
    return [
        {
            "path": str(place if place.is_file() else folder / image["file_name"]),
            "hands": hands[image["id"]],
        }
        for image, place in places
    ]


def main() -> None:
    """Prints a line for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", help="folders in COCO form")
    parser.add_argument("--python", required=True, help="interpreter of an environment with mediapipe and Pillow")
    parser.add_argument("--count", type=int, default=200, help="pictures of each set (default: %(default)s)")
    arguments = parser.parse_args()
    for folder in arguments.sets:
        pictures = pictures_of(folder, arguments.count)
        process = subprocess.run(
            [arguments.python, "-c", PROGRAM],
            input=json.dumps(pictures),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        answers = json.loads(process.stdout)
        found = sorted(answer for answer in answers if answer is not None and answer < 0.1)
        middle = f"{found[len(found) // 2]:.3f}" if found else "-"
        share = len(found) / len(answers)
        print(f"{folder}: found {len(found)} of {len(answers)} ({share:.2f}), median distance over size {middle}")


if __name__ == "__main__":
    main()
