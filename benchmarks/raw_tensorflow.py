"""The limit: TensorFlow on ready-made crops in a loop, nothing else.

Prints images per second, and per second of processor time, by batch size, as JSON.

python -m benchmarks.raw_tensorflow model_repo/cpm_lightweight/1 --seconds 5
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_servers.work import Run, input_size, open_model

BATCH_SIZES: Final = (1, 2, 4, 8, 16)


def main() -> int:
    """Measure every batch size, in turn and twice, so that a drift of the machine shows in all of them."""
    parser = argparse.ArgumentParser(description="Images per second of raw TensorFlow calls.")
    parser.add_argument("model", help="a SavedModel's folder")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, metavar="N")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="what convolutions multiply in; auto: as the gateway does (default)",
    )
    parser.add_argument("--at-once", type=int, default=1, help="calls at the same time (default %(default)s)")
    arguments = parser.parse_args()
    sizes: list[int] = list(arguments.batch_sizes)
    at_once: int = arguments.at_once
    bfloat16 = None if arguments.precision == "auto" else arguments.precision == "bfloat16"
    run = open_model(arguments.model, bfloat16=bfloat16, at_once=at_once)
    size = input_size(arguments.model)
    crops = np.random.default_rng(0).integers(0, 256, (max(sizes), size, size, 3), np.uint8)
    images = dict.fromkeys(sizes, 0)
    seconds = dict.fromkeys(sizes, 0.0)
    cpu_seconds = dict.fromkeys(sizes, 0.0)
    for batch_size in sizes:
        run(crops[:batch_size])
    with ThreadPoolExecutor(at_once) as callers:
        for _ in range(2):
            for batch_size in sizes:
                start, cpu = time.perf_counter(), time.process_time()
                until = start + arguments.seconds / 2
                calls = callers.map(_call_until, [run] * at_once, [crops[:batch_size]] * at_once, [until] * at_once)
                images[batch_size] += sum(calls) * batch_size
                seconds[batch_size] += time.perf_counter() - start
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


def rates_in_a_process(
    model: str, seconds: float, batch_sizes: Sequence[int], options: Sequence[str]
) -> dict[str, dict[str, float]]:
    """This command's figures, by batch size: from a process of its own, which alone can choose the precision."""
    command = [sys.executable, "-m", "benchmarks.raw_tensorflow", model, "--seconds", str(seconds)]
    command += ["--batch-sizes", *map(str, batch_sizes), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    result: Any = json.loads(done.stdout.splitlines()[-1])
    return dict(result)


def _call_until(run: Run, crops: NDArray[np.uint8], until: float) -> int:
    """How many calls were made in that time."""
    calls = 0
    while time.perf_counter() < until:
        run(crops)
        calls += 1
    return calls


if __name__ == "__main__":
    sys.exit(main())
