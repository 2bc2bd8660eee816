"""An observer that remembers what it was told."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.inference.models import ServedModel
from service.inference.ports import DropReason, ReleaseReason, Stage


@dataclass
class RecordingObserver:
    """Implements `service.inference.ports.Observer`; every list is in the order of the events."""

    stages: list[tuple[ServedModel, Stage, float]] = field(default_factory=list)
    batches: list[tuple[ServedModel, int, ReleaseReason]] = field(default_factory=list)
    depths: list[tuple[ServedModel, int]] = field(default_factory=list)
    drops: list[tuple[ServedModel, DropReason]] = field(default_factory=list)
    rejections: list[tuple[ServedModel, str]] = field(default_factory=list)
    hands: list[tuple[ServedModel, NDArray[np.floating]]] = field(default_factory=list)

    def stage_finished(self, model: ServedModel, stage: Stage, seconds: float) -> None:
        self.stages.append((model, stage, seconds))

    def batch_released(self, model: ServedModel, size: int, reason: ReleaseReason) -> None:
        self.batches.append((model, size, reason))

    def queue_changed(self, model: ServedModel, depth: int) -> None:
        self.depths.append((model, depth))

    def request_dropped(self, model: ServedModel, reason: DropReason) -> None:
        self.drops.append((model, reason))

    def request_rejected(self, model: ServedModel, reason: str) -> None:
        self.rejections.append((model, reason))

    def hand_found(self, model: ServedModel, scores: NDArray[np.floating]) -> None:
        self.hands.append((model, scores))
