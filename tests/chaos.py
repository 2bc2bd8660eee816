"""Everything that can happen to a gateway while it is under load, and what became of every single request.

    python -m tests.chaos --seconds 60 [--json FILE]

A gateway serves models of a stand-in for TensorFlow Serving (see deploy/stand_in/server.py, whose answers tell
whose picture they belong to). Under load the stand-in answers late, refuses, hangs, is killed and comes back, and swaps
versions; at last the gateway gets SIGTERM. Each request ends as `answered` (right model, right picture), as a `problem`
with a code, or not at all, if the gateway had stopped listening before it was sent. Anything else is `wrong` or `lost`,
and makes the run fail. So does readiness that takes more than 2 s to follow the truth.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import uvloop

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from service.backends.tensorflow_serving.management import promote
from service.bootstrap import managed_servers
from service.inference.models import VARIANTS, ModelReference
from tests.support.gateway_process import GatewayProcess
from tests.support.images import image_bytes, picture
from tests.support.waiting import until

SIDE: Final = 128
CLIENTS: Final = 12
READY_WITHIN_S: Final = 2.0
_PROBLEMS: Final = frozenset({429, 503, 504})


@dataclass
class Verdict:
    """What became of the requests, and how long readiness took to follow each event, in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)
    readiness_s: dict[str, float] = field(default_factory=dict)
    exit_status: int | None = None

    @property
    def good(self) -> bool:
        """Whether nothing was lost or wrong, and readiness was quick."""
        slow = [event for event, seconds in self.readiness_s.items() if seconds > READY_WITHIN_S]
        return not self.offences and not slow and self.exit_status == 0 and self.outcomes["answered"] > 0


class Chaos:
    """A gateway and its model server, and clients that check every answer."""

    def __init__(self, folder: Path, verdict: Verdict) -> None:
        for variant in VARIANTS:
            for version in (1, 2):
                add_version(folder, variant, version, input_size=SIDE)
        config = config_text(folder, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
        self.verdict = verdict
        self.stand_in = StandIn(folder, config)
        self._settings = {
            "BACKEND": "tensorflow_serving",
            "MODEL_REPO": str(folder),
            "DEFAULT_DEADLINE_MS": "2000",
            "GRACE_PERIOD_S": "10",
            "LOG_LEVEL": "error",
        }
        self._stopping = asyncio.Event()
        self._sigterm_at: float | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Both processes, started; both ended on leaving."""
        await asyncio.to_thread(self.stand_in.start)
        self.gateway = GatewayProcess(self._settings | {"TFS_ADDRESSES": self.stand_in.address})
        try:
            await asyncio.to_thread(self.gateway.start)
            yield
        finally:
            self.gateway.end()
            self.stand_in.stop()

    # Clients

    async def client(self, number: int) -> None:
        """Ask and check until the gateway is gone."""
        variant = VARIANTS[number % 2]
        headers = {"Content-Type": "image/png", "X-Model-Variant": variant}
        async with httpx.AsyncClient(timeout=15.0, trust_env=False) as connection:
            turn = 0
            while not self._stopping.is_set():
                turn += 1
                colour = (80 + (number * 37 + turn * 11) % 96, 80 + (number * 53 + turn * 7) % 96, 0)
                body = image_bytes(picture(SIDE, SIDE, colour))
                try:
                    answer = await connection.post(f"{self.gateway.url}/v1/hand-pose", content=body, headers=headers)
                except httpx.ConnectError as error:
                    if self._sigterm_at is not None:
                        break  # it has stopped listening: nothing was sent
                    outcome = self._lost(repr(error))
                except httpx.TransportError as error:
                    outcome = self._lost(repr(error))
                else:
                    outcome = self._judge(answer, variant, colour)
                    if answer.status_code in _PROBLEMS:
                        await asyncio.sleep(0.02)
                self.verdict.outcomes[outcome] += 1

    def _judge(self, answer: httpx.Response, variant: str, colour: tuple[int, int, int]) -> str:
        if answer.status_code == 200:
            content = answer.json()
            point = content["hands"][0]["keypoints"][0]
            here = (colour[0] / 256 * SIDE, colour[1] / 256 * SIDE)
            right = abs(point["x"] - here[0]) < 1 and abs(point["y"] - here[1]) < 1
            tip = round(content["hands"][0]["keypoints"][20]["x"] / SIDE * 10) - 1
            if not right or content["model"]["variant"] != variant or tip != content["model"]["version"]:
                return self._offence("wrong", f"{variant} {colour}: {content['model']} {point}")
            self.verdict.versions[f"{variant}@{tip}"] += 1
            return "answered"
        if answer.status_code in _PROBLEMS:
            content = answer.json()
            told_when = answer.status_code == 504 or "Retry-After" in answer.headers
            if content["status"] != answer.status_code or not told_when:
                return self._offence("wrong", f"a problem that is none: {content}")
            return str(content["code"])
        return self._lost(f"{answer.status_code}: {answer.content[:200]!r}")

    def _lost(self, what: str) -> str:
        since = f", {time.perf_counter() - self._sigterm_at:.3f} s after SIGTERM" if self._sigterm_at else ""
        return self._offence("lost", what + since)

    def _offence(self, kind: str, what: str) -> str:
        self.verdict.offences.append(f"{kind}: {what}")
        return kind

    def stop(self) -> None:
        """No client sends another request."""
        self._stopping.set()

    # Events

    async def cause(self, pause_s: float) -> None:
        """One after the other, with load between them."""
        for name, event in (
            ("late", self._late),
            ("refusing", self._refusing),
            ("silent", self._silent),
            ("killed", self._killed),
            ("swapped", self._swapped),
        ):
            await asyncio.sleep(pause_s)
            before = self.verdict.outcomes["answered"]
            await event(name, pause_s)
            await until(partial(self._more_answered_than, before))
        await asyncio.sleep(pause_s)
        self._sigterm_at = time.perf_counter()
        self.gateway.terminate()
        self.verdict.exit_status = await asyncio.to_thread(self.gateway.wait)
        self._stopping.set()

    def _more_answered_than(self, number: int) -> bool:
        return self.verdict.outcomes["answered"] > number

    async def _late(self, _name: str, pause_s: float) -> None:
        self.stand_in.order(slow_s=0.15)
        await asyncio.sleep(pause_s)
        self.stand_in.order(slow_s=0.0)

    async def _refusing(self, name: str, pause_s: float) -> None:
        self.stand_in.order(unavailable=True)
        await self._timed(f"{name}: not ready", lambda: self._ready_is(False))
        await asyncio.sleep(pause_s)
        self.stand_in.order(unavailable=False)
        await self._timed(f"{name}: ready again", lambda: self._ready_is(True))

    async def _silent(self, name: str, pause_s: float) -> None:
        self.stand_in.order(hang="all")
        await self._timed(f"{name}: not ready", lambda: self._ready_is(False))
        await asyncio.sleep(pause_s)
        self.stand_in.order(hang="")
        await self._timed(f"{name}: ready again", lambda: self._ready_is(True))

    async def _killed(self, name: str, pause_s: float) -> None:
        self.stand_in.kill()
        await self._timed(f"{name}: not ready", lambda: self._ready_is(False))
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(self.stand_in.start)
        await self._timed(f"{name}: ready again", lambda: self._ready_is(True))

    async def _swapped(self, _name: str, pause_s: float) -> None:
        config_file = self.stand_in.config_file
        servers = managed_servers((self.stand_in.address,), config_file=config_file, repository=config_file.parent)
        for variant in VARIANTS:
            await promote(servers, ModelReference(variant, version=2), "stable", check=False)
        await until(lambda: all(self.verdict.versions[f"{variant}@2"] for variant in VARIANTS))
        await asyncio.sleep(pause_s)

    async def _timed(self, event: str, condition: Callable[[], Awaitable[bool]]) -> None:
        start = time.perf_counter()
        await until(condition)
        self.verdict.readiness_s[event] = round(time.perf_counter() - start, 3)

    async def _ready_is(self, ready: bool) -> bool:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            try:
                answered = (await client.get(f"{self.gateway.url}/readyz")).status_code == 200
            except httpx.TransportError:
                answered = False
        return answered is ready


async def run_chaos(folder: Path, seconds: float) -> Verdict:
    """All events within about so many seconds, in a folder that may be filled."""
    verdict = Verdict()
    chaos = Chaos(folder, verdict)
    async with chaos.running():
        clients = [asyncio.create_task(chaos.client(number)) for number in range(CLIENTS)]
        try:
            await chaos.cause(pause_s=seconds / 12)
        finally:
            chaos.stop()
            await asyncio.gather(*clients)
    return verdict


def main() -> int:
    """Run it and print the verdict."""
    parser = argparse.ArgumentParser(description="A gateway under load while everything goes wrong.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, help="where to write the verdict")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdict = uvloop.run(run_chaos(Path(folder), arguments.seconds))
    result = vars(verdict) | {"good": verdict.good}
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
