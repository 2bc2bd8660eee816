"""Trains one network from a configuration: `python -m trainer train --config photos --data coco:DIR --run NAME`.

The loop (`trainer.training_loop`) writes everything into the run's folder: what the run is (`trainer.run_record`),
checkpoints (`trainer.checkpoints`), the curve (`trainer.run_log`), and `validation.png` with what the network sees. It
can be stopped, or cut into pieces of minutes, at any time and goes on with the same command. Weights for serving are
written by `finish`.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from trainer import run_record
from trainer.configs import Precision, TrainConfig, load_config
from trainer.data.pipeline import Batch, ImageStore, TrainingBatches, readable, reductions
from trainer.data.sample import DataError, OnBad, Sample, SkippedSamples, refuse_bad
from trainer.data.sources import (
    Source,
    WeightedSamples,
    check_sources_apart,
    read_sources,
    split_8_1_1,
    split_by_name,
    with_enough_keypoints,
)
from trainer.data.worker_process import available_cores
from trainer.devices import devices_seen, share_batches_among_devices
from trainer.errors import RefusedError
from trainer.run_lock import only_one_trains
from trainer.run_network import build_training_model
from trainer.run_record import RUNS_FOLDER, RunRecord
from trainer.teacher import Teacher, TrainedTeacher, mixed_targets
from trainer.training_loop import FIRST_CROPS, TrainingLoop, say, spread
from trainer.weights import DETECTOR

if TYPE_CHECKING:
    import keras

EXIT_UNFINISHED = 3
"""Exit code of a piece whose time was up before the schedule was at its end; the same command goes on."""
EXIT_SIGNALLED = 128
"""With a signal's number added, exit code of a piece that the signal ended; the same command goes on here, too."""


class Trainer(TrainingLoop):
    """A run of a keypoints' network."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        train: WeightedSamples,
        validation: WeightedSamples,
        store: ImageStore,
        *,
        warm_start: Path | None = None,
        stages: Path | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Builds the model, or restores it from the folder's checkpoint. Raises RefusedError if it is of another."""
        self._store = store
        self._train = train
        self._starts = (warm_start, stages)
        self._teacher = teacher
        super().__init__(config, folder, validation.samples)
        if not self._begun and warm_start is None and config.part == "stages":
            raise RefusedError("part 'stages' needs --warm-start with a run or weights of the lightweight network")
        if not self._begun and warm_start is None and config.frozen_blocks > 0:
            raise RefusedError(
                f"frozen_blocks is {config.frozen_blocks}: those blocks stay as they begin, so --warm-start has to name"
                " a run or weights that they are taken from"
            )
        if config.distil_weight > 0 and teacher is None:
            raise RefusedError(f"distil_weight is {config.distil_weight}: name the run of the teacher with --teacher")

    def _first_model(self) -> keras.Model:
        warm_start, stages = (None, None) if self._begun else self._starts
        return build_training_model(self._config, warm_start, self._first_crops, stages)

    def _first_crops(self) -> NDArray[np.uint8]:
        """Enough of them for statistics of every layer, of the training's first size and variation."""
        batches = TrainingBatches(self._train, self._store, batch_size=FIRST_CROPS, seed=0, config=self._config.augment)
        return batches.build(0, self._config.input_sizes[0][1]).crops

    def _loss(self) -> Any:
        from trainer.losses import BeliefMapLoss

        return [BeliefMapLoss() for _ in range(3)]

    def _batches(self) -> TrainingBatches:
        config = self._config
        return TrainingBatches(
            self._train,
            self._store,
            batch_size=config.batch_size,
            seed=config.seed,
            config=config.augment,
            trust=config.trust,
        )

    def _update(self, batch: Batch) -> list[float]:
        targets = mixed_targets(batch, self._teacher, self._config.distil_weight)
        answer = self._from_bytes.train_on_batch(batch.crops, [targets] * 3, [batch.weights] * 3)
        return [float(loss) for loss in answer]

    def _measure(self, held_out: Sequence[Any]) -> dict[str, float]:
        from trainer.evaluate import contact_sheet, evaluate_samples

        size = self._config.final_input_size
        result = evaluate_samples(self._predict, held_out, self._store, size, batch_size=32)
        scores = result.scores()
        contact_sheet(result, self._store, spread(range(len(held_out)), 40)).save(self._folder / "validation.png")
        say(
            f"  validation of {len(held_out)} hands: PCK@0.1 {scores.pck_at_0_1:.3f}, "
            f"PCK@0.2 {scores.pck_at_0_2:.3f}, EPE {scores.epe_px:.1f} px"
        )
        return {"pck_at_0_1": scores.pck_at_0_1, "pck_at_0_2": scores.pck_at_0_2, "epe_px": scores.epe_px}

    def _predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._from_bytes.predict_on_batch(crops)[-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    parser.add_argument("--config", required=True, help="name in trainer/configs, or a .py file")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="KIND:PATH[@WEIGHT]",
        help="may be given several times; @N%% gives the set's share of the samples drawn",
    )
    parser.add_argument("--run", required=True, help=f"name of the run's folder in {RUNS_FOLDER}/")
    parser.add_argument(
        "--holdout", action="append", metavar="REGEX", help="picture names kept for validation; replaces the config's"
    )
    parser.add_argument(
        "--warm-start",
        type=Path,
        metavar="RUN|NPZ",
        help="folder of a run, or finished weights (trainer/weights/lightweight.npz), to start from; of a lightweight "
        "network, a standard one takes the features",
    )
    parser.add_argument(
        "--stages",
        type=Path,
        metavar="NPZ",
        help="finished weights of a standard network (trainer/weights/standard.npz), whose stages 2 and 3 to start "
        "from where the config's part is 'stages'",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="RUN",
        help="folder of a run to learn from, where the config's distil_weight > 0",
    )
    parser.add_argument("--distil-weight", type=float, metavar="W", help="in place of the config's")
    parser.add_argument(
        "--variant",
        choices=("standard", "lightweight"),
        help="in place of the config's, which may train the standard network in another way",
    )
    parser.add_argument("--steps", type=int, help="updates in all, in place of the config's length")
    parser.add_argument("--minutes", type=float, help="train by the clock, for this long")
    parser.add_argument(
        "--input-sizes",
        type=_input_sizes,
        metavar="SHARE:PX,...",
        help="input sides in pixels and the share of the training at which each begins, in place of the config's",
    )
    parser.add_argument(
        "--frozen-blocks",
        type=int,
        metavar="N",
        help="leave the feature extractor's first N blocks as they are, in place of the config's; wants --warm-start",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="in place of the config's; which is quicker depends on the processor (benchmarks.training_speed)",
    )
    parser.add_argument(
        "--stop-after-minutes",
        type=float,
        metavar="M",
        help="end this piece after so long, start-up included, with exit code 3; the same command goes on",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        help="processes that make batches, 0 for none but this one (default: one a core, %(default)s)",
    )
    parser.add_argument(
        "--changed", action="store_true", help="go on although configuration or data differ, and note it in the run"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable samples out, and count them")


def run(arguments: argparse.Namespace) -> int:
    """Trains, or goes on training, as the arguments say."""
    started = time.monotonic()
    config = _config_of(arguments)
    folder = RUNS_FOLDER / arguments.run
    with only_one_trains(folder):
        return _train(arguments, config, folder, started)


def _train(arguments: argparse.Namespace, config: TrainConfig, folder: Path, started: float) -> int:
    stop_after_s = math.inf if arguments.stop_after_minutes is None else 60 * arguments.stop_after_minutes
    if config.variant == DETECTOR:
        from trainer.train_detector import prepared
    else:
        prepared = _prepared
    record, begin = prepared(arguments, config, folder)
    if not record.held_out:
        print(
            "warning: nothing is held out, so `finish` will have nothing to measure on and refuse; see --holdout",
            file=sys.stderr,
        )
    if arguments.warm_start:
        record = run_record.started_from(record, arguments.warm_start)
    if arguments.stages:
        record = run_record.stages_of(record, arguments.stages)
    if arguments.teacher:
        record = run_record.taught_by(record, arguments.teacher)
    record = run_record.continued(record, folder, changed=arguments.changed)
    for note in record.notes:
        say(f"note: {note}")
    seen = devices_seen()
    say(str(seen))
    if config.for_gpu and not seen.accelerated:
        print(
            f"warning: this configuration is meant for a GPU and {seen.backend} sees none, so it will take weeks; "
            'docs/training.md ("Backends") says how to get one that does',
            file=sys.stderr,
        )
    devices = share_batches_among_devices(config.batch_size)
    if devices > 1:
        say(f"every batch is shared among {devices} devices")
    trainer = begin()
    run_record.write(record, folder)
    if trainer.progress.step:
        say(f"going on from step {trainer.progress.step}")
    told = _run_until_told(trainer, arguments.workers, stop_after_s - (time.monotonic() - started))
    progress = trainer.progress
    say(f"stopped at step {progress.step}, {progress.samples} samples, {progress.seconds / 60:.1f} minutes")
    if trainer.finished and not trainer.validation_is_due:
        return 0
    return EXIT_UNFINISHED if told is None else EXIT_SIGNALLED + told


def _prepared(
    arguments: argparse.Namespace, config: TrainConfig, folder: Path
) -> tuple[RunRecord, Callable[[], TrainingLoop]]:
    """The record of a run of a keypoints' network, and what begins it."""
    skipped = SkippedSamples()
    on_bad: OnBad = skipped if arguments.skip_bad else refuse_bad
    sources = [Source.parse(text) for text in arguments.data]
    data = read_sources(sources, on_bad)
    store = ImageStore(reductions(data.samples, max(size for _, size in config.input_sizes)))
    if arguments.skip_bad:
        data = readable(data, store, on_bad)
        if skipped.reasons:
            say(skipped.summary())
    train, validation = split_data(data, config)
    say(f"{len(train)} hands to train on, {len(validation)} held out ({_counts(validation.samples)})")
    record = run_record.record_of(config, sources, train, validation, skip_bad=arguments.skip_bad)

    def begin() -> Trainer:
        return Trainer(
            config,
            folder,
            train,
            validation,
            store,
            warm_start=arguments.warm_start,
            stages=arguments.stages,
            teacher=TrainedTeacher(arguments.teacher) if arguments.teacher else None,
        )

    return record, begin


def _config_of(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration with what the command line puts in its place; RefusedError for what cannot be."""
    if arguments.workers < 0:
        raise RefusedError(f"--workers must not be negative, got {arguments.workers}")
    if arguments.steps is not None and arguments.minutes is not None:
        raise RefusedError("give --steps or --minutes, not both")
    config = load_config(arguments.config, arguments.variant)
    if arguments.distil_weight is not None:
        config = replace(config, distil_weight=arguments.distil_weight)
    if arguments.teacher and not config.distil_weight:
        raise RefusedError("--teacher teaches nothing while the configuration's distil_weight is 0")
    if arguments.stages and config.part != "stages":
        raise RefusedError(f"--stages is for a configuration of part 'stages'; that of {arguments.config} is 'all'")
    if arguments.holdout:
        config = replace(config, holdout=tuple(arguments.holdout))
    if arguments.steps is not None:
        config = replace(config, steps=arguments.steps, minutes=None)
    if arguments.minutes is not None:
        config = replace(config, steps=None, minutes=arguments.minutes)
    if arguments.precision:
        config = replace(config, precision=arguments.precision)
    if arguments.input_sizes:
        config = replace(config, input_sizes=arguments.input_sizes)
    if arguments.frozen_blocks is not None:
        config = replace(config, frozen_blocks=arguments.frozen_blocks)
    return config


def _input_sizes(text: str) -> tuple[tuple[float, int], ...]:
    """Reads "0:96,0.45:128"."""
    return tuple((float(share), int(size)) for share, _, size in (part.partition(":") for part in text.split(",")))


def _run_until_told(trainer: TrainingLoop, workers: int, stop_after_s: float) -> int | None:
    """Trains; SIGINT or SIGTERM ends it after the update in progress, with a checkpoint. Returns which."""
    told: list[int] = []

    def tell(number: int, _: FrameType | None) -> None:
        told.append(number)
        trainer.ask_to_stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, tell) for number in signals]
    try:
        trainer.run(workers=workers, stop_after_s=stop_after_s)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    return told[0] if told else None


def split_data(data: WeightedSamples, config: TrainConfig) -> tuple[WeightedSamples, WeightedSamples]:
    """What the configuration trains on, and what it validates on.

    Raises:
        DataError: nothing is left to train on, or people or sources would be on both sides.
    """
    train, validation = split_8_1_1(data) if config.split == "8:1:1" else split_by_name(data, config.holdout)
    check_sources_apart(train.samples, validation.samples)
    enough = with_enough_keypoints(train, config.fewest_keypoints)
    if len(enough) < len(train):
        say(f"left out {len(train) - len(enough)} hands with fewer than {config.fewest_keypoints} visible keypoints")
    if not enough.samples:
        raise DataError(f"no hand has {config.fewest_keypoints} visible keypoints, so there is nothing to train on")
    return enough, validation


def _counts(samples: tuple[Sample, ...]) -> str:
    names = [sample.source for sample in samples]
    return ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names))) or "none"
