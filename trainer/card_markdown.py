"""Writes the model card for people, `docs/models/<variant>.md`, from the weights, the run's log and evaluations.

Every figure comes from the file that measured it, so a new training needs this command and no editing. Curves and
overlays are pictures beside the card. (The card in a servable's folder, for programs, is `trainer.model_card`.)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer import run_record, weights
from trainer.atomic_files import write_text_atomically
from trainer.errors import RefusedError
from trainer.run_log import is_validation, read_log
from trainer.run_record import RUNS_FOLDER, RunRecord
from trainer.weights import StoredWeights, WeightsInfo

_FIGURES: Final = {
    "samples": "hands",
    "pck_at_0_1": "PCK@0.1",
    "pck_at_0_2": "PCK@0.2",
    "auc_mmpose": "AUC, MMPose's form",
    "auc_mmpose_in_256_px_crop": "the same in a 256-px crop",
    "auc_trapezoid": "AUC, trapezoid 0–0.3",
    "epe_px": "EPE, px",
}
_DATA_NOTES: Final = ("labels", "data_licences", "synthetic", "held_out", "held_out_file_names", "split")
_RECIPE_NOTES: Final = (
    "part",
    "frozen_blocks",
    "warm_start",
    "teacher",
    "distil_weight",
    "batch_size",
    "input_sizes",
    "changes_on_the_way",
)
_COMPUTE_NOTES: Final = ("compute", "minutes", "updates", "samples_seen")
_SHOWN_ELSEWHERE: Final = ("hands_trained_on", "credits", "summary", "measured", "run")
_RECIPE_FIELDS: Final = (
    "steps", "minutes", "batch_size", "input_sizes", "learning_rate", "schedule", "warm_up", "final_rate_share",
    "weight_decay", "clip_norm", "distil_weight", "ema_momentum", "part", "frozen_blocks", "precision", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Size and cost of a network: parameters, twice the kernel weights, multiply-accumulates by input side."""

    parameters: int
    paper_flops: int
    macs: Mapping[int, int]


def document(
    info: WeightsInfo,
    digest: str,
    counts: Counts,
    record: RunRecord | None,
    results: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, str],
) -> str:
    """The document as Markdown.

    Args:
        info: the weights' description.
        digest: SHA-256 of the weights file.
        counts: size and cost.
        record: of the run; None for runs from before there were records.
        results: what `evaluate --out` wrote, one for each call.
        pictures: file names beside the document, by what they show: "curves", "overlays".
    """
    notes = info.provenance
    parts = [
        "# The hand detector" if info.variant == weights.DETECTOR else f"# The {info.variant} network",
        _HEAD,
        str(notes.get("summary", "")),
        _table(
            ("fact", "value"),
            [
                ("parameters", f"{counts.parameters:,}"),
                ('"Flops" of the paper (twice the kernel weights)', f"{counts.paper_flops / 1e6:.2f} M"),
                *(
                    (f"multiply-accumulates at {size} × {size}", f"{macs / 1e9:.2f} G")
                    for size, macs in counts.macs.items()
                ),
                ("input, pixels", f"{info.input_size} × {info.input_size}"),
                ("crop around a hand's box", f"× {info.crop_padding:g}"),
                *(
                    [("target Gaussians, belief-map cells", f"{info.target_sigma_in_cells:g}")]
                    if info.target_sigma_in_cells is not None
                    else []
                ),
                ("trained", info.created),
                ("weights, SHA-256", f"`{digest}`"),
            ],
        ),
        "## Data and licences",
        _table(("set", "hands trained on"), [(n, f"{c:,}") for n, c in notes.get("hands_trained_on", {}).items()]),
        _credits(notes.get("credits", ())),
        _notes(notes, _DATA_NOTES),
        "## Recipe",
        _recipe(record, notes),
        "## Compute",
        _notes(notes, _COMPUTE_NOTES),
    ]
    if "curves" in pictures:
        parts += ["## Curves", f"![Loss and validation over the updates]({pictures['curves']})"]
    is_detector = info.variant == weights.DETECTOR
    parts += ["## Results", *(_detector_results(info, results) if is_detector else _results(info, results))]
    if "overlays" in pictures:
        colours = "false alarms red, hands white, found ones green" if is_detector else "white rings the labels"
        parts += [
            "## Where it is wrong",
            f"![The worst of what it was not trained on, {colours}]({pictures['overlays']})",
        ]
    further = [name for name in notes if name not in (*_DATA_NOTES, *_RECIPE_NOTES, *_COMPUTE_NOTES, *_SHOWN_ELSEWHERE)]
    parts += ["## Limits", _DETECTOR_LIMITS if is_detector else _LIMITS, _notes(notes, further)]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEAD: Final = """\
Written by `python -m trainer card`; do not edit. How to train is in [training.md](../training.md), what the figures
mean in `trainer/metrics.py`, those of every released version in [history.md](history.md)."""

_ERRORS: Final = "Standard errors (±) are over groups of people, or over pictures where no group is told."

_LIMITS: Final = """\
One hand a crop: the caller says where the hand is. A hand much smaller than the crop, two hands in it, or no hand at
all gives keypoints all the same. Pseudo-labels are another network's answers, so agreement with them is not
accuracy. Not for identifying people, and not for decisions about them."""


_DETECTOR_LIMITS: Final = """\
It sees the whole picture at one size, so small hands are few pixels; how many of those that were excused are found is
not known, nor is what the tables give no hands for. Labels that are another network's answers make agreement of it, not
accuracy. Not for identifying people, and not for decisions about them."""


def _credits(named: Sequence[Mapping[str, str]]) -> str:
    if not named:
        return ""
    rows = [(credit["source"], credit["author"], credit["licence"]) for credit in named]
    return "Pictures by:\n\n" + _table(("source", "author", "licence"), rows)


def _recipe(record: RunRecord | None, notes: Mapping[str, Any]) -> str:
    if record is None:
        return "The run is from before runs kept their configuration; this is what is known of it.\n\n" + _notes(
            notes, _RECIPE_NOTES
        )
    config = record.config
    values = {name: getattr(config, name) for name in _RECIPE_FIELDS}
    values["input_sizes"] = _shown_sizes(config.input_sizes)
    rows = [(name.replace("_", " "), _shown(value)) for name, value in values.items() if value is not None]
    rows += [(name, value) for name, value in (("warm start", record.warm_start), ("teacher", record.teacher)) if value]
    return _table(("setting", "value"), rows) + "\n\n" + _notes(notes, ("changes_on_the_way",))


def _results(info: WeightsInfo, results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = [
        "Measured by `finish` on the pictures held out of the training data, through the crop and decoding of serving, "
        "boxes from the labels. " + str(info.provenance.get("measured", "")),
        _figures(info.metrics),
    ]
    for result in results:
        rows = {**result["by_data_set"], "all": result["all"], "visible": result["visible"], "hidden": result["hidden"]}
        for kind in ("group", "view", "fingers", "size"):
            rows |= {f"{kind}: {part}": figures for part, figures in result.get(f"by_{kind}", {}).items()}
        boxes = result.get("boxes_a_hand", 1)  # results of before there could be several
        rows = {name: {**figures, "samples": figures["samples"] // boxes} for name, figures in rows.items()}
        how = f"Protocol {result['protocol']}{f', each hand in {boxes} boxes' if boxes > 1 else ''}, input"
        parts += [
            "With this command, of the weights or of the servable made from them:",
            f"```sh\n{result['command']}\n```",
            f"{how} {result['input_size']} px, {result['left_out']} samples left out. {_ERRORS}",
            _figures(rows),
        ]
        if result.get("turned"):
            shares = [
                (f"{degrees}°", *(_number(share[name]) for name in ("turn_given", "turn_not_given")))
                for degrees, share in result["turned"].items()
            ]
            parts += [_table(("picture turned by", "PCK@0.1, turn given", "not given"), shares)]
    return parts


def _detector_results(info: WeightsInfo, results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = ["Measured by `finish` on the pictures held out of the training data, letterboxed as serving does it."]
    for measured in info.metrics.values():
        parts += _detector_figures(measured)
    for result in results:
        parts += [
            "With this command, of the weights or of the servable made from them:",
            f"```sh\n{result['command']}\n```",
            *_detector_figures(result),
        ]
    return parts


def _detector_figures(content: Mapping[str, Any]) -> list[str]:
    from trainer.detection.evaluate import rows_of, sentences_of

    head, *rows = rows_of(content)
    return [_table(head, rows), " ".join(sentences_of(content))]


def _figures(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return _table(
        ("data", *_FIGURES.values()),
        [(name, *(_with_error(figures, key) for key in _FIGURES)) for name, figures in rows.items()],
    )


def _with_error(figures: Mapping[str, Any], key: str) -> str:
    error = figures.get(f"{key}_se")
    return _number(figures.get(key)) + ("" if error is None else f" ± {error:.3f}")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _notes(notes: Mapping[str, Any], names: Sequence[str]) -> str:
    notes = {**notes, "input_sizes": _shown_sizes(notes.get("input_sizes", ()))}
    rows = [(name.replace("_", " "), _shown(notes[name])) for name in names if notes.get(name)]
    return _table(("note", "value"), rows) if rows else ""


def _shown_sizes(input_sizes: Sequence[tuple[float, int]]) -> str:
    return ", ".join(f"{size} px from {share:.0%} on" for share, size in input_sizes)


def _shown(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw_curves(log: Sequence[Mapping[str, float]], path: Path, *, is_detector: bool = False) -> None:
    """Draws the loss (faint as logged, smoothed on top), held-out pictures' figures, and where the input grew."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    trained = [row for row in log if "loss" in row]
    steps = [row["step"] for row in trained]
    stages = {f"loss_stage{stage}": f"stage {stage}" for stage in (1, 2, 3)}
    for column, label in ({"loss": "loss"} if is_detector else stages).items():
        losses = [row[column] for row in trained]
        (line,) = left.plot(steps, _smoothed(losses), label=label)
        left.plot(steps, losses, color=line.get_color(), alpha=0.2, linewidth=0.6)
    left.set(xlabel="updates", ylabel="loss" if is_detector else "loss, squared error a map", yscale="log")
    left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)  # above, where it covers nothing
    validated = [row for row in log if is_validation(row)]
    figures = {"pck_at_0_1": "PCK@0.1", "pck_at_0_2": "PCK@0.2"}
    for column, label in (
        {"recall_at_0_1_alarms": "at 0.1 false alarms a picture"} if is_detector else figures
    ).items():
        right.plot([row["step"] for row in validated], [row[column] for row in validated], marker=".", label=label)
    what = "hands found" if is_detector else "share of keypoints"
    right.set(xlabel="updates", ylabel=f"{what}, held-out pictures", ylim=(0, 1.08))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.set_xlim(0, max(row["step"] for row in log))
        _mark_input_sizes(axes, log)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _smoothed(values: Sequence[float], reach: int = 4) -> list[float]:
    """Means over each value and its neighbours on both sides."""
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _mark_input_sizes(axes: Any, log: Sequence[Mapping[str, float]]) -> None:
    before = None
    for row in log:
        if row["input_size"] != before:
            if before is not None:
                axes.axvline(row["step"], color="grey", linewidth=0.8, linestyle=":")
            axes.text(
                row["step"],
                0.99,
                f" {row['input_size']:.0f} px",
                transform=axes.get_xaxis_transform(),
                va="top",
                fontsize=8,
            )
            before = row["input_size"]


def draw_overlays(path: Path, weights_file: Path, source: str, holdout: Sequence[str], count: int) -> None:
    """Draws the hands of a data set, or of its held-out part, that the network finds worst, as one picture (.jpg).

    Of the detector it draws the pictures with the worst false alarms and misses.
    """
    from trainer.data.pipeline import ImageStore
    from trainer.data.sources import Source, read_sources, split_by_name
    from trainer.evaluate import contact_sheet, evaluate_samples, network_of_weights

    network = network_of_weights(weights_file)
    store = ImageStore()
    path.parent.mkdir(parents=True, exist_ok=True)
    if network.variant == weights.DETECTOR:
        from trainer.detection.evaluate import detect, worst_sheet
        from trainer.detection.sets import held_out_of

        judged = detect(network.predict, held_out_of([source], holdout), store, network.input_size)
        worst_sheet(judged, store, count=count, columns=6).save(path, quality=85)
        return
    data = read_sources([Source.parse(source)])
    samples = (split_by_name(data, holdout, may_take_all=True)[1] if holdout else data).samples
    evaluation = evaluate_samples(network.predict, samples, store, network.input_size, show_progress=True)
    contact_sheet(evaluation, store, evaluation.worst(count), columns=6).save(path, quality=85)


def count(stored: StoredWeights) -> Counts:
    """Size and cost of the network with these weights, at 256 pixels and at the size it is served at."""
    from trainer.profile import count_model

    sizes = sorted({stored.info.input_size, 256})
    counted = {size: count_model(weights.to_model(stored, input_size=size)) for size in sizes}
    some = counted[256]
    return Counts(some.parameters, some.paper_flops, {size: entry.macs for size, entry in counted.items()})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `card`."""
    parser.add_argument("--variant", choices=weights.VARIANTS, required=True)
    parser.add_argument("--run", required=True, metavar="RUN", help=f"the run's folder, or its name in {RUNS_FOLDER}/")
    parser.add_argument("--weights", type=Path, metavar="NPZ", help="weights file (default: what `finish` wrote)")
    parser.add_argument("--out", type=Path, default=Path("docs/models"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what `evaluate --out` wrote; repeatable",
    )
    parser.add_argument(
        "--overlays", metavar="KIND:PATH", help="a data set of which to draw the worst hands, held out of training"
    )
    parser.add_argument(
        "--holdout", action="append", default=[], metavar="REGEX", help="only pictures of --overlays with such names"
    )
    parser.add_argument("--overlay-count", type=int, default=24, help="hands on the sheet (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the document and its pictures."""
    folder = Path(arguments.run) if Path(arguments.run).is_dir() else RUNS_FOLDER / arguments.run
    path = arguments.weights or weights.path_in_run(folder, arguments.variant)
    stored = weights.load(path, arguments.variant)
    results = [_read_results(file, stored.sha256) for file in arguments.results]
    record = run_record.read(folder) if (folder / run_record.FILE_NAME).is_file() else None
    log = read_log(folder)
    if arguments.overlay_count < 1:
        raise RefusedError(f"--overlay-count must be at least 1, got {arguments.overlay_count}")

    out: Path = arguments.out
    pictures = {"curves": f"{arguments.variant}-curves.png"}
    draw_curves(log, out / pictures["curves"], is_detector=stored.variant == weights.DETECTOR)
    if arguments.overlays:
        pictures["overlays"] = f"{arguments.variant}-overlays.jpg"
        draw_overlays(out / pictures["overlays"], path, arguments.overlays, arguments.holdout, arguments.overlay_count)
    text = document(stored.info, stored.sha256, count(stored), record, results, pictures)
    write_text_atomically(out / f"{arguments.variant}.md", text)
    print(f"{out / arguments.variant}.md")
    return 0


def _read_results(file: Path, digest: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        of = content["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{file}: not what `evaluate --out` writes: {error}") from error
    if of != digest:
        raise RefusedError(f"{file}: these are the results of other weights; evaluate them again")
    result: dict[str, Any] = content
    return result
