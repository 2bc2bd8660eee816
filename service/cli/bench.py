"""`handpose bench`: one picture, asked about again and again. A closed loop: a slow answer delays the next question.

For load that arrives whether or not the service keeps up, see `benchmarks/`.
"""

import argparse
import asyncio
import io
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from PIL import Image
from rich.console import Console
from rich.table import Table

from service.cli.connection import connected
from service.cli.errors import CommandError
from service.client import AsyncHandPoseClient, HandPoseError


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


async def bench(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    image = parsed.file.read_bytes() if parsed.file is not None else _grey()
    async with connected(parsed) as client:
        model = (await client.estimate(image)).model  # also warms up
        print(f"measuring for {parsed.seconds:g} s ...", file=sys.stderr, flush=True)
        concurrency = 1 if parsed.stream else parsed.concurrency
        measure = _stream if parsed.stream else _requests
        seconds, times, failed = await measure(client, image, parsed.seconds, concurrency)
    mode = "stream" if parsed.stream else "requests"
    figures = _figures(mode, f"{model.variant}@{model.version}", concurrency, seconds, times, failed)
    if parsed.json:
        print(json.dumps(asdict(figures)))
    else:
        table = Table("mode", "model", "at a time", "images/s", "p50 ms", "p95 ms", "p99 ms", "failed", box=None)
        rates = (figures.images_per_second, figures.p50_ms, figures.p95_ms, figures.p99_ms)
        table.add_row(mode, figures.model, str(concurrency), *(f"{each:.1f}" for each in rates), str(failed))
        Console().print(table)
    return 1 if failed else 0


async def _requests(
    client: AsyncHandPoseClient, image: bytes, seconds: float, concurrency: int
) -> tuple[float, list[float], int]:
    """Seconds that it took, those of each answer, and the number of failures."""
    times: list[float] = []
    failed = 0
    started = time.perf_counter()

    async def ask() -> None:
        nonlocal failed
        while (asked := time.perf_counter()) < started + seconds:
            try:
                await client.estimate(image)
            except HandPoseError:
                failed += 1
            else:
                times.append(time.perf_counter() - asked)

    await asyncio.gather(*(ask() for _ in range(concurrency)))
    return time.perf_counter() - started, times, failed


async def _stream(
    client: AsyncHandPoseClient, image: bytes, seconds: float, _concurrency: int
) -> tuple[float, list[float], int]:
    """Each frame's time is that from the answer before: what a viewer waits for."""
    started = last = time.perf_counter()

    async def frames() -> AsyncIterator[bytes]:
        while time.perf_counter() < started + seconds:
            yield image

    times: list[float] = []
    failed = 0
    async for answer in client.stream(frames()):
        now = time.perf_counter()
        times.append(now - last)
        last = now
        failed += answer.error is not None
    return last - started, times, failed


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
