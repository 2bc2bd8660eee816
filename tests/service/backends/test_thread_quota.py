"""Many gateways on a model server with few threads: what it means to a user, and to readiness."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from service.backends.tensorflow_serving.backend import TensorFlowServingBackend
from service.inference.errors import ServiceError
from service.inference.estimates import EstimateRequest
from service.inference.models import VARIANTS
from service.inference.predictor import Predictor
from service.settings import Settings
from tests.support.images import image_bytes
from tests.support.predictor import make_predictor
from tests.support.waiting import until

GATEWAYS, CLIENTS, SECONDS = 4, 6, 6.0
SETTINGS = Settings.from_environment({"HANDPOSE_BACKEND": "tensorflow_serving"})


@contextmanager
def model_server(folder: Path, *, threads: int) -> Iterator[StandIn]:
    """Both models, each batch of which takes 50 ms, on a server with so many threads."""
    for variant in VARIANTS:
        add_version(folder, variant, 1)
    config = config_text(folder, {variant: ((1,), {"stable": 1}) for variant in VARIANTS})
    arguments = ("--grpc-max-threads", str(threads), "--num-batch-threads", "2", "--max-enqueued-batches", "64")
    with StandIn(folder, config, arguments=arguments) as server:
        server.order(slow_s=0.05)
        yield server


async def answers_under_load(server: StandIn) -> Counter[str]:
    """What the clients of all gateways got: "ok", or the code and the words of a problem. Every request gets one."""
    loop = asyncio.get_running_loop()
    image = image_bytes()
    found: Counter[str] = Counter()

    async def client(predictor: Predictor, until_s: float) -> None:
        while loop.time() < until_s:
            try:
                await predictor.estimate(EstimateRequest(image, loop.time() + SETTINGS.default_deadline_ms / 1000))
                found["ok"] += 1
            except ServiceError as error:
                found[f"{error.code}: {error.detail}"] += 1
                await asyncio.sleep(error.retry_after_s or 0.0)

    async def watch_readiness(backend: TensorFlowServingBackend, until_s: float) -> None:
        while loop.time() < until_s:
            if (reason := await backend.not_ready()) is not None:
                found[f"not ready: {reason}"] += 1
            await asyncio.sleep(0.02)

    async with AsyncExitStack() as gateways:
        workers = gateways.enter_context(ThreadPoolExecutor(2))
        backends = []
        for _ in range(GATEWAYS):
            backend = TensorFlowServingBackend([server.address], repository=server.config_file.parent, clock=loop)
            backends.append(await gateways.enter_async_context(backend))
        for backend in backends:
            await until(lambda backend=backend: is_ready(backend))  # type: ignore[misc]
        until_s = loop.time() + SECONDS
        predictors = [
            make_predictor(backend, workers=workers, clock=loop, batching=SETTINGS.batching()) for backend in backends
        ]
        await asyncio.gather(
            *(client(predictor, until_s) for predictor in predictors for _ in range(CLIENTS)),
            *(watch_readiness(backend, until_s) for backend in backends),
        )
    return found


async def is_ready(backend: TensorFlowServingBackend) -> bool:
    return await backend.not_ready() is None


@pytest.mark.slow
async def test_few_threads_are_overload_and_neither_lack_of_memory_nor_an_absent_server(tmp_path: Path) -> None:
    with model_server(tmp_path, threads=8) as server:
        found = await answers_under_load(server)
        refused = server.report()["counts"].get("Predict:RESOURCE_EXHAUSTED", 0)

    assert refused > 0, "or the test shows nothing"
    assert found["ok"] > 100
    assert set(found) <= {"ok", "overloaded: the model server is busy"}, found


@pytest.mark.slow
async def test_as_many_threads_as_the_deployments_give_it_refuse_nothing(tmp_path: Path) -> None:
    with model_server(tmp_path, threads=256) as server:
        found = await answers_under_load(server)
        counts = server.report()["counts"]

    assert set(found) == {"ok"}, found
    assert not any("RESOURCE_EXHAUSTED" in what for what in counts), counts
