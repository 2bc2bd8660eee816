"""`handpose bench`: one picture, asked about again and again. A closed loop: a slow answer delays the next question.

For load that arrives whether or not the service keeps up, see `benchmarks/`.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from service.cli.connection import connected
from service.cli.errors import CommandError
from service.client import AsyncHandPoseClient, HandPoseError

_EXAMPLE: Final = Path(__file__).parent.parent / "rest" / "static" / "example.jpg"


async def bench(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    image = (parsed.file or _EXAMPLE).read_bytes()
    async with connected(parsed) as client:
        first = await client.estimate(image)  # also warms up
        model = first.model
        print(f"measuring for {parsed.seconds:g} s ...", file=sys.stderr, flush=True)
        concurrency = 1 if parsed.stream else parsed.concurrency
        measure = _stream if parsed.stream else _requests
        seconds, times, failed = await measure(client, image, parsed.seconds, concurrency)
    mode = "stream" if parsed.stream else "requests"
    figures = {"mode": mode, "model": f"{model.variant}@{model.version}", "hands": len(first.hands)}
    figures |= {"concurrency": concurrency}
    figures |= {"seconds": seconds, "answered": len(times), "failed": failed, **_rates(seconds, times)}
    if parsed.json:
        print(json.dumps(figures))
    else:
        names = ("mode", "model", "hands", "concurrency", "images_per_second", "p50_ms", "p95_ms", "p99_ms", "failed")
        heads = ("mode", "model", "hands", "at a time", "images/s", "p50 ms", "p95 ms", "p99 ms", "failed")
        table = Table(*heads, box=None)
        table.add_row(*(f"{value:.1f}" if isinstance(value := figures[name], float) else str(value) for name in names))
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


def _rates(seconds: float, times: list[float]) -> dict[str, float]:
    """Images a second, and how long answers took, from question to answer as the client sees it."""
    ms = sorted(1000 * each for each in times)
    if not ms:
        raise CommandError("nothing was answered in this time")
    cuts = statistics.quantiles(ms, n=100, method="inclusive") if len(ms) > 1 else 99 * ms
    percentiles = {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98], "longest_ms": ms[-1]}
    return {"images_per_second": len(ms) / seconds, **percentiles}
