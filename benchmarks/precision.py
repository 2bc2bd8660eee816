"""What multiplying in bfloat16 is worth to the embedded backend, and how far it moves keypoints.

    python -m benchmarks.precision model_repo/cpm_lightweight/1 --data DIR --names '^(96|996)_'

Each precision has processes of its own; they take turns, so that a busy machine slows both.
DIR is a data set in COCO form: each hand is shown in the crop that serving makes of its box. Prints a table and JSON:
images a second by batch size, keypoints' distances between the two in pixels of the input, and, for each, the share of
labelled keypoints whose distance from the label, over the longer side of the hand's box, is below 0.1 and 0.2.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.labelled import find, labelled_box, labelled_hands, shares_near
from benchmarks.peer_servers.work import input_size, open_model
from benchmarks.raw_tensorflow import rates_in_a_process
from benchmarks.report import add_json, show, write_json
from service.pose.images import decode_image
from service.pose.preprocessing import hand_box_to_crop
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
    add_json(parser)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"speed": speeds(arguments.model, arguments.seconds, arguments.rounds)}
    show(
        ["batch size", "bfloat16 over float32, images a second", "by turns"],
        [[size, f"{np.median(each):.2f}", ", ".join(map(str, each))] for size, each in result["speed"].items()],
    )
    if arguments.data is not None:
        result |= differences(arguments.model, labelled_hands(arguments.data, arguments.names)[: arguments.limit])
    write_json(result, arguments.json)
    return 0


def speeds(model: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """bfloat16 over float32, turn by turn, for each batch size."""
    ratios: dict[str, list[float]] = {str(size): [] for size in BATCH_SIZES}
    for number in range(1, rounds + 1):
        print(f"turn {number} of {rounds}", file=sys.stderr, flush=True)
        slow, fast = (
            rates_in_a_process(model, seconds, BATCH_SIZES, ["--precision", precision]) for precision in PRECISIONS
        )
        for size, of_size in ratios.items():
            of_size.append(round(fast[size]["per_second"] / slow[size]["per_second"], 2))
    return ratios


def differences(model: str, samples: list[Sample]) -> dict[str, Any]:
    """How far apart the two find keypoints, in pixels of the input, and how near the labels each does."""
    found = []
    for precision in PRECISIONS:  # TensorFlow takes one precision for the whole of a process
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found.append(process.submit(keypoints_of, model, precision, samples).result())
    size = input_size(model)
    to_input = np.array([size / hand_box_to_crop(labelled_box(sample)).width for sample in samples])[:, None]
    apart = np.linalg.norm(found[0] - found[1], axis=-1) * to_input
    return {
        "hands": len(samples),
        "apart_px_of_input": {str(part): round(float(np.percentile(apart, part)), 3) for part in (50, 99, 100)},
        **{name: shares_near(samples, list(each)) for name, each in zip(PRECISIONS, found, strict=True)},
    }


def keypoints_of(model: str, precision: str, samples: list[Sample]) -> NDArray[np.float64]:
    """Keypoints [N, 21, 2] in the images, each hand in the crop of its box."""
    run, size = open_model(model, bfloat16=precision == "bfloat16"), input_size(model)
    return np.stack(
        [
            find(run, size, decode_image(sample.image_path.read_bytes()), hand_box_to_crop(labelled_box(sample)))[0]
            for sample in samples
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
