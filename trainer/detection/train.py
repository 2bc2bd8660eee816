"""Trains the hand detector: what `trainer.train` does for it in another way.

Data sets are named by what they are for, `KIND:DIR`, each a folder in COCO form:

* `scenes`: photos in which every hand is labelled or in an ignored region; those without any show what is no hand;
* `close`: photos of one hand, which are also cut out and pasted into others;
* `rendered`: what `synth` made.

How much is drawn of each is the recipe's (`trainer.detection.compose.Shares`). What is held out goes by the picture's
name or its group, in all sets; scenes alone are measured on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer import run_record
from trainer.configs import TrainConfig
from trainer.data.pipeline import ImageStore
from trainer.data.sample import DataError
from trainer.data.sources import Source, check_sources_apart, holds_out
from trainer.detection.batches import DetectorBatch, DetectorBatches, DetectorData
from trainer.detection.evaluate import detect, hands_of, recall_at_alarms, worst_sheet
from trainer.detection.labels import LabelledPicture, read_pictures
from trainer.detection.losses import packed_loss
from trainer.errors import RefusedError
from trainer.run_network import build_training_model
from trainer.run_record import RunRecord
from trainer.train import FIRST_CROPS, TrainingLoop, say

if TYPE_CHECKING:
    import keras

KINDS: Final = ("scenes", "close", "rendered")
"""What a data set of the detector may be for."""

VALIDATED_ALARMS: Final = 0.1
"""False alarms a picture at which a validation says how many hands are found."""


@dataclass(frozen=True, slots=True)
class DetectorSets:
    """Pictures by what they are for.

    Attributes:
        train: those to train on, with their kind.
        held_out: scenes to measure on.
    """

    train: tuple[tuple[str, LabelledPicture], ...]
    held_out: tuple[LabelledPicture, ...]

    def data(self) -> DetectorData:
        """The four stocks to train on."""

        def of(kind: str) -> list[LabelledPicture]:
            return [picture for each, picture in self.train if each == kind]

        scenes = of("scenes")
        return DetectorData(
            rendered=of("rendered"),
            scenes=[picture for picture in scenes if picture.hands],
            close=of("close"),
            empty=[picture for picture in scenes if not picture.hands and not picture.ignored],
        )


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Reads `KIND:DIR`. DataError says what is allowed."""
    sources = [Source.parse(text, KINDS) for text in texts]
    for source in sources:
        if source.weight != 1.0 or source.is_share:
            raise DataError(f"{source}: how often pictures are drawn is the recipe's, not @{source.weight:g}")
    return sources


def read_sets(sources: Sequence[Source]) -> list[tuple[str, LabelledPicture]]:
    """Every picture of the sets with its kind.

    Raises:
        DataError: a set cannot be read, or a picture of one could not be told from one of another.
    """
    read = [(source.kind, picture) for source in sources for picture in read_pictures(source.path)]
    seen: set[tuple[str, str]] = set()
    for _, picture in read:
        if (picture.source, picture.name) in seen:
            raise DataError(
                f"two data sets are known as {picture.source!r} and have a picture {picture.name}: rename the folder of"
                " one"
            )
        seen.add((picture.source, picture.name))
    return read


def held_out_of(data: Sequence[str], holdout: Sequence[str]) -> list[LabelledPicture]:
    """The pictures of the sets, named `KIND:DIR`, that are held out by these expressions; without any, all of them."""
    is_held = _holds_out(holdout or [""])
    return [picture for _, picture in read_sets(parse_sources(data)) if is_held(picture)]


def _holds_out(holdout: Sequence[str]) -> Callable[[LabelledPicture], bool]:
    is_held = holds_out(holdout)
    return lambda picture: is_held(picture.name) or is_held(picture.group or "")


def split_sets(pictures: Sequence[tuple[str, LabelledPicture]], holdout: Sequence[str]) -> DetectorSets:
    """Keeps the pictures out of training in whose name, or group, one of the expressions finds itself.

    Raises:
        DataError: an expression is not valid, nothing is left to train on, or people or sources would be on both sides.
    """
    is_held = _holds_out(holdout)
    held = [(kind, each) for kind, each in pictures if is_held(each)]
    train = [(kind, each) for kind, each in pictures if not is_held(each)]
    if not any(each.hands for _, each in train):
        raise DataError("there is no picture with a hand to train on")
    check_sources_apart([each for _, each in train], [each for _, each in held])
    return DetectorSets(tuple(train), tuple(each for kind, each in held if kind == "scenes"))


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
