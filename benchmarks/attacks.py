"""Attacks on a running gateway: what each is answered, the memory it takes, and what others notice of it.

    python -m benchmarks.attacks model_repo/cpm_lightweight/1 --json attacks.json

For each attack a gateway of its own, with keys, as `python -m service` runs it and with its default limits: so nothing
that an earlier attack left behind counts. A probe sends small photos at a steady rate all the time, from this process;
the attackers are another process, and hold a valid key, but for the one that guesses. It has the least priority there
is, because elsewhere it would not take the gateway's cores. Windows with and without it take turns, and the probe's p99
in all of the ones together is compared with that in the others. Memory is the peak of the gateway's
resident memory in such a window (VmHWM, begun anew by /proc/PID/clear_refs) over what it held before the first.
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import uvloop

from benchmarks import hostile_files
from benchmarks.load import Answer, Client, Target, open_loop
from benchmarks.report import add_json, write_json
from benchmarks.servers import Running, Server, free_port, gateway, running
from service.access.key_file import add_key
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.servicer import SERVICE_NAME

PATH: Final = "/v1/hand-pose"
_MIB: Final = 1 << 20
_BODY_LIMIT: Final = 20 * _MIB
_SLOW_CONNECTIONS: Final = 200
_ANSWER_S: Final = 60.0
_BOUNDARY: Final = "hostile"


@dataclass(frozen=True, slots=True)
class Door:
    """Where attackers find the gateway, and the key that they hold."""

    port: int
    rpc_port: int
    key: str


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: what it is.
        strike: does it once, and returns what it was answered.
        per_second: how many are begun each second.
        seconds: how long it goes on; None: as long as a window.
    """

    name: str
    strike: Callable[[Door], Awaitable[str]]
    per_second: float
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one attack.

    Attributes:
        attack: its name.
        per_second: how many were begun each second.
        answers: what was answered, and how often.
        memory_bytes: peak over what the gateway held before.
        median_quiet_ms: of the probe's answers, in the windows without it.
        median_beside_ms: of those beside it.
        p99_quiet_ms: the probe's, in the windows without it.
        p99_beside_ms: the probe's, beside the attack.
        probes_failed: of the probe's requests, those that were not answered 200.
        alive: whether the gateway is still the same process, and ready.
    """

    attack: str
    per_second: float
    answers: Mapping[str, int]
    memory_bytes: int
    median_quiet_ms: float
    median_beside_ms: float
    p99_quiet_ms: float
    p99_beside_ms: float
    probes_failed: int
    alive: bool

    @property
    def ratio(self) -> float:
        return self.p99_beside_ms / self.p99_quiet_ms


# What attackers do


def attacks() -> list[Attack]:
    """All of them. Files are made on the first call, in the process that sends them."""
    bomb, below = hostile_files.bomb_png(), hostile_files.bomb_png(7_070)
    wide, huge = hostile_files.wide_jpeg(), hostile_files.jpeg_that_says(65_500, 65_500)
    jpeg = hostile_files.photo(64, 64)
    parts = hostile_files.in_a_form([('name="image"; filename="a.jpg"', b"x")] * 10_000)
    paths = [
        hostile_files.in_a_form([(f'name="image"; filename="{name}"', jpeg)])
        for name in (
            "../../../../etc/passwd",
            "C:\\\\windows\\\\system32\\\\a.dll",
            "/dev/null",
            "a%00.jpg",
            "x" * 4000,
        )
    ]
    deep = b"[" * 1_000_000
    nested = b'{"image": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001
    encoded = b'{"image": "' + base64.b64encode(bytes(15 * _MIB - 1024)) + b'"}'
    too_long = b'{"image": "' + b"A" * (_BODY_LIMIT + 1) + b'"}'
    multiples = hostile_files.polyglots()
    return [
        Attack(f"bomb PNG, {_size(bomb)} for 588 MB", _posting(bomb), 10),
        Attack(f"PNG just below the limit of pixels, {_size(below)} for 150 MB", _posting(below), 0.5),
        Attack("JPEG that says 65,500 × 65,500", _posting(huge), 10),
        Attack(f"JPEG of 65,500 × 760, {_size(wide)}", _posting(wide), 2),
        Attack("PNG with 500 texts that unpack to 1 MB each", _posting(hostile_files.png_with_texts()), 5),
        Attack("polyglots: page, ZIP, PDF, script", _in_turn([_posting(each) for each in multiples]), 10),
        Attack(f"{_SLOW_CONNECTIONS} slow bodies, a byte a second", _slow_body, _SLOW_CONNECTIONS, 45.0),
        Attack(f"{_SLOW_CONNECTIONS} slow heads, a byte a second", _slow_head, _SLOW_CONNECTIONS, 20.0),
        Attack("endless chunked body", _endless_body, 1),
        Attack("multipart with 10⁴ parts", _posting(parts, f"multipart/form-data; boundary={_BOUNDARY}"), 5),
        Attack("JSON nested 10⁶ deep", _posting(deep, "application/json"), 5),
        Attack("JSON object nested 200,000 deep", _posting(nested, "application/json"), 5),
        Attack(f"base64 of 15 MB, {_size(encoded)}", _posting(encoded, "application/json"), 1),
        Attack("base64 longer than a body may be", _posting(too_long, "application/json"), 1),
        Attack(
            "paths as file names",
            _in_turn([_posting(each, f"multipart/form-data; boundary={_BOUNDARY}") for each in paths]),
            10,
        ),
        Attack("header injection", _inject_headers(jpeg), 10),
        Attack("gRPC message of 64 MB", _large_message, 1),
        Attack("key guessing", _guess, 100),
    ]


def _posting(body: bytes, kind: str = "application/octet-stream") -> Callable[[Door], Awaitable[str]]:
    async def strike(door: Door) -> str:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {door.key}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return _told(await _sent(door, head.encode() + body))

    return strike


def _in_turn(strikes: Sequence[Callable[[Door], Awaitable[str]]]) -> Callable[[Door], Awaitable[str]]:
    number = 0

    async def strike(door: Door) -> str:
        nonlocal number
        number += 1
        return await strikes[number % len(strikes)](door)

    return strike


async def _slow_body(door: Door) -> str:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {door.key}\r\nContent-Type: image/jpeg\r\n"
        "Content-Length: 100000\r\n\r\n"
    )
    return await _slowly(door, head.encode(), b"\xff")


async def _slow_head(door: Door) -> str:
    return await _slowly(door, b"GET /livez HTTP/1.1\r\n", b"X")


async def _slowly(door: Door, first: bytes, each: bytes) -> str:
    """Begin, and then send a byte a second for as long as the gateway puts up with it."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    reading = asyncio.create_task(_answer(reader))
    try:
        writer.write(first)
        while not reading.done():
            writer.write(each)
            await asyncio.wait([reading], timeout=1.0)
        answer = _told(reading.result())
    except (ConnectionError, asyncio.IncompleteReadError):
        answer = "cut off"
    finally:
        reading.cancel()
        writer.close()
    return f"{answer}, after {5 * round((time.perf_counter() - began) / 5)} s"


async def _endless_body(door: Door) -> str:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {door.key}\r\nContent-Type: image/jpeg\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    reading = asyncio.create_task(_answer(reader))
    sent = 0
    try:
        writer.write(head.encode())
        while not reading.done() and sent < 10 * _BODY_LIMIT:
            writer.write(chunk)
            sent += len(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        return _told(await asyncio.wait_for(reading, _ANSWER_S))
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        return "cut off" if not reading.done() or reading.exception() else _told(reading.result())
    finally:
        reading.cancel()
        writer.close()


def _inject_headers(jpeg: bytes) -> Callable[[Door], Awaitable[str]]:
    """Line ends wherever the gateway repeats what it was told: in its headers, its problems and its log."""
    evil = "a\nX-Evil: 1"
    requests = [
        f"GET /%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: h\r\nX-Request-Id: {evil}\r\n\r\n".encode(),
        b"GET /livez HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\r X-Evil: 1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\xe5\x98\x8aX-Evil: 1\r\n\r\n",
    ]
    form = hostile_files.in_a_form([('name="image\r\nX-Evil: 1"; filename="a\r\nX-Evil: 1"', jpeg)])
    number = 0

    async def strike(door: Door) -> str:
        nonlocal number
        number += 1
        if number % (len(requests) + 1) == 0:
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {door.key}\r\n"
                f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: {len(form)}\r\n\r\n"
            )
            answer = await _sent(door, head.encode() + form)
        else:
            answer = await _sent(door, requests[number % len(requests)])
        injected = b"\nx-evil" in answer.partition(b"\r\n\r\n")[0].lower()
        return "INJECTED" if injected else _told(answer)

    return strike


async def _large_message(door: Door) -> str:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    message = pb.EstimateRequest(image=bytes(64 * _MIB)).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.rpc_port}", options=unlimited) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/Estimate")
        try:
            await call(message, metadata=(("authorization", f"Bearer {door.key}"),), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


async def _guess(door: Door) -> str:
    guess = "hpk_" + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    head = f"GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {guess}\r\n\r\n"
    return _told(await _sent(door, head.encode()))


async def _sent(door: Door, request: bytes) -> bytes:
    """Everything that the gateway answers; it may do so before it has read all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 24)
    reading = asyncio.create_task(_answer(reader))
    try:
        writer.write(request)
        with suppress(ConnectionError):
            await writer.drain()
        async with asyncio.timeout(_ANSWER_S):
            return await reading
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    except TimeoutError:
        return b"no answer"
    finally:
        reading.cancel()
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """One answer, by the length that it says."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    return head + await reader.readexactly(length)


def _told(answer: bytes) -> str:
    """An answer in a few words: its status, and the code of its problem."""
    if not answer:
        return "cut off"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode() if head.startswith(b"HTTP/1.1 ") else repr(head[:40])
    with suppress(ValueError):
        problem = json.loads(body)
        if isinstance(problem, dict) and "code" in problem:
            return f"{status} {problem['code']}"
    return status


def _size(data: bytes) -> str:
    return f"{len(data) / 1000:.0f} kB" if len(data) < 1_000_000 else f"{len(data) / 1_000_000:.0f} MB"


# The process of the attackers


def _attack(index: int, door: Door, seconds: float) -> dict[str, int]:
    """Attack for so long; what was answered, and how often."""
    return asyncio.run(_keep_striking(_ready()[index], door, seconds))


@cache
def _ready() -> list[Attack]:
    """The attacks, with their files made."""
    return attacks()


async def _keep_striking(attack: Attack, door: Door, seconds: float) -> dict[str, int]:
    answers: Counter[str] = Counter()
    under_way: set[asyncio.Task[None]] = set()

    async def one() -> None:
        try:
            answers[await attack.strike(door)] += 1
        except OSError as error:
            answers[type(error).__name__] += 1

    # Slow attackers all begin at once, and are as many as they are; the others come one after the other.
    slow = attack.seconds is not None
    count = round(attack.per_second) if slow else max(1, round(attack.per_second * seconds))
    start = time.perf_counter()
    for number in range(count):
        if not slow:
            await asyncio.sleep(max(0.0, start + number / attack.per_second - time.perf_counter()))
        under_way.add(asyncio.create_task(one()))
    _, late = await asyncio.wait(under_way, timeout=max(0.0, start + seconds - time.perf_counter()) + _ANSWER_S)
    for task in late:
        task.cancel()
    answers["no answer yet"] += len(late)
    return dict(+answers)


# The measurement


@dataclass(frozen=True, slots=True)
class _Keyed(Server):
    """A server that is asked with a key."""

    key: str = ""

    def request(self, port: int, image: bytes) -> bytes:
        """A request for one picture's hand."""
        headers = [("Content-Type", "image/jpeg"), ("Authorization", f"Bearer {self.key}")]
        return Target("127.0.0.1", port, PATH).request(image, headers)


@contextmanager
def _keyed_gateway(model: str) -> Iterator[_Keyed]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.yaml"
        key = add_key(file, "benchmark", now=datetime.now(UTC))
        server = gateway(model, API_KEYS_FILE=str(file), LOG_LEVEL="warning", GRPC_PORT=str(free_port()))
        yield _Keyed(server.name, server.command, dict(server.settings), key=key)


class Measurement:
    """A gateway that is probed all the time.

    Args:
        started: the gateway.
        rate: of the probe, in requests a second.
        window_s: how long a window is.
        rounds: windows with, and as many without an attack.
    """

    def __init__(self, started: Running, rate: float, window_s: float, rounds: int) -> None:
        self.rounds = rounds
        self._started = started
        self._rate = rate
        self._window_s = window_s
        self._idle: int | None = None
        self._client = Client(Target("127.0.0.1", started.port, PATH), timeout_s=_ANSWER_S)

    async def window(self, seconds: float | None = None) -> list[Answer]:
        """The probe's answers of one window."""
        return await open_loop(
            self._client, [self._started.request], rate=self._rate, seconds=seconds or self._window_s
        )

    async def beside(self, strike: Callable[[float], Awaitable[dict[str, int]]], seconds: float | None) -> Any:
        """The probe's answers beside an attack, what the attack was answered, and the peak of memory in bytes."""
        length = seconds or self._window_s
        if self._idle is None:
            self._idle = self.memory("VmRSS")
        self._forget_peak()
        attacking = asyncio.ensure_future(strike(length))
        probes = await self.window(length)
        answers = await attacking
        return probes, answers, self.memory("VmHWM") - self._idle

    def _forget_peak(self) -> None:
        Path(f"/proc/{self._started.process}/clear_refs").write_text("5")

    def memory(self, name: str) -> int:
        """One of the figures of /proc/PID/status, in bytes."""
        for line in Path(f"/proc/{self._started.process}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise ChildProcessError("the gateway has ended")

    async def alive(self) -> bool:
        """Whether it is the same process, and answers."""
        with suppress(ProcessLookupError):
            os.kill(self._started.process, 0)
            return await self._started.answers()
        return False


async def measure(
    measurement: Measurement, attack: Attack, strike: Callable[[float], Awaitable[dict[str, int]]]
) -> Result:
    """One attack, and quiet windows between."""
    await measurement.window()  # memory and code paths settle
    quiet, probes, answers, memory = list[Answer](), list[Answer](), Counter[str](), 0
    for _ in range(1 if attack.seconds else measurement.rounds):
        quiet += await measurement.window(attack.seconds)
        more, told, peak = await measurement.beside(strike, attack.seconds)
        probes += more
        answers.update(told)
        memory = max(memory, peak)
    return Result(
        attack=attack.name,
        per_second=attack.per_second,
        answers=dict(answers),
        memory_bytes=memory,
        median_quiet_ms=_milliseconds(quiet, 50),
        median_beside_ms=_milliseconds(probes, 50),
        p99_quiet_ms=_milliseconds(quiet, 99),
        p99_beside_ms=_milliseconds(probes, 99),
        probes_failed=sum(answer.status != 200 for answer in probes),
        alive=await measurement.alive(),
    )


def table(results: Sequence[Result]) -> str:
    """The table of docs/security.md."""
    head = "| attack | a second | answer | peak memory over idle | others' median, ms | their p99, ms | times | up |"
    return "\n".join((head, "|---|---:|---|---:|---:|---:|---:|---|", *map(_line, results)))


def _line(result: Result) -> str:
    answers = ", ".join(f"{count} × {told}" for told, count in sorted(result.answers.items()))
    failed = f" ({result.probes_failed} failed)" if result.probes_failed else ""
    return (
        f"| {result.attack} | {result.per_second:g} | {answers} | {result.memory_bytes / 1e6:.0f} MB"
        f" | {result.median_quiet_ms:.1f} → {result.median_beside_ms:.1f}"
        f" | {result.p99_quiet_ms:.0f} → {result.p99_beside_ms:.0f} | {result.ratio:.1f}{failed}"
        f" | {'yes' if result.alive else 'NO'} |"
    )


def _milliseconds(answers: Sequence[Answer], percentile: float) -> float:
    return float(np.percentile([answer.seconds for answer in answers], percentile)) * 1000


def _be_somewhere_else() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)


def main() -> int:
    """Attack; 1 if the gateway went down or said what it must not."""
    parser = argparse.ArgumentParser(description="Attacks on a running gateway.")
    parser.add_argument("model", help="a SavedModel's folder, null or constant:<milliseconds>")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a window (default 6)")
    parser.add_argument("--rounds", type=int, default=5, help="windows with and without each attack (default 5)")
    parser.add_argument("--rate", type=float, default=20.0, help="of the probe, in requests a second (default 20)")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of attacks")
    add_json(parser)
    arguments = parser.parse_args()
    image = hostile_files.photo(640, 480)
    results = []
    print("making files", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_be_somewhere_else) as attackers:
        for index, attack in enumerate(attacks()):
            if arguments.only and not any(text.lower() in attack.name.lower() for text in arguments.only):
                continue
            with _keyed_gateway(arguments.model) as server, running(server, image) as started:
                door = Door(started.port, int(server.settings["HANDPOSE_GRPC_PORT"]), server.key)

                async def strike(seconds: float, index: int = index, door: Door = door) -> dict[str, int]:
                    loop = asyncio.get_running_loop()
                    return await loop.run_in_executor(attackers, _attack, index, door, seconds)

                measurement = Measurement(started, arguments.rate, arguments.seconds, arguments.rounds)
                results.append(uvloop.run(measure(measurement, attack, strike)))
            print(_line(results[-1]), file=sys.stderr, flush=True)
    print(table(results))
    write_json([asdict(each) | {"ratio": round(each.ratio, 3)} for each in results], arguments.json)
    return 0 if all(each.alive and "INJECTED" not in each.answers for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
