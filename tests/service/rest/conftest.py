"""The REST application on a backend without models."""

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.inference.decoding import ImageDecoder
from service.inference.model_queue import BatchingPolicy
from service.inference.models import ModelReference
from service.inference.predictor import Predictor
from service.inference.routing import Router
from service.observability.metrics import PrometheusObserver
from service.rest.app import create_app
from service.rest.policy import RestPolicy
from tests.support.backend import FakeBackend
from tests.support.clock import ManualClock
from tests.support.executor import InlineExecutor


@dataclass(frozen=True)
class Gateway:
    """The application and all that surrounds it. No time passes unless a test says so."""

    app: FastAPI
    backend: FakeBackend
    predictor: Predictor
    router: Router
    clock: ManualClock
    client: httpx.AsyncClient


@asynccontextmanager
async def running_gateway(
    workers: Executor,
    *,
    backend: FakeBackend | None = None,
    batching: BatchingPolicy | None = None,
    policy: RestPolicy | None = None,
    max_pixels: int = 50_000_000,
    max_rois: int = 16,
) -> AsyncIterator[Gateway]:
    """A gateway as the bootstrap builds it, on a fake backend and a clock moved by hand."""
    backend = backend or FakeBackend()
    clock = ManualClock()
    observer = PrometheusObserver(CollectorRegistry())
    router = Router(ModelReference("lightweight"))
    decoder = ImageDecoder(workers, clock, max_pixels=max_pixels)
    predictor = Predictor(
        backend=backend,
        router=router,
        decoder=decoder,
        observer=observer,
        clock=clock,
        batching=batching or BatchingPolicy(),
        max_rois=max_rois,
    )
    app = create_app(
        predictor=predictor,
        decoder=decoder,
        backend=backend,
        observer=observer,
        metrics=observer.exposition,
        not_ready=backend.not_ready,
        clock=clock,
        default_model=lambda: router.default,
        policy=policy or RestPolicy(),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Gateway(app, backend, predictor, router, clock, client)


@pytest.fixture
def workers() -> Executor:
    return InlineExecutor()


@pytest.fixture
async def gateway(workers: Executor) -> AsyncIterator[Gateway]:
    async with running_gateway(workers) as running:
        yield running
