"""Everything that is told is counted, in order and in its own context, only not at once."""

import inspect
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.inference.ports import DropReason, Observer, RejectReason, ReleaseReason, Stage
from service.observability.afterwards import Afterwards, Counts
from service.observability.metrics import PrometheusObserver
from tests.support.models import served_model
from tests.support.waiting import until

MODEL = served_model()

_WHO: ContextVar[str] = ContextVar("who", default="nobody")

TOLD: dict[str, tuple[Any, ...]] = {
    "request_started": (),
    "queue_changed": (MODEL, 1),
    "batch_released": (MODEL, 1, ReleaseReason.IDLE),
    "stage_finished": (MODEL, Stage.DECODE, 0.001),
    "hand_found": (MODEL, np.ones(21, np.float32)),
    "request_dropped": (MODEL, DropReason.EXPIRED),
    "request_rejected": (MODEL, RejectReason.QUEUE_FULL),
    "image_answered": (MODEL, None, "ok", 0.01),
    "request_ended": (),
}


class Recording:
    """Implements `Counts`: remembers what it was told, and who was the current one."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...], str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, arguments, _WHO.get()))

    def exposition(self, accept: str | None = None) -> tuple[bytes, str]:
        return f"{len(self.told)} for {accept}".encode(), "text/plain"


@pytest.fixture
def counts() -> Recording:
    return Recording()


@pytest.fixture
def observer(counts: Recording) -> Afterwards:
    return Afterwards(counts)


def tell_all(observer: Afterwards) -> None:
    for name, arguments in TOLD.items():
        _WHO.set(name)
        getattr(observer, name)(*arguments)
    _WHO.set("somebody else")


async def test_nothing_is_told_at_once_and_everything_a_little_later(observer: Afterwards, counts: Recording) -> None:
    tell_all(observer)
    assert counts.told == []
    await until(lambda: len(counts.told) == len(TOLD))
    assert counts.told == [(name, arguments, name) for name, arguments in TOLD.items()]


async def test_who_asks_for_the_counts_gets_everything_until_now(observer: Afterwards, counts: Recording) -> None:
    tell_all(observer)
    assert await observer.exposition("text/html") == (b"9 for text/html", "text/plain")
    observer.catch_up()
    assert len(counts.told) == len(TOLD)


async def test_what_cannot_be_counted_is_logged_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recording):
        def queue_changed(self, *_: Any) -> None:
            raise OSError("disk full")

    counts = Broken()
    observer = Afterwards(counts)
    tell_all(observer)
    observer.catch_up()
    assert [name for name, _, _ in counts.told] == [name for name in TOLD if name != "queue_changed"]
    assert [(record.message, str(record.exc_info and record.exc_info[1])) for record in caplog.records] == [
        ("something could not be counted", "disk full")
    ]


def test_it_passes_on_all_that_an_observer_is_told() -> None:
    methods = {name for name, each in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")}
    assert methods <= TOLD.keys()
    assert {name for name in vars(Counts) if not name.startswith("_")} <= TOLD.keys() | {"exposition"}


async def test_what_was_counted_before_the_last_answer_is_in_prometheus_text() -> None:
    observer = Afterwards(PrometheusObserver(CollectorRegistry()))
    tell_all(observer)
    body, media_type = await observer.exposition()
    assert media_type.startswith("text/plain")
    assert b'handpose_requests_total{code="ok",variant="lightweight",version="1"} 1.0' in body
