"""Starts the gateway or one of its peers, waits until it answers, loads it, and adds up what its processes use."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.load import Answer, Client, Target, closed_loop
from benchmarks.peer_servers.work import MAX_BATCH_SIZE

ROOT: Final = Path(__file__).resolve().parent.parent
EXAMPLE: Final = ROOT / "service" / "rest" / "static" / "example.jpg"
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
_HERTZ: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Server:
    """How to start one server.

    Attributes:
        name: what tables call it.
        command: with {port} where the port goes.
        settings: environment variables, {port} likewise.
        multipart: whether it wants the picture as a form's file rather than as the body.
        ready_path: what answers 200 once everything is loaded; None: the first answer shows it.
    """

    name: str
    command: Sequence[str]
    settings: Mapping[str, str]
    multipart: bool = False
    ready_path: str | None = None

    def request(self, port: int, image: bytes) -> bytes:
        """A request for one picture's hand."""
        target = Target("127.0.0.1", port, "/v1/hand-pose")
        if not self.multipart:
            return target.request(image, [("Content-Type", "image/jpeg")])
        line = "handposeboundary"
        head = f'--{line}\r\nContent-Disposition: form-data; name="image"; filename="hand.jpg"\r\n'
        body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{line}--\r\n".encode()
        return target.request(body, [("Content-Type", f"multipart/form-data; boundary={line}")])


def gateway(model: str, **settings: str) -> Server:
    """The gateway with a SavedModel's folder, `null` or `constant:<ms>`; settings without HANDPOSE_."""
    # One inference a picture, as everybody beside it runs.
    environment = {"REST_PORT": "{port}", "LOG_LEVEL": "warning", **settings}
    python = [sys.executable, "-m"]
    if Path(model).is_dir():
        command = [*python, "service"]
        environment["MODEL_REPO"] = str(Path(model).resolve().parent.parent)
    else:
        command = [*python, "benchmarks.null_backend", "--model", model]
    named = {f"HANDPOSE_{name}": value for name, value in environment.items()}
    # It answers before it is ready: with the models that are loaded already.
    return Server("gateway", command, named, ready_path="/readyz")


def peers(model: str, max_batch_size: int = MAX_BATCH_SIZE, inference_workers: int = 1) -> list[Server]:
    """Every peer with the same model; those that have batches, with batches of at most this size.

    `inference_workers` is how many processes run the model, of the peers that can have several (LitServe, mosec).
    """
    servers = "benchmarks.peer_servers"
    python = str(PEERS_PYTHON)
    settings = {"HANDPOSE_BENCH_MODEL": model, "HANDPOSE_BENCH_BATCH": str(max_batch_size)}
    settings["HANDPOSE_BENCH_WORKERS"] = str(inference_workers)
    uvicorn = ["-m", "uvicorn", "--port", "{port}", "--no-access-log", "--log-level", "warning"]
    return [
        Server("FastAPI, plain", [python, *uvicorn, f"{servers}.plain_fastapi:app"], settings),
        Server("LitServe", [python, "-m", f"{servers}.litserve_server", "--port", "{port}"], settings, multipart=True),
        Server(
            "mosec",
            [
                python,
                "-m",
                f"{servers}.mosec_server",
                "--address",
                "127.0.0.1",
                "--port",
                "{port}",
                "--timeout",
                "60000",
            ],
            settings,
        ),
        Server(
            "BentoML",
            [python, "-m", "bentoml", "serve", f"{servers}.bentoml_server:HandPose", "--port", "{port}", "-q"],
            settings | {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_CONFIG_OPTIONS": "api_server.metrics.enabled=false"},
        ),
    ]


@contextmanager
def running(server: Server, image: bytes, patience_s: float = 180.0) -> Iterator["Running"]:
    """Start a server, wait until it is ready and for its first good answer, and end all of its processes afterwards."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANDPOSE_")}
    environment |= {name: value.format(port=port) for name, value in server.settings.items()}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed at the end, after the process that writes it
    process = subprocess.Popen(
        [part.format(port=port) for part in server.command],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        started = Running(server.name, process.pid, port, server.request(port, image), server.ready_path)
        deadline = time.monotonic() + patience_s
        while not asyncio.run(started.answers()):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise ChildProcessError(f"{server.name} did not come up:\n{log.read()[-3000:]}")
            time.sleep(0.2)
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        log.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What became of a load.

    Attributes:
        answers: those that came after the warm-up and before the end.
        cpu_s: processor time of the server's processes, from the first request to the last answer.
        lasted_s: how long that was.
    """

    answers: Sequence[Answer]
    cpu_s: float
    lasted_s: float

    @property
    def good(self) -> list[Answer]:
        """Those with status 200."""
        return [answer for answer in self.answers if answer.status == 200]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    name: str
    process: int
    port: int
    request: bytes
    ready_path: str | None = None

    async def answers(self) -> bool:
        """Whether it is ready, and answers a request now."""
        client = Client(Target("127.0.0.1", self.port, ""), timeout_s=30.0)
        requests = [self.request]
        if self.ready_path is not None:
            requests.insert(0, Target("127.0.0.1", self.port, self.ready_path).request(b"", method="GET"))
        answers = [await client.send(request) for request in requests]
        client.close()
        return all(answer.status == 200 for answer in answers)

    def under_load(
        self, concurrency: int, seconds: float, *, warm_up_s: float = 0.0, keep_bodies: bool = False
    ) -> Load:
        """So many clients, each with its next request when it has the answer to the last, for so long."""
        client = Client(Target("127.0.0.1", self.port, ""), keep_bodies=keep_bodies)
        before, since = self.cpu_seconds(), time.perf_counter()
        answers = uvloop.run(
            closed_loop(client, [self.request], concurrency=concurrency, seconds=seconds, warm_up_s=warm_up_s)
        )
        client.close()
        return Load(answers, self.cpu_seconds() - before, time.perf_counter() - since)

    def cpu_seconds(self) -> float:
        """Processor time that its processes have used so far."""
        return sum(int(stat[11]) + int(stat[12]) for stat in self._stats()) / _HERTZ

    def resident_bytes(self) -> int:
        """Memory that its processes hold; what they share counts for each."""
        return sum(int(stat[21]) * _PAGE for stat in self._stats())

    def _stats(self) -> Iterator[list[str]]:
        """Fields of /proc/<pid>/stat, from the third on, of the process and all below it."""
        stats = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                stats[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
        found = {self.process}
        while True:
            more = {pid for pid, stat in stats.items() if int(stat[1]) in found} - found
            if not more:
                break
            found |= more
        yield from (stats[pid] for pid in found if pid in stats)


def free_port() -> int:
    """One of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
