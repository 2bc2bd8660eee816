"""What a gateway spends on an image, in processor time: the figure that docs/capacity.md starts from.

    python -m benchmarks.gateway_cost [--image FILE]

A gateway is loaded in front of a stand-in for TensorFlow Serving, and the processor time of the gateway alone counts,
so that it matters little what else the machine does. One crop an image, and batches as large as the load makes them.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import add_json, write_json
from benchmarks.servers import EXAMPLE, gateway, running
from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from service.inference.models import VARIANTS


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured.

    Attributes:
        per_core_second: images in a second of one core's time, a figure for each round.
        resident_bytes: memory at the end of the last round.
        request_bytes: the image with its headers.
        response_bytes: the answer's body.
    """

    per_core_second: list[float]
    resident_bytes: int
    request_bytes: int
    response_bytes: int


def measure(image: bytes, *, input_size: int, concurrency: int, seconds: float, rounds: int) -> Cost:
    """Load a gateway several times, each a fresh one."""
    per_core_second = []
    resident_bytes = request_bytes = response_bytes = 0
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # Ready is a gateway whose models are all there.
            versions = {each: add_version(folder, each, 1, input_size=input_size) for each in VARIANTS}
            config = config_text(folder, {each: ((1,), {"stable": 1}) for each in VARIANTS})
            with StandIn(folder, config) as stand_in:
                server = gateway(
                    str(versions["lightweight"]),
                    BACKEND="tensorflow_serving",
                    TFS_ADDRESSES=stand_in.address,
                )
                with running(server, image) as started:
                    load = started.under_load(concurrency, seconds, keep_bodies=True)
                    resident_bytes, request_bytes = started.resident_bytes(), len(started.request)
        per_core_second.append(round(len(load.good) / load.cpu_s, 1))
        response_bytes = len(load.good[-1].body)
    return Cost(per_core_second, resident_bytes, request_bytes, response_bytes)


def main() -> int:
    """Measure, and print it as JSON."""
    parser = argparse.ArgumentParser(description="Processor time that a gateway spends on an image.")
    parser.add_argument("--image", type=Path, default=EXAMPLE, help="(default: the example, 384 x 384)")
    parser.add_argument("--input-size", type=int, default=128, help="of the model (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    add_json(parser)
    given = parser.parse_args()
    cost = measure(
        given.image.read_bytes(),
        input_size=given.input_size,
        concurrency=given.concurrency,
        seconds=given.seconds,
        rounds=given.rounds,
    )
    write_json({"median": statistics.median(cost.per_core_second), **asdict(cost)}, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
