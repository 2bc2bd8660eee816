"""The gateway beside other Python model servers: same model, pictures, machine and load, in one run.

    python -m benchmarks.peers saturation model_repo/cpm_lightweight/1
    python -m benchmarks.peers overhead
    python -m benchmarks.peers footprint

`saturation`: images per second with a real model and more clients than it can serve, beside raw TensorFlow calls on
ready-made crops (the limit): in float32, as TensorFlow computes by itself; in the precision that all the servers have
here, which is bfloat16 where that is quicker; and so, but two calls at the same time, as the gateway makes them.
`overhead`: what remains without a model: latency added to one that takes 10 ms, and requests per second of processor
time with one that takes none. `footprint`: memory and start by backend.

The peers live in a virtual environment of their own:

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt tensorflow numpy pillow pydantic uvloop httptools fastapi uvicorn
    .venv-peers/bin/pip install -r benchmarks/peers.txt

Servers run one after the other, in several rounds, and the median of the rounds counts. Numbers of two runs, or of two
machines, are not for comparing: look at the ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.load import Summary
from benchmarks.peer_servers.work import MAX_BATCH_SIZE, open_model
from benchmarks.raw_tensorflow import BATCH_SIZES, rates_in_a_process
from benchmarks.report import add_json, write_json
from benchmarks.servers import EXAMPLE, ROOT, Server, gateway, peers, running

RAW_KINDS: Final = {  # arguments of `benchmarks.raw_tensorflow`
    "float32": ("--precision", "float32"),
    "auto": ("--precision", "auto"),
    "auto_two_at_once": ("--precision", "auto", "--at-once", "2"),
}
CONSTANT_MS: Final = 10.0


@dataclass
class Measured:
    """One server's rounds."""

    name: str
    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failures: int = 0

    def row(self) -> dict[str, Any]:
        """Medians over the rounds."""
        return {
            "server": self.name,
            "per_second": round(statistics.median(self.per_second), 2),
            "per_cpu_second": round(statistics.median(self.per_cpu_second), 1),
            "p50_ms": round(statistics.median(self.p50_ms), 2),
            "p99_ms": round(statistics.median(self.p99_ms), 2),
            "failures": self.failures,
        }


def measure(
    server: Server, image: bytes, into: Measured, *, concurrency: int, seconds: float, warm_up_s: float
) -> None:
    """Start a server, load it, and note what came back."""
    with running(server, image) as started:
        load = started.under_load(concurrency, seconds, warm_up_s=warm_up_s)
    summary = Summary.of(server.name, load.answers, seconds)
    into.failures += len(load.answers) - len(load.good)
    into.per_second.append(summary.per_second)
    into.per_cpu_second.append(summary.per_second * load.lasted_s / load.cpu_s)
    into.p50_ms.append(summary.latency_ms["p50"])
    into.p99_ms.append(summary.latency_ms["p99"])


def compare(
    servers: Sequence[Server],
    image: bytes,
    *,
    concurrency: int,
    seconds: float,
    rounds: int,
    warm_up_s: float = 3.0,
    before_each_round: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Every server under the same load, in turn."""
    measured = {server.name: Measured(server.name) for server in servers}
    for number in range(1, rounds + 1):
        before_each_round()
        for server in servers:
            print(f"round {number} of {rounds}: {server.name}", file=sys.stderr, flush=True)
            measure(
                server,
                image,
                measured[server.name],
                concurrency=concurrency,
                seconds=seconds,
                warm_up_s=warm_up_s,
            )
    return [each.row() for each in measured.values()]


def saturation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second with the real model, over those of raw calls."""
    image = arguments.image.read_bytes()
    raw: dict[str, list[dict[str, dict[str, float]]]] = {kind: [] for kind in RAW_KINDS}

    def measure_raw() -> None:
        for kind, runs in raw.items():
            print(f"raw TensorFlow calls, {kind}", file=sys.stderr, flush=True)
            runs.append(rates_in_a_process(arguments.model, arguments.seconds, arguments.raw_sizes, RAW_KINDS[kind]))

    rows = compare(
        [
            gateway(arguments.model, MAX_BATCH_SIZE=str(arguments.max_batch_size)),
            *_wanted(peers(arguments.model, arguments.max_batch_size, arguments.inference_workers), arguments),
        ],
        image,
        concurrency=arguments.concurrency,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        before_each_round=measure_raw,
    )
    measure_raw()
    limits: dict[str, dict[str, float]] = {}
    for kind, runs in raw.items():
        sizes = {
            size: {key: statistics.median(run[size][key] for run in runs) for key in ("per_second", "per_cpu_second")}
            for size in runs[0]
        }
        best = max(sizes, key=lambda size: sizes[size]["per_second"])
        limits[kind] = {**sizes[best], "batch_size": int(best)}
    for row in rows:
        for key in ("per_second", "per_cpu_second"):
            for kind, limit in limits.items():
                row[f"{key}_over_raw_{kind}"] = round(row[key] / limit[key], 3)
            row[f"{key}_over_gateway"] = round(row[key] / rows[0][key], 3)
    return {"raw": limits, "servers": rows}


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the servers cost beside the model."""
    image, size = arguments.image.read_bytes(), arguments.input_size
    constant, null = f"constant:{CONSTANT_MS:g}@{size}", f"null@{size}"
    one = compare(
        [gateway(constant), *_wanted(peers(constant), arguments)],
        image,
        concurrency=1,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
    )
    call_ms = _call_ms(constant, size)
    for row in one:
        row["added_ms"] = round(row["p50_ms"] - call_ms, 2)
    many = compare(
        [gateway(null), *_wanted(peers(null), arguments)],
        image,
        concurrency=arguments.concurrency,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
    )
    for row in many:
        row["per_core_over_gateway"] = round(row["per_cpu_second"] / many[0]["per_cpu_second"], 3)
    return {
        "input_size": size,
        "call_ms": call_ms,
        "constant_10_ms": one,
        "null": many,
    }


def footprint(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Importing what each backend needs: seconds and resident bytes of a fresh process."""
    imports = {
        "gateway's own messages": "import service.backends.tensorflow_serving.backend",
        "official stubs": "import grpc, numpy; from tensorflow_serving.apis import predict_pb2",
        "embedded": "import service.backends.savedmodel",
    }
    program = (
        "import time; start = time.perf_counter(); {}; took = time.perf_counter() - start; import os;"
        "resident = int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE');"
        "import json; print(json.dumps([took, resident]))"
    )
    result = {}
    for name, statement in imports.items():
        runs = [_json_of([sys.executable, "-c", program.format(statement)]) for _ in range(3)]
        result[name] = {"seconds": statistics.median(run[0] for run in runs), "bytes": runs[-1][1]}
    own = result["gateway's own messages"]
    for each in result.values():
        each["seconds_over_own"] = round(each["seconds"] / own["seconds"], 1)
        each["bytes_over_own"] = round(each["bytes"] / own["bytes"], 1)
    return result


def _wanted(servers: Sequence[Server], arguments: argparse.Namespace) -> list[Server]:
    return [server for server in servers if not arguments.only or server.name in arguments.only]


def _json_of(command: Sequence[str]) -> Any:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _call_ms(constant: str, size: int) -> float:
    """Median milliseconds of a call of the constant model, alone; it sleeps a little longer than it is told to."""
    run, crop = open_model(constant), np.zeros((1, size, size, 3), np.uint8)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        run(crop)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1000, 3)


def main() -> int:
    """Run one comparison and print it."""
    parser = argparse.ArgumentParser(description="The gateway beside other Python model servers.")
    commands = parser.add_subparsers(dest="command", required=True)
    functions: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "saturation": saturation,
        "overhead": overhead,
        "footprint": footprint,
    }
    for name, function in functions.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        add_json(command)
        if name == "footprint":
            continue
        if name == "saturation":
            command.add_argument("model", help="a SavedModel's folder: model_repo/cpm_lightweight/1")
            command.add_argument(
                "--max-batch-size", type=int, default=MAX_BATCH_SIZE, help="of every server (default %(default)s)"
            )
            command.add_argument(
                "--inference-workers",
                type=int,
                default=1,
                help="processes that run the model, of LitServe and mosec (default %(default)s)",
            )
            command.add_argument(
                "--raw-sizes",
                type=int,
                nargs="+",
                default=BATCH_SIZES,
                metavar="N",
                help="batch sizes of the raw calls; fewer, and more rounds, where the machine's speed drifts",
            )
        else:
            command.add_argument("--input-size", type=int, default=256, help="side of the crops (default %(default)s)")
        command.add_argument("--image", type=Path, default=EXAMPLE)
        command.add_argument("--concurrency", type=int, default=32)
        command.add_argument("--seconds", type=float, default=10.0, help="for each server and round (default 10)")
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--only", action="append", help="repeatable: only these peers, by name")
    arguments = parser.parse_args()
    if "model" in arguments:
        arguments.model = str(Path(arguments.model).resolve())
    write_json(arguments.function(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
