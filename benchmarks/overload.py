"""A gateway offered twice what it can do: who gets in, how long that takes, who is refused, and what memory does.

    python -m benchmarks.overload model_repo/cpm_lightweight/1 --seconds 60

Three loads on one gateway, one after the other. `capacity`: a closed loop finds what it can do. `overload`: an open
loop offers twice that for a minute; every answer must be 200 within the deadline, or 429 with Retry-After, and none may
be missing. `obeying`: a crowd that is too large to be answered in time arrives at once, and each member that is refused
comes back after the time it was told; all must get in.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.load import Answer, Client, Summary, Target, closed_loop, open_loop, show_summaries
from benchmarks.report import add_json, write_json
from benchmarks.servers import EXAMPLE, Running, gateway, running

_DEADLINE_S: Final = 3.0


async def overload(started: Running, image: bytes, seconds: float, crowd: int) -> dict[str, Any]:
    """The three loads; what came back, and the memory held before, during and after."""
    target = Target("127.0.0.1", started.port, "/v1/hand-pose")
    headers = [("Content-Type", "image/jpeg"), ("X-Request-Timeout-Ms", str(int(_DEADLINE_S * 1000)))]
    request = target.request(image, headers)
    client = Client(target)

    patient = target.request(image, headers[:1])
    found = await closed_loop(client, [patient], concurrency=16, seconds=seconds / 4, warm_up_s=3.0)
    capacity = Summary.of("capacity", found, seconds / 4)

    memory: list[int] = []
    watching = asyncio.create_task(_watch(started, memory))
    answers = await open_loop(client, [request], rate=2 * capacity.per_second, seconds=seconds)
    watching.cancel()
    offered = Summary.of("overload", answers, seconds)

    late = [answer for answer in answers if answer.status == 200 and answer.seconds > _DEADLINE_S]
    refused = [answer for answer in answers if answer.status == 429]
    tries = await _obey(client, request, crowd)
    client.close()
    third = max(1, len(memory) // 3)
    return {
        "runs": [capacity, offered],
        "capacity_per_second": capacity.per_second,
        "accepted_over_capacity": round(offered.per_second / capacity.per_second, 3),
        "p99_over_deadline": round(offered.latency_ms["p99"] / 1000 / _DEADLINE_S, 3),
        "later_than_deadline": len(late),
        "refused_without_retry_after": sum(answer.retry_after_s is None for answer in refused),
        "outcomes": offered.outcomes,
        # At first the queue fills; from then on memory has to stay where it is.
        "memory_last_third_over_middle": round(
            statistics.mean(memory[-third:]) / statistics.mean(memory[third : 2 * third]), 3
        ),
        "obeying": tries,
    }


async def _obey(client: Client, request: bytes, crowd: int) -> dict[str, Any]:
    """Everybody at once; who is refused comes back after Retry-After, and a little later so as not to come in step."""
    tries: list[int] = []
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        for attempt in range(1, 51):
            answer: Answer = await client.send(request)
            if answer.status != 429 or answer.retry_after_s is None:
                outcomes[answer.failure or str(answer.status)] += 1
                tries.append(attempt)
                return
            await asyncio.sleep(answer.retry_after_s * random.uniform(1.0, 1.25))
        outcomes["never got in"] += 1

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(crowd)))
    return {
        "crowd": crowd,
        "outcomes": dict(outcomes),
        "tries_median": statistics.median(tries),
        "tries_most": max(tries),
        "seconds": round(time.perf_counter() - start, 1),
    }


async def _watch(started: Running, memory: list[int]) -> None:
    while True:
        memory.append(started.resident_bytes())
        await asyncio.sleep(0.5)


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description="A gateway offered twice what it can do.")
    parser.add_argument("model", help="a SavedModel's folder, null or constant:<milliseconds>")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--crowd", type=int, default=150)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    add_json(parser)
    arguments = parser.parse_args()
    image = arguments.image.read_bytes()
    with running(gateway(arguments.model), image) as started:
        result = uvloop.run(overload(started, image, arguments.seconds, arguments.crowd))
    show_summaries(result.pop("runs"))
    write_json(result, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
