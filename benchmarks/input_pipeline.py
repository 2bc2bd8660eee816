"""Does the input pipeline keep the trainer busy? Batches a second it can build, beside what the network can train on.

    python -m benchmarks.input_pipeline [--data KIND:PATH] [--json FILE]

Measures both alone, one after the other, on the machine it runs on: the pipeline (crop, augmentation, targets, worker
processes and prefetch, as in training) and updates of the lightweight network at the same input size on batches that
are ready. The time of one core per image, which does not depend on what else runs, says how many cores a faster trainer
needs. Pictures are drawn noise unless a data set is given; their content does not matter here.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import add_json, write_json
from service.pose.geometry import Box
from trainer.data.augment import AugmentConfig
from trainer.data.pipeline import Batch, ImageStore, Prefetcher, TrainingBatches
from trainer.data.sample import Sample
from trainer.data.sources import Source, WeightedSamples, read_sources

WANTED_RATIO = 1.5
"""How many times as fast as the trainer the pipeline has to be."""


def main(argv: list[str] | None = None) -> int:
    """Prints both rates and their ratio; exit code 1 if the ratio is below `WANTED_RATIO`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", action="append", metavar="KIND:PATH", help="default: 64 drawn pictures")
    parser.add_argument("--input-size", type=int, default=128, help="side in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images a batch (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the pipeline (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="about how long each is measured (%(default)s)")
    add_json(parser)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    with tempfile.TemporaryDirectory() as folder:
        data = (
            read_sources([Source.parse(text) for text in arguments.data])
            if arguments.data
            else drawn_samples(Path(folder))
        )
        batches = TrainingBatches(data, ImageStore(), batch_size=arguments.batch_size, seed=0, config=AugmentConfig())
        core_ms = core_milliseconds(batches, arguments.input_size, arguments.batch_size)
        fed = pipeline_rate(batches, arguments)
        trained = training_rate(batches.build(0, arguments.input_size), arguments.seconds)

    result = {
        "input_size": arguments.input_size,
        "batch_size": arguments.batch_size,
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "workers": arguments.workers,
        "backend": backend(),
        "core_ms_per_image": round(core_ms, 2),
        "pipeline_images_per_second": round(fed, 1),
        "training_images_per_second": round(trained, 2),
        "ratio": round(fed / trained, 1),
        "wanted_ratio": WANTED_RATIO,
    }
    write_json(result, arguments.json)
    return 0 if result["ratio"] >= WANTED_RATIO else 1


def drawn_samples(folder: Path, count: int = 64, size: tuple[int, int] = (320, 240)) -> WeightedSamples:
    """Samples on pictures of noise, (width, height) pixels, written into the folder."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        path = folder / f"{number:03d}.jpg"
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BILINEAR).save(path)
        keypoints = rng.uniform((80, 40), (240, 200), (21, 2))
        samples.append(
            Sample(
                image_path=path,
                keypoints_in_image=keypoints,
                labelled=np.ones(21, bool),
                visible=np.ones(21, bool),
                box_in_image=Box.around(keypoints),
                handedness=None,
                source="drawn",
                name=path.name,
            )
        )
    return WeightedSamples(tuple(samples), (1.0,) * count)


def pipeline_rate(batches: TrainingBatches, arguments: argparse.Namespace) -> float:
    """Images a second that the prefetching pipeline delivers to someone who only takes."""
    with Prefetcher(batches, workers=arguments.workers) as prefetcher:
        number = 0
        for number in range(20):  # the store fills up
            prefetcher.get(number, arguments.input_size)
        started, taken = time.perf_counter(), 0
        while time.perf_counter() - started < arguments.seconds:
            number += 1
            taken += len(prefetcher.get(number, arguments.input_size).crops)
        return taken / (time.perf_counter() - started)


def core_milliseconds(batches: TrainingBatches, input_size: int, batch_size: int, count: int = 12) -> float:
    """Processor time of one image, in milliseconds; other work on the machine does not count."""
    for number in range(2):
        batches.build(number, input_size)
    started = time.process_time()
    for number in range(2, 2 + count):
        batches.build(number, input_size)
    return 1000 * (time.process_time() - started) / (count * batch_size)


def training_rate(batch: Batch, seconds: float) -> float:
    """Images a second of the lightweight network's updates on a batch that is ready, as in training."""
    import keras

    from trainer.devices import jit_pays
    from trainer.losses import BeliefMapLoss
    from trainer.models import build
    from trainer.run_network import served_from_bytes

    model = served_from_bytes(build("lightweight", batch_norm=True))
    model.compile(
        optimizer=keras.optimizers.AdamW(use_ema=True),
        loss=[BeliefMapLoss() for _ in range(3)],
        jit_compile=jit_pays(),
    )
    targets = [batch.targets] * 3
    for _ in range(2):  # tracing and memory
        model.train_on_batch(batch.crops, targets)
    started, updates = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or updates < 3:
        model.train_on_batch(batch.crops, targets)
        updates += 1
    return updates * len(batch.crops) / (time.perf_counter() - started)


def backend() -> str:
    """Keras's backend."""
    import keras

    return str(keras.backend.backend())


if __name__ == "__main__":
    sys.exit(main())
