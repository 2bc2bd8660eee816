"""The loop of every training: updates, schedule, checkpoints, log, validation.

It is a plain recipe on Keras alone, so that it runs on any of its backends. What is learned, from what, and how it is
measured, its subclasses say: `trainer.train` for the keypoints' networks, `trainer.train_detector` for the detector.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from trainer.configs import TrainConfig
from trainer.data.pipeline import Batches, Prefetcher, WorkerKilledError
from trainer.devices import jit_pays
from trainer.run_log import SHARE_COLUMN, RunLog
from trainer.run_network import served_from_bytes

if TYPE_CHECKING:
    import keras

FIRST_CROPS = 24
"""A network that starts from finished weights takes statistics of every layer from so many."""


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
