"""Batches of training pictures for the detector, by number: what `trainer.data.pipeline.Prefetcher` builds ahead."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.pipeline import ImageStore
from trainer.detection.compose import Composer, Shares
from trainer.detection.labels import LabelledPicture


@dataclass(frozen=True, slots=True)
class DetectorBatch:
    """Pictures and targets.

    Attributes:
        pictures: uint8 RGB [N, S, S, 3].
        targets: float32 [N, S/8, S/8, 14]: heat, counted, six values and their six weights
            (`trainer.detection.targets.Targets`).
    """

    pictures: NDArray[np.uint8]
    targets: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DetectorData:
    """The four stocks that training pictures are made of."""

    rendered: Sequence[LabelledPicture]
    scenes: Sequence[LabelledPicture]
    close: Sequence[LabelledPicture]
    empty: Sequence[LabelledPicture]


class DetectorBatches:
    """Random batches, by number: batch k depends on the seed and on k only."""

    def __init__(
        self, data: DetectorData, store: ImageStore, *, batch_size: int, seed: int, shares: Shares | None = None
    ) -> None:
        self._data, self._store, self._batch_size, self._seed, self._shares = data, store, batch_size, seed, shares

    def in_parts(self, parts: int) -> DetectorBatches:
        """The same batches for one of so many processes: with a part of the memory for pictures."""
        twin = copy.copy(self)
        twin._store = self._store.share(parts)
        return twin

    def build(self, number: int, input_size: int) -> DetectorBatch:
        """Batch `number` at this input size, a multiple of 32 pixels."""
        data = self._data
        composer = Composer(
            self._store,
            rendered=data.rendered,
            scenes=data.scenes,
            close=data.close,
            empty=data.empty,
            shares=self._shares,
        )
        rng = np.random.default_rng((self._seed, number))
        made = [composer.make(child, input_size) for child in rng.spawn(self._batch_size)]
        return DetectorBatch(
            np.stack([pixels for pixels, _ in made]),
            np.stack(
                [
                    np.concatenate(
                        [targets.heat[..., None], targets.counted[..., None], targets.values, targets.weights], axis=-1
                    )
                    for _, targets in made
                ]
            ),
        )
