"""`handpose bench`: one picture, asked about again and again. A closed loop: a slow answer delays the next question.

For load that arrives whether or not the service keeps up, see `benchmarks/`.
"""

import argparse
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from PIL import Image
from rich.console import Console
from rich.table import Table

from service.cli.where import CommandError, connected
from service.client import HandPoseClient, HandPoseError


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. Times are from question to answer, as the client sees them."""

    mode: str
    model: str
    concurrency: int
    seconds: float
    answered: int
    failed: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    longest_ms: float


def bench(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    if parsed.concurrency < 1:
        print("handpose: --concurrency must be at least 1", file=sys.stderr)
        return 2
    try:
        image = parsed.file.read_bytes() if parsed.file is not None else _grey()
        with connected(parsed) as client:
            model = client.estimate(image).model  # also warms up
            name = f"{model.variant}@{model.version}"
            print(f"measuring for {parsed.seconds:g} s ...", file=sys.stderr, flush=True)
            run = _stream if parsed.stream else _requests
            figures = run(client, image, name, parsed)
    except (CommandError, OSError) as error:
        print(f"handpose: {error}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(asdict(figures)))
    else:
        table = Table("mode", "model", "at a time", "images/s", "p50 ms", "p95 ms", "p99 ms", "failed", box=None)
        table.add_row(
            figures.mode,
            figures.model,
            str(figures.concurrency),
            f"{figures.images_per_second:.1f}",
            f"{figures.p50_ms:.1f}",
            f"{figures.p95_ms:.1f}",
            f"{figures.p99_ms:.1f}",
            str(figures.failed),
        )
        Console().print(table)
    return 1 if figures.failed else 0


def _requests(client: HandPoseClient, image: bytes, model: str, parsed: argparse.Namespace) -> Figures:
    times: list[float] = []
    failed: list[HandPoseError] = []
    end = time.perf_counter() + parsed.seconds

    def ask() -> None:
        while (asked := time.perf_counter()) < end:
            try:
                client.estimate(image)
            except HandPoseError as error:
                failed.append(error)
            else:
                times.append(time.perf_counter() - asked)

    started = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(parsed.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _figures("requests", model, parsed.concurrency, time.perf_counter() - started, times, len(failed))


def _stream(client: HandPoseClient, image: bytes, model: str, parsed: argparse.Namespace) -> Figures:
    """Each frame's time is that from the answer before: what a viewer waits for."""
    end = time.perf_counter() + parsed.seconds

    def frames() -> Iterator[bytes]:
        while time.perf_counter() < end:
            yield image

    started = last = time.perf_counter()
    times: list[float] = []
    failed = 0
    for answer in client.stream(frames()):
        now = time.perf_counter()
        times.append(now - last)
        last = now
        failed += answer.error is not None
    return _figures("stream", model, 1, last - started, times, failed)


def _figures(mode: str, model: str, concurrency: int, seconds: float, times: list[float], failed: int) -> Figures:
    ms = sorted(1000 * each for each in times)
    if not ms:
        raise CommandError("nothing was answered in this time")
    cuts = statistics.quantiles(ms, n=100, method="inclusive") if len(ms) > 1 else 99 * ms
    return Figures(
        mode, model, concurrency, seconds, len(ms), failed, len(ms) / seconds, cuts[49], cuts[94], cuts[98], ms[-1]
    )


def _grey() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), (128, 128, 128)).save(buffer, "JPEG")
    return buffer.getvalue()
