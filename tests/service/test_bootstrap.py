"""The life of the whole service, from listening to the last answer, on real sockets and models that are functions."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import Run
from service.backends.repository import Servable, ServableError
from service.bootstrap import Addresses, StartError, serve
from service.settings import Settings
from tests.support.images import image_bytes
from tests.support.servables import run_without_model, write_card, write_detector_card
from tests.support.waiting import until

PATH = "/v1/hand-pose"


@dataclass
class GatedModels:
    """Opens servables as functions that wait, each time they run, until the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=threading.Event)

    def __call__(self, servable: Servable) -> Run:
        answer = run_without_model(servable)

        def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.running.set()
            assert self.gate.wait(20)
            return answer(crops)

        return run


@dataclass
class Running:
    """A service in this process."""

    task: "asyncio.Task[None]"
    client: httpx.AsyncClient
    ready: asyncio.Event


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def settings(repository: Path, port: int, **others: str) -> Settings:
    environment = {"HANDPOSE_REST_PORT": str(port), "HANDPOSE_GRPC_PORT": "0", "HANDPOSE_MODEL_REPO": str(repository)}
    return Settings.from_environment({**environment, **others})


@contextmanager
def open_again(gate: threading.Event) -> Iterator[None]:
    """Lets no thread wait for a gate for ever, whatever becomes of the test."""
    try:
        yield
    finally:
        gate.set()


@asynccontextmanager
async def service(repository: Path, models: Callable[[Servable], Run], **others: str) -> AsyncIterator[Running]:
    gate = models.gate if isinstance(models, GatedModels) else threading.Event()
    port = free_port()
    ready = asyncio.Event()
    task = asyncio.ensure_future(
        serve(settings(repository, port, **others), on_ready=lambda _: ready.set(), open_servable=models)
    )
    with open_again(gate):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            try:
                yield Running(task, client, ready)
            finally:
                gate.set()
                if not task.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                    await task


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_detector_card(tmp_path)
    write_card(tmp_path, "lightweight")
    write_card(tmp_path, "standard")
    return tmp_path


async def answers(running: Running, path: str, status: int) -> bool:
    try:
        return (await running.client.get(path)).status_code == status
    except httpx.TransportError:
        return False


async def test_service_is_alive_while_models_load_and_ready_when_all_are_warm(repository: Path) -> None:
    models = GatedModels()
    async with service(repository, models) as running:
        await until(lambda: answers(running, "/livez", 200))
        await asyncio.to_thread(models.running.wait, 20)
        not_ready = await running.client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["detail"]) == (503, "loading cpm_lightweight version 1")
        early = await running.client.post(PATH, content=image_bytes())
        assert (early.status_code, early.json()["code"]) == (503, "loading")
        assert "Retry-After" in early.headers
        assert not running.ready.is_set()
        models.gate.set()
        await asyncio.wait_for(running.ready.wait(), 20)
        assert (await running.client.get("/readyz")).status_code == 200
        for variant in ("lightweight", "standard"):
            answer = await running.client.post(PATH, content=image_bytes(), headers={"X-Model-Variant": variant})
            assert answer.headers["X-Model-Variant"] == f"{variant}@1"
        timings = answer.json()["timings_ms"]
        assert 0 < timings["decode"] < timings["total"]
        metrics = (await running.client.get("/metrics")).text
        assert "handpose_backend_up 1.0" in metrics
        assert 'handpose_model_info{labels="stable",name="cpm_standard"' in metrics


async def test_without_a_detector_only_named_hands_are_answered_and_the_service_is_not_ready(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight")
    models = GatedModels()
    models.gate.set()
    async with service(tmp_path, models) as running:
        await asyncio.wait_for(running.ready.wait(), 20)
        not_ready = await running.client.get("/readyz")
        assert not_ready.status_code == 503
        assert "there is no hand_detector" in not_ready.json()["detail"]
        searched = await running.client.post(PATH, content=image_bytes())
        assert (searched.status_code, searched.json()["code"]) == (503, "no_detector")
        named = await running.client.post(f"{PATH}?roi=0,0,40,40", content=image_bytes())
        assert named.status_code == 200

        write_detector_card(tmp_path)
        await until(lambda: answers(running, "/readyz", 200))
        assert (await running.client.post(PATH, content=image_bytes())).status_code == 200


async def test_sigterm_loses_no_request(repository: Path) -> None:
    models = GatedModels()
    models.gate.set()
    # Batches of one, so that requests wait behind each other.
    async with service(repository, models, HANDPOSE_MAX_BATCH_SIZE="1") as running:
        await asyncio.wait_for(running.ready.wait(), 20)
        models.gate.clear()
        accepted = [asyncio.ensure_future(running.client.post(PATH, content=image_bytes())) for _ in range(5)]

        async def all_are_in() -> bool:
            return "handpose_inflight_requests 5.0" in (await running.client.get("/metrics")).text

        await until(all_are_in)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: answers(running, "/readyz", 503))
        late = await running.client.post(PATH, content=image_bytes())
        assert (late.status_code, late.json()["type"]) == (503, "urn:handpose:unavailable")
        assert not running.task.done()
        models.gate.set()
        assert [(await each).status_code for each in accepted] == [200] * 5
        await asyncio.wait_for(running.task, 20)
        with pytest.raises(httpx.ConnectError):
            await running.client.get("/livez")


async def test_two_batches_run_at_the_same_time(repository: Path) -> None:
    each_other, loaded = threading.Barrier(2, timeout=20), threading.Event()

    def open_servable(servable: Servable) -> Run:
        answer = run_without_model(servable)

        def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            if loaded.is_set():
                each_other.wait()
            return answer(crops)

        return run

    async with service(repository, open_servable, HANDPOSE_MAX_BATCH_SIZE="1") as running:
        await asyncio.wait_for(running.ready.wait(), 20)
        loaded.set()
        both = await asyncio.gather(*(running.client.post(PATH, content=image_bytes()) for _ in range(2)))
        loaded.clear()
    assert [each.status_code for each in both] == [200, 200]


async def test_grace_period_ends_the_wait_for_a_model_that_hangs(repository: Path) -> None:
    models = GatedModels()
    models.gate.set()
    async with service(repository, models, HANDPOSE_GRACE_PERIOD_S="0.2") as running:
        await asyncio.wait_for(running.ready.wait(), 20)
        models.gate.clear()
        models.running.clear()
        stuck = asyncio.ensure_future(running.client.post(PATH, content=image_bytes()))
        await asyncio.to_thread(models.running.wait, 20)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.task, 20)
        assert not models.gate.is_set()
        told = await stuck
        assert (told.status_code, told.json()["type"]) == (503, "urn:handpose:unavailable")


async def test_second_signal_stops_at_once(repository: Path) -> None:
    models = GatedModels()
    models.gate.set()
    async with service(repository, models, HANDPOSE_GRACE_PERIOD_S="3600") as running:
        await asyncio.wait_for(running.ready.wait(), 20)
        models.gate.clear()
        models.running.clear()
        stuck = asyncio.ensure_future(running.client.post(PATH, content=image_bytes()))
        await asyncio.to_thread(models.running.wait, 20)
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: answers(running, "/readyz", 503))
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.task, 20)
        assert not models.gate.is_set()
        told = await stuck
        assert (told.status_code, told.json()["type"]) == (503, "urn:handpose:unavailable")


async def test_signal_while_models_load_stops_the_start(repository: Path) -> None:
    models = GatedModels()
    async with service(repository, models) as running:
        await asyncio.to_thread(models.running.wait, 20)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.task, 20)
        assert not running.ready.is_set()


async def test_port_in_use_is_told_before_any_model_is_loaded(repository: Path) -> None:
    models = GatedModels()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: the port is in use; HANDPOSE_REST_PORT"):
            await serve(settings(repository, port), on_ready=never_ready, open_servable=models)
    assert not models.running.is_set()


async def test_batches_larger_than_the_model_server_takes_end_the_start_with_both_settings(tmp_path: Path) -> None:
    batching = tmp_path / "batching.config"
    batching.write_text("# At most\nmax_batch_size { value: 16 }\nallowed_batch_sizes: 16\n")
    given = {
        "HANDPOSE_BACKEND": "tensorflow_serving",
        "HANDPOSE_MAX_BATCH_SIZE": "32",
        "HANDPOSE_TFS_BATCHING_FILE": str(batching),
    }
    words = rf"HANDPOSE_MAX_BATCH_SIZE=32: must not be above max_batch_size=16 in {batching}"
    with pytest.raises(StartError, match=words):
        await serve(settings(tmp_path, free_port(), **given), on_ready=never_ready)

    batching.write_text("no size")
    with pytest.raises(StartError, match="has no max_batch_size"):
        await serve(settings(tmp_path, free_port(), **given), on_ready=never_ready)


async def test_empty_repository_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="make models"):
        await serve(settings(tmp_path, free_port()), on_ready=never_ready, open_servable=GatedModels())


async def test_model_that_does_not_open_ends_the_start(repository: Path) -> None:
    def broken(servable: Servable) -> Run:
        raise ServableError(f"{servable} has another signature")

    with pytest.raises(StartError, match="cpm_lightweight version 1 has another signature"):
        await serve(settings(repository, free_port()), on_ready=never_ready, open_servable=broken)


def never_ready(addresses: Addresses) -> None:
    pytest.fail("it said that it was ready")


async def test_page_learns_where_grpc_listens(repository: Path) -> None:
    models, addresses = GatedModels(), asyncio.get_running_loop().create_future()
    models.gate.set()
    port = free_port()
    task = asyncio.ensure_future(serve(settings(repository, port), on_ready=addresses.set_result, open_servable=models))
    await asyncio.wait((addresses, task), return_when=asyncio.FIRST_COMPLETED)
    listening: Addresses = addresses.result()
    async with httpx.AsyncClient() as client:
        facts = await client.get(f"http://127.0.0.1:{port}/page.json")
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    assert facts.json() == {"grpc_port": listening.grpc[1]}
