"""Turns a finished run into weights for serving: `python -m trainer finish --run NAME`.

It takes the run's averaged weights, writes them folded and in half precision (`trainer.weights`), reads them back,
and measures what was read on the held-out pictures. The measured figures and where the weights come from go into the
JSON beside them. Configuration, data and which pictures are held out come from the run's own record
(`trainer.run_record`), so nothing that the run was trained on is measured. Of finished weights that are mixed in, only
rules are known: a note says so where theirs were others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.pose.heatmaps import STRIDE, TARGET_SIGMA
from service.pose.preprocessing import CROP_PADDING
from trainer import run_record, weights
from trainer.checkpoints import Progress, check_averages, load_averaged, read_averaged_progress
from trainer.data.pipeline import ImageStore
from trainer.data.sample import OnBad, SkippedSamples, refuse_bad
from trainer.data.sources import Source, read_sources
from trainer.errors import RefusedError
from trainer.evaluate import evaluate_samples, network_of_weights, report
from trainer.run_network import build_training_model, whole_network
from trainer.run_record import RUNS_FOLDER, RunRecord


def write_weights(
    record: RunRecord,
    run_folder: Path,
    measured_on: Sequence[Any],
    path: Path,
    notes: Mapping[str, Any],
    *,
    input_size: int | None = None,
    mean_with: Sequence[weights.StoredWeights] = (),
    features: Path | None = None,
) -> dict[str, Any]:
    """Writes `path` (.npz) and the .json beside it; returns the measured figures, by data set and of all together.

    `measured_on` are hands (`Sample`), or for the detector pictures (`LabelledPicture`).
    `input_size` is the side in pixels at which the weights are measured and served; None: at which the run ended.
    `mean_with` are finished weights of this network: what is written is the mean of all of them and the run's.
    `features` are finished lightweight weights: of a standard network trained on them, the stages alone are written.

    Raises:
        CheckpointError: the averaged weights are missing, damaged, or older than the run's checkpoint.
        WeightsError: weights to take the mean with are of another network.
    """
    config = record.config
    check_averages(run_folder)
    model = build_training_model(config)
    progress = load_averaged(run_folder, model)
    info = weights.WeightsInfo(
        variant=config.variant,
        created=datetime.now(UTC).date().isoformat(),
        input_size=input_size or config.final_input_size,
        target_sigma_in_cells=None if config.variant == weights.DETECTOR else TARGET_SIGMA,
        crop_padding=CROP_PADDING,
        provenance={
            "run": run_folder.name,
            **_provenance(record, progress),
            **({"mean_with": [_named(each) for each in mean_with]} if mean_with else {}),
            **notes,
        },
    )
    network = whole_network(model, config)
    # Measured is what is stored, so the half-precision weights are read back before any figure is taken.
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / path.name
        weights.save(network, rounded, info, features=features)
        if mean_with:
            network = weights.mean([weights.load(rounded), *mean_with])
            weights.save(network, rounded, info, features=features)
        measured = _measure(rounded, config.variant, measured_on)
    weights.save(network, path, replace(info, metrics=measured), features=features)
    return measured


def _notes_on(others: Sequence[weights.StoredWeights], record: RunRecord) -> list[str]:
    """What a reader of the figures has to know of weights in the mean that held out other pictures than the run."""
    return [
        run_record.note_on(other, record.config, "in the mean with")
        for other in others
        if not run_record.held_out_alike(other, record.config)
    ]


def _named(stored: weights.StoredWeights) -> dict[str, Any]:
    return {"run": stored.info.provenance.get("run"), "weights_sha256": stored.sha256}


def _measure(path: Path, variant: str, samples: Sequence[Any]) -> dict[str, Any]:
    network = network_of_weights(path, variant)
    if variant == weights.DETECTOR:
        from trainer.detection.evaluate import detect
        from trainer.detection.evaluate import report as report_of_detector

        judged = detect(network.predict, samples, ImageStore(), network.input_size)
        return {"held-out pictures": report_of_detector(judged)}
    content = report(evaluate_samples(network.predict, samples, ImageStore(), network.input_size, show_progress=True))
    return {**content["by_data_set"], "all held-out pictures": content["all"]}


def _provenance(record: RunRecord, progress: Progress) -> dict[str, Any]:
    config = record.config
    return {
        "hands_trained_on": dict(record.hands),
        "samples_seen": progress.samples,
        "batch_size": config.batch_size,
        "updates": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "input_sizes": [list(entry) for entry in config.input_sizes],
        "part": config.part,
        "frozen_blocks": config.frozen_blocks,
        "warm_start": record.warm_start,
        "teacher": record.teacher,
        "distil_weight": config.distil_weight,
        "split": config.split,
        "held_out_file_names": list(config.holdout),
        "left_out_bad_samples": record.skip_bad,
        "notes": list(record.notes),
        "credits": [asdict(credit) for credit in record.credits],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `finish`."""
    parser.add_argument("--run", required=True, help=f"name of the run's folder in {RUNS_FOLDER}/")
    parser.add_argument(
        "--data", action="append", metavar="KIND:PATH", help="where the run's data is now (default: where it was)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="NPZ", help=f"weights file (default: {RUNS_FOLDER}/RUN/weights/VARIANT.npz)"
    )
    parser.add_argument(
        "--input-size", type=int, help="input side in pixels to serve at, a multiple of 8 (default: the run's last)"
    )
    parser.add_argument(
        "--mean-with",
        type=Path,
        action="append",
        default=[],
        metavar="NPZ",
        help="finished weights from the same start; the mean of all of them and the run's is written (repeatable)",
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="NPZ",
        help="finished lightweight weights that the standard network's stages were trained on: the stages alone are "
        "written, and these weights are copied beside them",
    )
    parser.add_argument("--notes", type=Path, help="JSON object that is added to the provenance")


def run(arguments: argparse.Namespace) -> int:
    """Writes and measures the weights, and prints the figures."""
    notes = _read_notes(arguments.notes) if arguments.notes else {}
    folder = RUNS_FOLDER / arguments.run
    record = run_record.read(folder)
    size, step = arguments.input_size, weights.input_step(record.config.variant)
    if size is not None and (size < 3 * STRIDE or size % step):
        raise RefusedError(f"--input-size must be a multiple of {step} from {3 * STRIDE} on, got {size}")
    measured_on = _measured_on(record, arguments.data or record.sources)
    path: Path = arguments.out or weights.path_in_run(folder, record.config.variant)
    if path.resolve() in [other.resolve() for other in arguments.mean_with]:
        raise RefusedError(f"{path} is among the weights to take the mean with, which it would replace: name another")
    mean_with = [weights.load(other, record.config.variant) for other in arguments.mean_with]
    record = replace(record, notes=(*record.notes, *_notes_on(mean_with, record)))
    measured = write_weights(
        record,
        folder,
        measured_on,
        path,
        notes,
        input_size=size,
        mean_with=mean_with,
        features=arguments.features,
    )
    progress = read_averaged_progress(folder)
    if record.config.share_done(progress.step, progress.seconds) < 1.0:
        print(f"note: {arguments.run} was stopped at update {progress.step}, before its end", file=sys.stderr)
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written: {path} and {weights.info_path(path).name} beside it", file=sys.stderr)
    print(json.dumps(measured, indent=2))
    return 0


def _measured_on(record: RunRecord, data: Sequence[str]) -> Sequence[Any]:
    """What was held out of the run: hands, or the detector's pictures."""
    if record.config.variant == weights.DETECTOR:
        from trainer.detection.sets import parse_sources, read_sets

        return record.measured([picture for _, picture in read_sets(parse_sources(data))])
    skipped = SkippedSamples()
    on_bad: OnBad = skipped if record.skip_bad else refuse_bad
    samples = read_sources([Source.parse(text) for text in data], on_bad).samples
    if skipped.reasons:
        print(skipped.summary(), file=sys.stderr)
    return record.measured(samples)


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise RefusedError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    return content
