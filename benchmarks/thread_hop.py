"""What going to a thread and back costs an event loop, by `service.backends.threads` and by `concurrent.futures`.

    python -m benchmarks.thread_hop

Both by turns in one process, with a call that sleeps for 10 ms as a model would run, because what was used by the call
before is no longer in the processor's caches by then. Prints a table and JSON: the median of each way there and of
each way back, and of both over those of `concurrent.futures`.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import uvloop
from rich.console import Console
from rich.table import Table

from service.backends.threads import own_threads

_PAUSE_S: Final = 0.003  # between calls, so that threads are asleep

Call = Callable[[Callable[[], tuple[float, float]]], Awaitable[tuple[float, float]]]


def work() -> tuple[float, float]:
    """Sleep for 10 ms; when that began and when it ended."""
    began = time.perf_counter()
    time.sleep(0.01)
    return began, time.perf_counter()


async def by_turns(ways: dict[str, Call], rounds: int) -> dict[str, tuple[float, float]]:
    """Of each way the median microseconds there and back."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            await asyncio.sleep(_PAUSE_S)
            left = time.perf_counter()
            began, ended = await call(work)
            took[name].append((began - left, time.perf_counter() - ended))
    return {
        name: (statistics.median(there for there, _ in each) * 1e6, statistics.median(back for _, back in each) * 1e6)
        for name, each in took.items()
    }


async def measure(rounds: int) -> dict[str, tuple[float, float]]:
    """Both ways, on the event loop that runs."""
    loop = asyncio.get_running_loop()
    with own_threads("inference", 1) as own, ThreadPoolExecutor(1) as pool:
        return await by_turns(
            {
                "concurrent.futures": lambda function: loop.run_in_executor(pool, function),
                "service.backends.threads": own.call,
            },
            rounds,
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The way to a thread and back.")
    parser.add_argument("--rounds", type=int, default=300, help="calls of each (default %(default)s)")
    arguments = parser.parse_args()
    found = uvloop.run(measure(arguments.rounds))
    usual = sum(found["concurrent.futures"])
    table = Table("way", "there, µs", "back, µs", "both over concurrent.futures")
    for name, (there, back) in found.items():
        table.add_row(name, f"{there:.0f}", f"{back:.0f}", f"{(there + back) / usual:.2f}")
    Console(width=100).print(table)
    print(
        json.dumps(
            {
                name: {"there_us": round(there), "back_us": round(back), "ratio": round((there + back) / usual, 2)}
                for name, (there, back) in found.items()
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
