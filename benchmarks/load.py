"""Sends load to a hand-pose service over HTTP and says what came back, as a table and as JSON.

    python -m benchmarks.load --url http://127.0.0.1:8000/v1/hand-pose --image hand.jpg --concurrency 16 --seconds 20
    python -m benchmarks.load --url http://127.0.0.1:8000/v1/hand-pose --image hand.jpg --rate 80 --seconds 60

Closed loop (`--concurrency`): so many clients, each sending its next request when it has the answer to the last. This
finds the capacity. Open loop (`--rate`): requests arrive at a constant rate whatever becomes of the earlier ones, as
from the world outside, and each one's latency counts from the moment at which it was due. A service that stalls cannot
hide the requests it kept from being sent (no coordinated omission).

Every request that is sent ends in one of: a status, or a reason why there is none. The client is asyncio on bare
sockets, because what it costs comes off the machine that is measured.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.report import add_json, show, write_json

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Attributes:
        status: the HTTP status, or 0 where none came.
        failure: why none came; "refused" if the request could not even be sent.
        due: when it was to be sent, in seconds of `time.perf_counter`.
        seconds: from when it was due to its end.
        retry_after_s: what the answer asked for, if it did.
        body: the answer's body, where the caller wants it.
    """

    status: int
    failure: str
    due: float
    seconds: float
    retry_after_s: float | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/")

    def request(self, body: bytes, headers: Sequence[tuple[str, str]] = (), *, method: str = "POST") -> bytes:
        """A whole HTTP/1.1 request."""
        lines = [f"{method} {self.path} HTTP/1.1", f"Host: {self.host}:{self.port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Client:
    """Connections to one target, kept open between requests and as many as there are requests under way."""

    def __init__(self, target: Target, *, timeout_s: float = 60.0, keep_bodies: bool = False) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._keep_bodies = keep_bodies
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes, due: float | None = None) -> Answer:
        """Send one request and wait for its end, whatever it is."""
        due = time.perf_counter() if due is None else due
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(request, due)
        except TimeoutError:
            return self._nothing("timeout", due)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, due: float) -> Answer:
        try:
            reader, writer = await self._connection()
        except OSError:
            return self._nothing("refused", due)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = _header(head, "content-length")
            body = await reader.readexactly(int(length)) if length is not None else b""
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.close()
            return self._nothing("lost" if not getattr(error, "partial", b"") else "cut off", due)
        except BaseException:
            writer.close()
            raise
        if _header(head, "connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        retry = _header(head, "retry-after")
        return Answer(
            status=int(head.split(" ", 2)[1]),
            failure="",
            due=due,
            seconds=time.perf_counter() - due,
            retry_after_s=float(retry) if retry is not None else None,
            body=body if self._keep_bodies else b"",
        )

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._target.host, self._target.port, limit=1 << 20)

    @staticmethod
    def _nothing(failure: str, due: float) -> Answer:
        return Answer(0, failure, due, time.perf_counter() - due)


def _header(head: str, name: str) -> str | None:
    start = head.find(f"\r\n{name}:")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index("\r\n", start)].strip()


async def closed_loop(
    client: Client, requests: Sequence[bytes], *, concurrency: int, seconds: float, warm_up_s: float = 0.0
) -> list[Answer]:
    """So many clients at a time; what ends in the first `warm_up_s`, or after the last second, is left out."""
    start = time.perf_counter() + warm_up_s
    end = start + seconds
    answers: list[Answer] = []
    sent = 0

    async def one_client() -> None:
        nonlocal sent
        while (due := time.perf_counter()) < end:
            sent += 1
            answer = await client.send(requests[sent % len(requests)], due)
            if start <= time.perf_counter() < end:
                answers.append(answer)
            if answer.failure:
                await asyncio.sleep(0.05)  # a service that is away is not hammered

    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return answers


async def open_loop(
    client: Client,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    each: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Requests at a constant rate, in requests per second, whatever becomes of them."""
    start = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    answers: list[Answer] = []

    async def one(number: int, due: float) -> None:
        answer = await client.send(requests[number % len(requests)], due)
        answers.append(answer)
        each(answer)

    for number in range(int(rate * seconds)):
        due = start + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    return answers


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers; latencies in milliseconds, of answers with status 200."""

    name: str
    sent: int
    ok: int
    seconds: float
    per_second: float
    outcomes: dict[str, int]
    latency_ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, answers: Sequence[Answer], seconds: float) -> "Summary":
        good = np.array([answer.seconds for answer in answers if answer.status == 200]) * 1000
        latency = {}
        if good.size:
            latency = {f"p{percent:g}": round(float(np.percentile(good, percent)), 2) for percent in PERCENTILES}
            latency["max"] = round(float(good.max()), 2)
        return cls(
            name=name,
            sent=len(answers),
            ok=int(good.size),
            seconds=round(seconds, 2),
            per_second=round(good.size / seconds, 2),
            outcomes=dict(Counter(answer.failure or str(answer.status) for answer in answers)),
            latency_ms=latency,
        )


def show_summaries(summaries: Sequence[Summary]) -> None:
    """A table with one line a run."""
    keys = [*(f"p{percent:g}" for percent in PERCENTILES), "max"]
    rows = []
    for each in summaries:
        latencies = [f"{each.latency_ms[key]:.1f}" if each.latency_ms else "-" for key in keys]
        outcomes = " ".join(f"{key}:{count}" for key, count in sorted(each.outcomes.items()))
        rows.append([each.name, str(each.sent), str(each.ok), f"{each.per_second:.1f}", *latencies, outcomes])
    show(["run", "sent", "ok", "ok/s", *(f"{key} ms" for key in keys), "outcomes"], rows)


def main() -> int:
    """Run one load and print what came back."""
    parser = argparse.ArgumentParser(description="Load for a hand-pose service: a table, and JSON with --json.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1/hand-pose")
    parser.add_argument("--image", type=Path, required=True, action="append", help="repeatable; sent in turn")
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=int, help="closed loop: so many clients")
    loop.add_argument("--rate", type=float, help="open loop: requests per second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up-s", type=float, default=2.0, help="closed loop: not counted (default 2)")
    parser.add_argument("--variant", default="", help="X-Model-Variant")
    parser.add_argument("--timeout-ms", type=int, default=0, help="X-Request-Timeout-Ms")
    add_json(parser)
    arguments = parser.parse_args()
    summary = uvloop.run(_run(arguments))
    show_summaries([summary])
    write_json(asdict(summary), arguments.json)
    return 0


async def _run(arguments: argparse.Namespace) -> Summary:
    target = Target.parse(arguments.url)
    headers = [("Content-Type", "application/octet-stream")]
    if arguments.variant:
        headers.append(("X-Model-Variant", arguments.variant))
    if arguments.timeout_ms:
        headers.append(("X-Request-Timeout-Ms", str(arguments.timeout_ms)))
    requests = [target.request(path.read_bytes(), headers) for path in arguments.image]
    client = Client(target)
    if arguments.rate is not None:
        answers = await open_loop(client, requests, rate=arguments.rate, seconds=arguments.seconds)
        name = f"open loop, {arguments.rate:g}/s"
    else:
        answers = await closed_loop(
            client,
            requests,
            concurrency=arguments.concurrency,
            seconds=arguments.seconds,
            warm_up_s=arguments.warm_up_s,
        )
        name = f"closed loop, {arguments.concurrency}"
    client.close()
    return Summary.of(name, answers, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
