"""Trains one network from a configuration: `python -m trainer train --config photos --data coco:DIR --run NAME`.

The loop is a plain recipe on Keras alone, so that it runs on any of its backends. It writes everything into the run's
folder: what the run is (`trainer.run_record`), checkpoints (`trainer.checkpoints`), the curve (`trainer.run_log`), and
`validation.png` with what the network sees. It can be stopped, or cut into pieces of minutes, at any time and goes on
with the same command. Weights for serving are written by `finish`.
"""

from __future__ import annotations

import abc
import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from trainer import run_record
from trainer.checkpoints import (
    CHECKPOINT,
    Progress,
    TrainingError,
    averages_are_of,
    load_checkpoint,
    save_averaged,
    save_checkpoint,
    to_numpy,
)
from trainer.configs import Precision, TrainConfig, load_config
from trainer.data.pipeline import (
    Batch,
    Batches,
    ImageStore,
    Prefetcher,
    TrainingBatches,
    WorkerKilledError,
    readable,
    reductions,
)
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
from trainer.devices import devices_seen, jit_pays, share_batches_among_devices
from trainer.errors import RefusedError
from trainer.run_lock import only_one_trains
from trainer.run_log import SHARE_COLUMN, RunLog
from trainer.run_network import build_training_model, served_from_bytes
from trainer.run_record import RUNS_FOLDER, RunRecord
from trainer.teacher import Teacher, TrainedTeacher, mixed_targets
from trainer.weights import DETECTOR

if TYPE_CHECKING:
    import keras

FIRST_CROPS = 24
"""A network that starts from finished weights takes statistics of every layer from so many."""

EXIT_UNFINISHED = 3
"""Exit code of a piece whose time was up before the schedule was at its end; the same command goes on."""
EXIT_SIGNALLED = 128
"""With a signal's number added, exit code of a piece that the signal ended; the same command goes on here, too."""


def learning_rate_at(config: TrainConfig, step: int, share_done: float) -> float:
    """The learning rate of update `step` (from 0) when this share of the training is done."""
    warm = min(1.0, (share_done + 1e-3) / config.warm_up) if config.warm_up > 0 else 1.0
    if config.schedule == "steps":
        return config.learning_rate * float(0.1 ** (step // config.rate_step)) * warm
    low = config.final_rate_share
    return config.learning_rate * warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share_done))))


def input_size_at(config: TrainConfig, share_done: float) -> int:
    """The input side, in pixels, when this share of the training is done."""
    return [size for begin, size in config.input_sizes if share_done >= begin][-1]


def minutes_left(config: TrainConfig, share_done: float, minutes_done: float, images_per_second: float) -> float:
    """How long the rest will take at this rate, counting that larger inputs take longer in proportion to their area."""
    if config.steps is None:
        return max(0.0, (config.minutes or 0.0) - minutes_done)
    if not images_per_second > 0:
        return math.nan
    ends = [begin for begin, _ in config.input_sizes[1:]] + [1.0]
    area_left = sum(
        max(0.0, end - max(begin, share_done)) * size**2
        for (begin, size), end in zip(config.input_sizes, ends, strict=True)
    )
    images = config.steps * config.batch_size * area_left / input_size_at(config, share_done) ** 2
    return images / images_per_second / 60


@dataclass(slots=True)
class _Clock:
    """Training time over all pieces of a run, and the interval since each kind of event."""

    seconds_before: float
    started: float = field(default_factory=time.monotonic)
    last: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def due(self, event: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now - self.last.setdefault(event, self.started) < interval_s:
            return False
        self.last[event] = now
        return True


class TrainingLoop(abc.ABC):
    """One run: a model and a folder. What it learns, and from what, a subclass says."""

    def __init__(self, config: TrainConfig, folder: Path, held_out: Sequence[Any]) -> None:
        """Builds the model, or restores it from the folder's checkpoint. Raises RefusedError if it is of another."""
        import keras

        self._config = config
        self._folder = folder
        self._validation = held_out
        self._log = RunLog(folder)
        keras.utils.set_random_seed(config.seed)
        keras.mixed_precision.set_dtype_policy(config.precision)
        self._begun = (folder / CHECKPOINT).is_file()  # then all weights come from there
        self._model = self._first_model()
        self._optimizer = keras.optimizers.AdamW(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            global_clipnorm=config.clip_norm,
            use_ema=True,
            ema_momentum=config.ema_momentum,
        )
        self._from_bytes = served_from_bytes(self._model)
        self._from_bytes.compile(optimizer=self._optimizer, loss=self._loss(), jit_compile=jit_pays())
        self._optimizer.build(self._model.trainable_variables)
        restored = load_checkpoint(folder, self._model, self._optimizer, variant=config.variant, part=config.part)
        self._progress = restored or Progress(config.variant, config.part)
        self._stop_asked = False

    @abc.abstractmethod
    def _first_model(self) -> keras.Model:
        """The model as it begins, unless the run has begun."""

    @abc.abstractmethod
    def _loss(self) -> Any:
        """As Keras's `compile` takes it."""

    @abc.abstractmethod
    def _batches(self) -> Batches[Any]:
        """What is trained on."""

    @abc.abstractmethod
    def _update(self, batch: Any) -> list[float]:
        """One update of the weights; returns the loss, and its parts if there are several."""

    @abc.abstractmethod
    def _measure(self, held_out: Sequence[Any]) -> dict[str, float]:
        """Measures the averaged weights, which the model holds now: figures by column of the log. Prints a line."""

    @property
    def model(self) -> keras.Model:
        return self._model

    @property
    def progress(self) -> Progress:
        return self._progress

    def ask_to_stop(self) -> None:
        """Ends the training after the update in progress, with a checkpoint."""
        self._stop_asked = True

    def share_done(self, seconds: float) -> float:
        """How much of the training is done, from 0 to 1."""
        return self._config.share_done(self._progress.step, seconds)

    @property
    def finished(self) -> bool:
        """Whether the schedule is at its end."""
        return self.share_done(self._progress.seconds) >= 1.0

    @property
    def validation_is_due(self) -> bool:
        """Whether all that is held out has not been looked at since the last update."""
        return bool(self._validation) and not self._log.is_validated(self._progress.step)

    def run(self, *, workers: int = 0, stop_after_s: float = math.inf) -> Progress:
        """Trains to the end of the schedule, or until asked to stop, or for this many seconds. Returns where it stands.

        Args:
            workers: processes that make batches; 0 makes them in a thread of this one.
            stop_after_s: the update in progress by then is the last of this piece.

        Raises:
            TrainingError: the loss or a weight is not a number, with the checkpoint of before intact.
            BadSampleError: a picture became unreadable.
            WorkerKilledError: a process that makes batches was killed, and no stop was asked for.
        """
        config = self._config
        begun_at = self._progress.step
        losses_since: list[list[float]] = []
        with Prefetcher(self._batches(), workers=workers) as prefetcher:
            clock = _Clock(self._progress.seconds)  # from here on: the start of the workers trains nothing
            samples_logged, seconds_logged = self._progress.samples, clock.seconds()
            while (share := self.share_done(clock.seconds())) < 1.0 and not self._stop_asked:
                if clock.seconds() - clock.seconds_before >= stop_after_s:
                    break
                step = self._progress.step
                size = input_size_at(config, share)
                try:
                    batch = prefetcher.get(step, size)
                except WorkerKilledError:
                    if self._stop_asked:  # a signal to the group stops the workers, too
                        break
                    raise
                self._optimizer.learning_rate = learning_rate_at(config, step, share)
                losses = self._update(batch)
                if not math.isfinite(losses[0]):
                    raise TrainingError(f"the loss is {losses[0]} at update {step}; the checkpoint before it is intact")
                losses_since.append(losses)
                self._progress = replace(
                    self._progress,
                    step=step + 1,
                    samples=self._progress.samples + config.batch_size,
                    seconds=clock.seconds(),
                    input_size=size,
                )
                if clock.due("log", config.log_seconds):
                    rate = (self._progress.samples - samples_logged) / (clock.seconds() - seconds_logged)
                    self._log_losses(np.mean(losses_since, axis=0).tolist(), rate)
                    samples_logged = self._progress.samples
                    losses_since.clear()
                    if clock.due("checkpoint", 60 * config.checkpoint_minutes):
                        self._save()
                    last = self.share_done(clock.seconds()) >= 1.0  # then all that is held out is looked at, below
                    if not last and clock.due("validate", 60 * config.validate_minutes):
                        self._validate(config.validation_samples)
                    seconds_logged = clock.seconds()
        if self._progress.step > begun_at:
            self._progress = replace(self._progress, seconds=clock.seconds())
            self._save()
        elif self._progress.step and not averages_are_of(self._folder, self._progress):
            self._save()  # the piece before was stopped between the two files
        if self.finished and not self._stop_asked and self.validation_is_due:
            self._validate(len(self._validation))
        return self._progress

    def _save(self) -> None:
        save_checkpoint(self._folder, self._progress, self._model, self._optimizer)
        with self._averaged_weights():
            save_averaged(self._folder, self._progress, self._model)

    def _averaged_weights(self) -> _AveragedWeights:
        return _AveragedWeights(self._model, self._optimizer)

    def _validate(self, count: int) -> None:
        if not self._validation or count < 1:
            return
        samples = spread(self._validation, count)
        with self._averaged_weights():
            figures = self._measure(samples)
        self._write_row({**figures, SHARE_COLUMN: len(samples) / len(self._validation)})

    def _log_losses(self, losses: list[float], rate: float) -> None:
        total, *stages = losses
        seconds = self._progress.seconds
        left = minutes_left(self._config, self.share_done(seconds), seconds / 60, rate)
        self._write_row(
            {
                "learning_rate": float(to_numpy(self._optimizer.learning_rate)),
                "loss": total,
                **{f"loss_stage{i}": value for i, value in enumerate(stages, start=1)},
                "images_per_second": rate,
                "minutes_left": left,
            }
        )
        of_stages = f"({', '.join(f'{value:.2f}' for value in stages)})  " if stages else " "
        say(
            f"step {self._progress.step}  input {self._progress.input_size}  loss {total:.2f} "
            f"{of_stages}{rate:.1f} images/s  {left:.0f} min left"
        )

    def _write_row(self, values: dict[str, float]) -> None:
        self._log.write(
            {
                "step": self._progress.step,
                "samples": self._progress.samples,
                "minutes": round(self._progress.seconds / 60, 2),
                "input_size": self._progress.input_size,
                **values,
            }
        )


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


class _AveragedWeights:
    """Inside the block, the model's trainable variables hold their running averages."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        self._variables = model.trainable_variables
        self._optimizer = optimizer
        self._own: list[np.ndarray] = []

    def __enter__(self) -> None:
        from keras import ops

        self._own = [to_numpy(variable) for variable in self._variables]
        self._optimizer.finalize_variable_values(self._variables)
        for variable in self._variables:
            # The optimizer's average is not shared: a compiled step on JAX gives up the buffers it is called with.
            variable.assign(ops.copy(variable.value))

    def __exit__(self, *_: object) -> None:
        for variable, own in zip(self._variables, self._own, strict=True):
            variable.assign(own)


def spread(items: Any, count: int) -> list[Any]:
    """`count` of the items, evenly spread and in order; all of them if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


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
        from trainer.detection.train import prepared
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
