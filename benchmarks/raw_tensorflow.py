"""The limit: TensorFlow on ready-made crops in a loop, nothing else.

Prints images per second, and per second of processor time, by batch size, as JSON.

python -m benchmarks.raw_tensorflow model_repo/cpm_lightweight/1 --seconds 5
"""

import argparse
import json
import sys
import time
from typing import Final

import numpy as np

from benchmarks.peer_servers.work import input_size, open_model

BATCH_SIZES: Final = (1, 2, 4, 8, 16)


def main() -> int:
    """Measure every batch size, in turn and twice, so that a drift of the machine shows in all of them."""
    parser = argparse.ArgumentParser(description="Images per second of raw TensorFlow calls.")
    parser.add_argument("model", help="a SavedModel's folder")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, metavar="N")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32"),
        default="auto",
        help="what convolutions multiply in; auto: as the gateway does (default)",
    )
    arguments = parser.parse_args()
    sizes: list[int] = list(arguments.batch_sizes)
    run = open_model(arguments.model, bfloat16=False if arguments.precision == "float32" else None)
    size = input_size(arguments.model)
    crops = np.random.default_rng(0).integers(0, 256, (max(sizes), size, size, 3), np.uint8)
    images = dict.fromkeys(sizes, 0)
    seconds = dict.fromkeys(sizes, 0.0)
    cpu_seconds = dict.fromkeys(sizes, 0.0)
    for batch_size in sizes:
        run(crops[:batch_size])
    for _ in range(2):
        for batch_size in sizes:
            start, cpu = time.perf_counter(), time.process_time()
            while (taken := time.perf_counter() - start) < arguments.seconds / 2:
                run(crops[:batch_size])
                images[batch_size] += batch_size
            seconds[batch_size] += taken
            cpu_seconds[batch_size] += time.process_time() - cpu
    result = {
        str(batch_size): {
            "per_second": round(images[batch_size] / seconds[batch_size], 3),
            "per_cpu_second": round(images[batch_size] / cpu_seconds[batch_size], 3),
        }
        for batch_size in sizes
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
