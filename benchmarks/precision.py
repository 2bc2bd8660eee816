"""What multiplying in bfloat16 is worth to the embedded backend, and how far it moves keypoints.

    python -m benchmarks.precision model_repo/cpm_lightweight/1 --data DIR --names '^(96|996)_'

Each precision has processes of its own; they take turns, so that a busy machine slows both.
DIR is a data set in COCO form: each hand is shown in the crop that serving makes of its box. Prints a table and JSON:
images a second by batch size, keypoints' distances between the two in pixels of the input, and, for each, the share of
labelled keypoints whose distance from the label, over the longer side of the hand's box, is below 0.1 and 0.2.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.peer_servers.work import Run, input_size, open_model
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import decode_image
from service.pose.preprocessing import crop, hand_box_to_crop
from trainer.data.coco import read_coco
from trainer.data.sample import Sample

PRECISIONS: Final = ("float32", "bfloat16")
BATCH_SIZES: Final = (1, 8)


def main() -> int:
    """Measure both by turns."""
    parser = argparse.ArgumentParser(description="Inference in bfloat16 beside float32.")
    parser.add_argument("model", help="a SavedModel's folder")
    parser.add_argument("--data", type=Path, help="folder of a data set in COCO form (default: speed alone)")
    parser.add_argument("--names", default="", help="regular expression of the pictures' names")
    parser.add_argument("--limit", type=int, default=1000, help="hands at the most (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and turn (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default %(default)s)")
    parser.add_argument("--only", choices=PRECISIONS, help=argparse.SUPPRESS)  # one turn, in a process of its own
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        return one_turn(arguments)
    rates: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    found: dict[str, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, arguments.rounds + 1):
            for precision in PRECISIONS:
                print(f"turn {number} of {arguments.rounds}: {precision}", file=sys.stderr, flush=True)
                into = Path(folder, f"{precision}.npy")
                ask_for_keypoints = arguments.data is not None and number == 1
                command = [sys.executable, "-m", "benchmarks.precision", *sys.argv[1:], "--only", precision]
                command += ["--into", str(into)] if ask_for_keypoints else []
                answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
                rates[precision].append(json.loads(answer.stdout))
                if ask_for_keypoints:
                    found[precision] = np.load(into)
    result: dict[str, Any] = {"speed": speeds(rates)}
    table = Table("batch size", "bfloat16 over float32, images a second", "by turns")
    for size, ratios in result["speed"].items():
        table.add_row(size, f"{np.median(ratios):.2f}", ", ".join(f"{each:.2f}" for each in ratios))
    Console().print(table)
    if found:
        result |= differences(samples_of(arguments), found, input_size(arguments.model))
    print(json.dumps(result))
    return 0


def speeds(rates: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """bfloat16 over float32, turn by turn, for each batch size."""
    return {
        size: [
            round(fast[size] / slow[size], 2) for slow, fast in zip(rates["float32"], rates["bfloat16"], strict=True)
        ]
        for size in map(str, BATCH_SIZES)
    }


def differences(samples: Sequence[Sample], found: dict[str, NDArray[np.float64]], size: int) -> dict[str, Any]:
    """How far the keypoints [N, 21, 2] lie from one another, in pixels of the input, and how near the labels."""
    boxes = [Box.around(sample.keypoints_in_image[sample.labelled]) for sample in samples]
    to_input = np.array([size / hand_box_to_crop(box).width for box in boxes])[:, None]
    apart = np.linalg.norm(found["float32"] - found["bfloat16"], axis=-1) * to_input
    labelled = np.stack([sample.labelled for sample in samples])
    labels = np.stack([sample.keypoints_in_image for sample in samples])
    sides = np.array([max(box.width, box.height) for box in boxes])[:, None]
    result: dict[str, Any] = {
        "hands": len(samples),
        "apart_px_of_input": {str(part): round(float(np.percentile(apart, part)), 3) for part in (50, 99, 100)},
    }
    for precision, keypoints in found.items():
        away = (np.linalg.norm(keypoints - labels, axis=-1) / sides)[labelled]
        result[precision] = {str(limit): round(float((away < limit).mean()), 4) for limit in (0.1, 0.2)}
    return result


def one_turn(arguments: argparse.Namespace) -> int:
    """Images a second of one precision by batch size; and, where they are asked for, the keypoints it finds."""
    run = open_model(arguments.model, bfloat16=arguments.only == "bfloat16")
    if arguments.into is not None:
        np.save(arguments.into, keypoints_of(run, samples_of(arguments), input_size(arguments.model)))
    side = input_size(arguments.model)
    crops = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), side, side, 3), np.uint8)
    rates = {}
    for size in BATCH_SIZES:
        images, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < arguments.seconds:
            run(crops[:size])
            images += size
        rates[str(size)] = images / taken
    print(json.dumps(rates))
    return 0


def samples_of(arguments: argparse.Namespace) -> list[Sample]:
    """Labelled hands whose picture's name matches."""
    samples = [sample for sample in read_coco(arguments.data) if re.search(arguments.names, sample.name)]
    return samples[: arguments.limit]


def keypoints_of(run: Run, samples: Sequence[Sample], size: int) -> NDArray[np.float64]:
    """Keypoints [N, 21, 2] in the images, each hand in the crop of its box."""
    keypoints = []
    for sample in samples:
        image = decode_image(sample.image_path.read_bytes())
        region = hand_box_to_crop(Box.around(sample.keypoints_in_image[sample.labelled]))
        shown = crop(image, region, (size, size))
        keypoints.append(shown.to_image(decode(run(shown.pixels[None])).in_input[0]))
    return np.stack(keypoints)


if __name__ == "__main__":
    sys.exit(main())
