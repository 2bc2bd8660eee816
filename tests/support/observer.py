"""An observer that remembers what it was told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field

from service.inference.estimates import Estimate
from service.inference.models import AnyModel
from service.inference.ports import Attribute, DropReason, RejectReason, ReleaseReason


@dataclass
class RecordingObserver:
    """Implements `service.inference.ports.Observer`; every list is in the order of the events."""

    parts: list[str] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    batches: list[tuple[AnyModel, int, ReleaseReason]] = field(default_factory=list)
    requests_in_batches: list[int] = field(default_factory=list)
    depths: list[tuple[AnyModel, int]] = field(default_factory=list)
    drops: list[tuple[AnyModel, DropReason]] = field(default_factory=list)
    rejections: list[tuple[AnyModel, RejectReason]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, **attributes: Attribute) -> Iterator[None]:
        self.parts.append(name)
        yield

    @contextmanager
    def frame(self, frame_id: int) -> Iterator[None]:
        yield

    @contextmanager
    def batch(
        self,
        model: AnyModel,
        requests: Sequence[tuple[Context, float]],
        size: int,
    ) -> Iterator[None]:
        self.requests_in_batches.append(len(requests))
        yield

    def estimated(self, estimate: Estimate) -> None:
        self.estimates.append(estimate)

    def batch_released(self, model: AnyModel, size: int, reason: ReleaseReason) -> None:
        self.batches.append((model, size, reason))

    def queue_changed(self, model: AnyModel, depth: int) -> None:
        self.depths.append((model, depth))

    def request_dropped(self, model: AnyModel, reason: DropReason) -> None:
        self.drops.append((model, reason))

    def request_rejected(self, model: AnyModel, reason: RejectReason) -> None:
        self.rejections.append((model, reason))
