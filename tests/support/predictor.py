"""A predictor with fakes for whatever a test does not give."""

from concurrent.futures import Executor
from typing import Any

from service.inference.decoding import ImageDecoder
from service.inference.model_queue import BatchingPolicy
from service.inference.models import ModelReference
from service.inference.ports import Backend, Clock
from service.inference.predictor import Predictor
from service.inference.routing import Router
from tests.support.clock import ManualClock
from tests.support.executor import InlineExecutor
from tests.support.observer import RecordingObserver


def make_predictor(
    backend: Backend,
    *,
    workers: Executor | None = None,
    clock: Clock | None = None,
    decoding: dict[str, Any] | None = None,
    **parts: Any,
) -> Predictor:
    """A predictor for the backend; `decoding` and `parts` are further arguments of `ImageDecoder` and `Predictor`."""
    clock = clock or ManualClock()
    others: dict[str, Any] = {
        "router": Router(ModelReference("lightweight")),
        "decoder": ImageDecoder(workers or InlineExecutor(), clock, **(decoding or {})),
        "observer": RecordingObserver(),
        "batching": BatchingPolicy(),
    }
    return Predictor(backend=backend, clock=clock, **{**others, **parts})
