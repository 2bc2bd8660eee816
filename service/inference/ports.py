"""What the use case needs from the world, named for the need and not for the product that meets it.

Adapters implement these protocols (`service.backends`, `service.observability`, the event loop); tests implement them
with fakes. Nothing here does anything.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.inference.estimates import Estimate
from service.inference.models import AnyModel, ModelReference, ServedDetector, ServedModel

Attribute = str | int | float | bool


class Backend(Protocol):
    """Runs models. Errors are `ServiceError`s; foreign exceptions have been translated."""

    def models(self) -> Sequence[ServedModel]:
        """The models that can be asked now."""
        ...

    def resolve(self, reference: ModelReference) -> ServedModel:
        """The model that a request means. Raises UnknownModelError, or UnavailableError while it is loading."""
        ...

    def detector(self) -> ServedDetector:
        """The hand detector. Raises UnavailableError while it is loading, and where there is none."""
        ...

    async def predict(
        self, model: AnyModel, crops: Sequence[NDArray[np.uint8]], *, timeout_s: float
    ) -> NDArray[np.float32]:
        """What a model makes of a batch of crops, in the same order.

        Args:
            model: what `resolve` or `detector` returned.
            crops: N inputs, each uint8 RGB [H, W, 3] of the model's input size.
            timeout_s: seconds after which nobody waits for the answer any more.

        Returns:
            float32: belief maps [N, H / 8, W / 8, 22], or of the detector [N, detections, columns]
            (`service.pose.detections`).
        """
        ...

    async def not_ready(self) -> str | None:
        """Why requests would fail now, in words for the operator; None when every model answers."""
        ...


class ReleaseReason(StrEnum):
    """Why a micro-batch left its queue."""

    FULL = "full"
    WAITED = "waited"
    IDLE = "idle"


class DropReason(StrEnum):
    """Why an accepted request left its queue without being run."""

    EXPIRED = "expired"
    CANCELLED = "cancelled"


class RejectReason(StrEnum):
    """Why a request got no place in the queue."""

    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"


class Phase(StrEnum):
    """The parts of a request's time."""

    DECODE = "decode"
    DETECTION = "detection"
    QUEUE = "queue"
    INFERENCE = "inference"
    POSTPROCESS = "postprocess"


class Observer(Protocol):
    """Is told what happens, to count, time and trace it. Must be quick and must not raise."""

    def part(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:
        """The block is a part of the current request."""
        ...

    def frame(self, frame_id: int) -> AbstractContextManager[None]:
        """The block answers one frame of the current stream."""
        ...

    def batch(
        self, model: AnyModel, requests: Sequence[tuple[Context, float]], size: int
    ) -> AbstractContextManager[None]:
        """The block runs a batch.

        Args:
            model: what runs.
            requests: for each request in the batch, the context that it waited in, and for how many seconds.
            size: crops in the batch.
        """
        ...

    def estimated(self, estimate: Estimate) -> None:
        """The current request has its answer."""
        ...

    def batch_released(self, model: AnyModel, size: int, reason: ReleaseReason) -> None: ...

    def queue_changed(self, model: AnyModel, depth: int) -> None: ...

    def request_dropped(self, model: AnyModel, reason: DropReason) -> None: ...

    def request_rejected(self, model: AnyModel, reason: RejectReason) -> None: ...


class Clock(Protocol):
    """Monotonic time and timers; an asyncio event loop is one."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle: ...
