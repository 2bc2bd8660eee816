"""Turns a finished run into weights for serving: `python -m trainer finish --config first --run NAME --data coco:DIR`.

It takes the run's averaged weights, writes them folded and in half precision (`trainer.weights`), reads them back,
and measures what was read on the held-out pictures. The measured figures and where the weights come from go into the
JSON beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.pose.heatmaps import TARGET_SIGMA
from service.pose.preprocessing import CROP_PADDING
from trainer import weights
from trainer.checkpoints import Progress, load_averaged
from trainer.configs import TrainConfig, load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sample import Sample
from trainer.data.sources import Source, WeightedSamples, read_sources
from trainer.errors import RefusedError
from trainer.evaluate import evaluate_samples, network_of_weights, report
from trainer.train import RUNS_FOLDER, build_training_model, split_data, whole_network


def write_weights(
    config: TrainConfig,
    run_folder: Path,
    train: WeightedSamples,
    validation: Sequence[Sample],
    path: Path,
    *,
    warm_start: Path | None,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes `path` (.npz) and the .json beside it; returns the measured figures by data set."""
    model = build_training_model(config, warm_start)
    progress = load_averaged(run_folder, model)
    info = weights.WeightsInfo(
        variant=config.variant,
        created=datetime.now(UTC).date().isoformat(),
        input_size=config.final_input_size,
        target_sigma_in_cells=TARGET_SIGMA,
        crop_padding=CROP_PADDING,
        provenance=_provenance(config, progress, train, warm_start, notes),
    )
    network = whole_network(model, config)
    # Measured is what is stored, so the half-precision weights are read back before any figure is taken.
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / path.name
        weights.save(network, rounded, info)
        measured = _measure(rounded, config.variant, validation)
    weights.save(network, path, replace(info, metrics=measured))
    return measured


def _measure(path: Path, variant: str, samples: Sequence[Sample]) -> dict[str, Any]:
    network = network_of_weights(path, variant)
    content = report(
        evaluate_samples(network.predict, samples, ImageStore(longest_side=0), network.input_size, show_progress=True)
    )
    return {**content["by_data_set"], "all held-out pictures": content["all"]}


def _provenance(
    config: TrainConfig,
    progress: Progress,
    train: WeightedSamples,
    warm_start: Path | None,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    names = [sample.source for sample in train.samples]
    return {
        "hands_trained_on": {name: names.count(name) for name in sorted(set(names))},
        "samples_seen": progress.samples,
        "updates": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "input_sizes": [list(entry) for entry in config.input_sizes],
        "part": config.part,
        "warm_start": warm_start.name if warm_start else None,
        "held_out_file_names": list(config.holdout),
        **notes,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `finish`."""
    parser.add_argument("--config", required=True, help="the run's configuration")
    parser.add_argument("--run", required=True, help=f"name of the run's folder in {RUNS_FOLDER}/")
    parser.add_argument("--data", required=True, action="append", metavar="KIND:PATH", help="as in training")
    parser.add_argument("--warm-start", type=Path, metavar="RUN", help="as in training")
    parser.add_argument("--out", type=Path, help="weights file (default: the repository's, of this variant)")
    parser.add_argument("--notes", type=Path, help="JSON object that is added to the provenance")


def run(arguments: argparse.Namespace) -> int:
    """Writes and measures the weights, and prints the figures."""
    config = load_config(arguments.config)
    data = read_sources([Source.parse(text) for text in arguments.data])
    train, validation = split_data(data, config)
    if not validation.samples:
        raise RefusedError("nothing is held out, so there is nothing to measure on")
    measured = write_weights(
        config,
        RUNS_FOLDER / arguments.run,
        train,
        validation.samples,
        arguments.out or weights.default_path(config.variant),
        warm_start=arguments.warm_start,
        notes=json.loads(arguments.notes.read_text(encoding="utf-8")) if arguments.notes else {},
    )
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trainer.finish", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
