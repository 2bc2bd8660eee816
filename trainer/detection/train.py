"""Trains the hand detector. The loop is `trainer.train`'s with pictures instead of crops."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from trainer.checkpoints import Progress, load_averaged, load_checkpoint, save_averaged, save_checkpoint, to_numpy
from trainer.data.pipeline import ImageStore, Prefetcher
from trainer.detection.batches import DetectorBatches, DetectorData
from trainer.detection.labels import LabelledPicture, read_pictures
from trainer.detection.losses import detector_loss
from trainer.models.detector import build_detector


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """The detector's recipe; fields as in `trainer.configs.TrainConfig`."""

    minutes: float
    batch_size: int = 32
    input_sizes: tuple[tuple[float, int], ...] = ((0.0, 192), (0.55, 256))
    learning_rate: float = 2e-3
    final_rate_share: float = 0.01
    warm_up: float = 0.03
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    ema_momentum: float = 0.998
    seed: int = 0


def packed_loss(targets: Any, grid: Any) -> Any:
    """`detector_loss` of targets as `DetectorBatch` holds them."""
    total, _, _ = detector_loss(grid, targets[..., 0], targets[..., 1], targets[..., 2:8], targets[..., 8:14])
    return total


def from_bytes(model: keras.Model) -> keras.Model:
    image = keras.Input(shape=(None, None, 3), dtype="uint8")
    scaled = keras.layers.Lambda(lambda x: ops.cast(x, "float32") / 255.0 - 0.5)(image)
    return keras.Model(image, model(scaled))


def train(
    config: DetectorConfig, folder: Path, data: DetectorData, *, warm_start: Path | None = None, workers: int = 1
) -> keras.Model:
    """Trains, or goes on, until the time of `config` is over; leaves checkpoints in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(config.seed)
    model = build_detector(batch_norm=True)
    if warm_start is not None:
        load_averaged(warm_start, model)
    optimizer = keras.optimizers.AdamW(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm,
        use_ema=True,
        ema_momentum=config.ema_momentum,
    )
    served = from_bytes(model)
    served.compile(optimizer=optimizer, loss=packed_loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    progress = load_checkpoint(folder, model, optimizer, variant="detector", part="all") or Progress("detector", "all")
    batches = DetectorBatches(data, ImageStore(memory_bytes=8 << 30), batch_size=config.batch_size, seed=config.seed)
    before, started = progress.seconds, time.monotonic()
    logged, saved, losses = started, started, []
    with Prefetcher(batches, workers=workers) as prefetcher:
        while (seconds := before + time.monotonic() - started) < 60 * config.minutes:
            share = seconds / (60 * config.minutes)
            size = [side for begin, side in config.input_sizes if share >= begin][-1]
            batch = prefetcher.get(progress.step, size)
            warm = min(1.0, (share + 1e-3) / config.warm_up)
            low = config.final_rate_share
            optimizer.learning_rate = (
                config.learning_rate * warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
            )
            losses.append(float(served.train_on_batch(batch.pictures, batch.targets)))
            if not math.isfinite(losses[-1]):
                raise RuntimeError("the loss is no number")
            progress = replace(
                progress,
                step=progress.step + 1,
                samples=progress.samples + config.batch_size,
                seconds=before + time.monotonic() - started,
                input_size=size,
            )
            now = time.monotonic()
            if now - logged > 20:
                rate = len(losses) * config.batch_size / (now - logged)
                print(
                    f"step {progress.step} input {size} loss {np.mean(losses):.3f} {rate:.1f} images/s "
                    f"{config.minutes - progress.seconds / 60:.1f} min left",
                    flush=True,
                )
                logged, losses = now, []
            if now - saved > 180:
                _save(folder, progress, model, optimizer)
                saved = time.monotonic()
    _save(folder, progress, model, optimizer)
    return model


def _save(folder: Path, progress: Progress, model: keras.Model, optimizer: Any) -> None:
    save_checkpoint(folder, progress, model, optimizer)
    own = [to_numpy(variable) for variable in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    save_averaged(folder, progress, model)
    for variable, value in zip(model.trainable_variables, own, strict=True):
        variable.assign(value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rendered", type=Path, nargs="*", default=[])
    parser.add_argument("--scenes", type=Path, nargs="*", default=[])
    parser.add_argument("--close", type=Path, nargs="*", default=[])
    parser.add_argument("--holdout-groups", default="^$")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--warm-start", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--input-sizes", default="0:192,0.55:256")
    arguments = parser.parse_args()
    held = re.compile(arguments.holdout_groups)

    def pictures(folders: Sequence[Path]) -> list[LabelledPicture]:
        every = [picture for folder in folders for picture in read_pictures(folder)]
        return [picture for picture in every if not held.search(picture.group or "")]

    photos = pictures(arguments.scenes)
    data = DetectorData(
        pictures(arguments.rendered),
        [each for each in photos if each.hands],
        pictures(arguments.close),
        [each for each in photos if not each.hands and not each.ignored],
    )
    print([len(each) for each in (data.rendered, data.scenes, data.close, data.empty)], flush=True)
    sizes = tuple((float(a), int(b)) for a, _, b in (part.partition(":") for part in arguments.input_sizes.split(",")))
    config = DetectorConfig(minutes=arguments.minutes, learning_rate=arguments.learning_rate, input_sizes=sizes)
    train(config, arguments.run, data, warm_start=arguments.warm_start, workers=arguments.workers)


if __name__ == "__main__":
    main()
