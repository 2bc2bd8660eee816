"""Counting after the answer: what happens is written down a few milliseconds later, or when somebody asks for it.

A request reports a dozen things, and writing them down takes as long as making its answer does. None of it is needed
for the answer, and a few milliseconds later the event loop most likely waits for a model.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.inference.models import ServedModel
from service.inference.ports import DropReason, Observer, RejectReason, ReleaseReason, Stage

_DELAY_S: Final = 0.005

logger = logging.getLogger(__name__)


class Counts(Observer, Protocol):
    """What the use case and the protocols tell of, and how to read it."""

    def request_started(self) -> None: ...

    def request_ended(self) -> None: ...

    def image_answered(self, model: ServedModel | None, asked_for: str | None, code: str, seconds: float) -> None: ...

    def exposition(self, accept: str | None = None) -> tuple[bytes, str]:
        """Everything counted, in a format that an Accept header takes, and its Content-Type. Takes long."""
        ...


class Afterwards:
    """Implements the observers of the use case and of the protocols by telling another one later.

    What it was told first it tells first, each in the context in which it was told. To be used where the event loop
    runs.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._waiting: list[tuple[Context, Callable[..., None], tuple[Any, ...]]] = []

    def stage_finished(self, model: ServedModel, stage: Stage, seconds: float) -> None:
        self._later(self._counts.stage_finished, model, stage, seconds)

    def batch_released(self, model: ServedModel, size: int, reason: ReleaseReason) -> None:
        self._later(self._counts.batch_released, model, size, reason)

    def queue_changed(self, model: ServedModel, depth: int) -> None:
        self._later(self._counts.queue_changed, model, depth)

    def request_dropped(self, model: ServedModel, reason: DropReason) -> None:
        self._later(self._counts.request_dropped, model, reason)

    def request_rejected(self, model: ServedModel, reason: RejectReason) -> None:
        self._later(self._counts.request_rejected, model, reason)

    def hand_found(self, model: ServedModel, scores: NDArray[np.floating]) -> None:
        self._later(self._counts.hand_found, model, scores)

    def request_started(self) -> None:
        self._later(self._counts.request_started)

    def request_ended(self) -> None:
        self._later(self._counts.request_ended)

    def image_answered(self, model: ServedModel | None, asked_for: str | None, code: str, seconds: float) -> None:
        self._later(self._counts.image_answered, model, asked_for, code, seconds)

    def catch_up(self) -> None:
        """Tell what has not been told yet. Whatever cannot be counted is logged, and the rest is counted."""
        waiting, self._waiting = self._waiting, []
        for context, tell, arguments in waiting:
            try:
                context.run(tell, *arguments)
            except Exception:
                logger.exception("something could not be counted")

    async def exposition(self, accept: str | None = None) -> tuple[bytes, str]:
        """Everything that happened until now; see `Counts`."""
        self.catch_up()
        return await asyncio.to_thread(self._counts.exposition, accept)

    def _later(self, tell: Callable[..., None], *arguments: Any) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(_DELAY_S, self.catch_up)
        self._waiting.append((copy_context(), tell, arguments))
