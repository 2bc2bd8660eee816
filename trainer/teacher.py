"""Distillation: a trained network's belief maps mixed into the targets of another one.

The mixture teaches the smaller network what the larger one believes, doubts included. The teacher is a finished run, so
that what it was trained on is known and never measured as held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.pipeline import Batch
from trainer.devices import jit_pays
from trainer.run_network import network_of_run, served_from_bytes

if TYPE_CHECKING:
    import keras


class Teacher(Protocol):
    """A trained network, as far as its pupil needs it."""

    def belief_maps(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Belief maps [N, H/8, W/8, 22] of crops uint8 RGB [N, H, W, 3]."""
        ...


class TrainedTeacher:
    """The network of a run, with its averaged weights."""

    def __init__(self, run: Path) -> None:
        self._network: keras.Model = served_from_bytes(network_of_run(run))
        self._network.compile(jit_compile=jit_pays())

    def belief_maps(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The last stage's, as it is served."""
        return np.asarray(self._network.predict_on_batch(crops)[-1])


def mixed_targets(batch: Batch, teacher: Teacher | None, weight: float) -> NDArray[np.float32]:
    """The batch's targets with this share of the teacher's beliefs.

    A teacher's negative beliefs count as 0, as no true belief is negative.
    """
    if teacher is None or weight == 0.0:
        return batch.targets
    beliefs = np.maximum(teacher.belief_maps(batch.crops), np.float32(0))
    return (np.float32(1 - weight) * batch.targets + np.float32(weight) * beliefs).astype(np.float32, copy=False)
