"""Trains the hand detector: what `trainer.train` does for it in another way."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer import run_record
from trainer.configs import TrainConfig
from trainer.data.pipeline import ImageStore
from trainer.data.sources import Source
from trainer.detection.batches import DetectorBatch, DetectorBatches
from trainer.detection.evaluate import detect, hands_of, recall_at_alarms, worst_sheet
from trainer.detection.losses import packed_loss
from trainer.detection.sets import DetectorSets, parse_sources, read_sets, split_sets
from trainer.errors import RefusedError
from trainer.run_network import build_training_model
from trainer.run_record import RunRecord
from trainer.training_loop import FIRST_CROPS, TrainingLoop, say

if TYPE_CHECKING:
    import keras

VALIDATED_ALARMS: Final = 0.1
"""False alarms a picture at which a validation says how many hands are found."""


def record_of(config: TrainConfig, sources: Sequence[Source], sets: DetectorSets) -> RunRecord:
    """The record of a run that begins now."""
    train = [(picture, kind, len(picture.hands)) for kind, picture in sets.train]
    return run_record.record_of_pictures(config, sources, train, sets.held_out, skip_bad=False)


class DetectorTrainer(TrainingLoop):
    """A run of the detector."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        sets: DetectorSets,
        store: ImageStore,
        *,
        warm_start: Path | None = None,
    ) -> None:
        """Builds the model, or restores it from the folder's checkpoint. Raises RefusedError if it is of another."""
        self._data = sets.data()
        self._store = store
        self._warm_start = warm_start
        super().__init__(config, folder, sets.held_out)

    def _first_model(self) -> keras.Model:
        return build_training_model(self._config, None if self._begun else self._warm_start, self._first_pictures)

    def _first_pictures(self) -> NDArray[np.uint8]:
        batches = DetectorBatches(self._data, self._store, batch_size=FIRST_CROPS, seed=0, shares=self._config.shares)
        return batches.build(0, self._config.input_sizes[0][1]).pictures

    def _loss(self) -> Any:
        return packed_loss

    def _batches(self) -> DetectorBatches:
        config = self._config
        return DetectorBatches(
            self._data, self._store, batch_size=config.batch_size, seed=config.seed, shares=config.shares
        )

    def _update(self, batch: DetectorBatch) -> list[float]:
        return [float(self._from_bytes.train_on_batch(batch.pictures, batch.targets))]

    def _measure(self, held_out: Sequence[Any]) -> dict[str, float]:
        judged = detect(self._predict, held_out, self._store, self._config.final_input_size)
        worst_sheet(judged, self._store).save(self._folder / "validation.png")
        recall = recall_at_alarms(judged, VALIDATED_ALARMS)
        say(
            f"  validation of {len(held_out)} pictures: {recall:.3f} of {len(hands_of(judged))} hands found at"
            f" {VALIDATED_ALARMS} false alarms a picture"
        )
        return {"recall_at_0_1_alarms": recall}

    def _predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        from keras import ops

        from trainer.models.detector import decode

        return np.asarray(ops.convert_to_numpy(decode(self._from_bytes.predict_on_batch(pictures))))


def prepared(
    arguments: argparse.Namespace, config: TrainConfig, folder: Path
) -> tuple[RunRecord, Callable[[], TrainingLoop]]:
    """The record of a run of the detector, and what begins it."""
    if arguments.skip_bad:
        raise RefusedError("--skip-bad is not for the hand detector: a picture that is left out may be half of a scene")
    sources = parse_sources(arguments.data)
    sets = split_sets(read_sets(sources), config.holdout)
    data = sets.data()
    say(
        f"{len(data.rendered)} rendered pictures, {len(data.scenes)} scenes, {len(data.close)} close photos and"
        f" {len(data.empty)} without a hand to train on, {len(sets.held_out)} scenes held out"
    )

    def begin() -> DetectorTrainer:
        return DetectorTrainer(config, folder, sets, ImageStore(), warm_start=arguments.warm_start)

    return record_of(config, sources, sets), begin
