"""Measures a network on labelled hands: `python -m trainer evaluate --variant V --data KIND:PATH`.

Pictures go through the crop and belief maps through the decoding that serving uses, so the figures are those of the
service, boxes apart: they are taken from the labels, or lie a little beside them, as a detector's do. The network comes
from a weights file or from a servable (a SavedModel as it is deployed).
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from service.pose.drawing import draw_hand
from service.pose.geometry import Box
from service.pose.heatmaps import STRIDE, decode
from service.pose.keypoints import KEYPOINT_NAMES
from trainer import metrics, model_card
from trainer.atomic_files import write_text_atomically
from trainer.breakdown import breakdown, cluster_of
from trainer.data.augment import NO_AUGMENTATION, UPRIGHT
from trainer.data.pipeline import ImageStore, evaluation_crops, make_crop, readable, to_model_input
from trainer.data.rhd import paper_split
from trainer.data.sample import DataError, OnBad, Sample, SkippedSamples, refuse_bad
from trainer.data.sources import Source, read_sources, split_by_name
from trainer.errors import RefusedError
from trainer.export import load_servable, served_size
from trainer.turned_pictures import TURNS, turned
from trainer.weights import DETECTOR, input_step

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Crops uint8 RGB [N, S, S, 3] to the last stage's belief maps float32 [N, S/8, S/8, 22]; the detector's to detections
[N, 16, 7]."""

Protocol = Literal["box", "mmpose-rhd", "head"]

PROTOCOLS: dict[Protocol, str] = {
    "box": "crop and PCK from the tight box of the keypoints, or where some are not labelled, the data set's own box",
    "mmpose-rhd": "crop and PCK from that box times 1.2, clipped to the picture, as MMPose's RHD figures",
    "head": "crop from that box, PCK divided by the data set's head size (Panoptic)",
}

_BOX_SHIFT = 0.07  # of its longer side, by which a box is off at the most, in x and in y
_BOX_SCALES = (0.85, 1.25)  # by which it is too small or too large at the most


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions beside what is true, for N hands.

    Attributes:
        samples: the hands, each with the box that its crop was made from.
        predicted_in_image: float64 [N, 21, 2], continuous pixels of each original picture.
        confidence: float32 [N, 21], peak beliefs.
        distance_px: float64 [N, 21], pixels of the original picture; where not labelled it means nothing.
        distance_in_input: float64 [N, 21], pixels of the model's input crop.
        sides_px: float64 [N], the length that PCK divides by, pixels of the original picture.
        size_in_picture: float64 [N], the longer side of the hand's box over that of its picture.
        input_size: side of the model's input in pixels.
    """

    samples: Sequence[Sample]
    predicted_in_image: NDArray[np.float64]
    confidence: NDArray[np.float32]
    distance_px: NDArray[np.float64]
    distance_in_input: NDArray[np.float64]
    sides_px: NDArray[np.float64]
    size_in_picture: NDArray[np.float64]
    input_size: int

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """bool [N, 21]."""
        return np.stack([sample.labelled for sample in self.samples])

    @property
    def visible(self) -> NDArray[np.bool_]:
        """bool [N, 21]."""
        return np.stack([sample.visible for sample in self.samples])

    def subset(self, chosen: NDArray[np.bool_]) -> Evaluation:
        """The same evaluation of the chosen samples only; chosen: bool [N]."""
        return Evaluation(
            samples=[sample for sample, keep in zip(self.samples, chosen.tolist(), strict=True) if keep],
            predicted_in_image=self.predicted_in_image[chosen],
            confidence=self.confidence[chosen],
            distance_px=self.distance_px[chosen],
            distance_in_input=self.distance_in_input[chosen],
            sides_px=self.sides_px[chosen],
            size_in_picture=self.size_in_picture[chosen],
            input_size=self.input_size,
        )

    def scores(self, chosen: NDArray[np.bool_] | None = None) -> metrics.Scores:
        """All figures over every labelled keypoint, or over those that `chosen` [N, 21] picks among them."""
        counted = self.labelled if chosen is None else self.labelled & chosen
        return metrics.score(self.distance_px, self.sides_px, counted)

    def auc_mmpose_in_crop(self, side: int = 256) -> float:
        """`metrics.auc_mmpose` with distances as they would be in a crop of this side."""
        return metrics.auc_mmpose(self.distance_in_input * (side / self.input_size), self.labelled)

    def relative_error(self) -> NDArray[np.float64]:
        """Mean distance of each hand's labelled keypoints over its side: float64 [N]."""
        relative = np.where(self.labelled, self.distance_px / self.sides_px[:, None], 0.0)
        mean: NDArray[np.float64] = relative.sum(axis=1) / self.labelled.sum(axis=1)
        return mean

    def worst(self, count: int) -> list[int]:
        """Indices of the samples with the largest mean distance relative to their box, worst first."""
        return [int(index) for index in np.argsort(-self.relative_error())[:count]]


def evaluate_samples(
    predict: Predict,
    samples: Sequence[Sample],
    store: ImageStore,
    input_size: int,
    *,
    batch_size: int = 32,
    protocol: Protocol = "box",
    boxes: int = 1,
    upright: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Runs the network on the crop of every sample and compares; on request with a progress bar on stderr.

    With more than one box a hand, the first is the protocol's and the others lie beside it, by the same chance every
    time. Distances are divided by the length that belongs to the first. With `upright`, crops are turned so that wrist
    -> middle_mcp points up and their box is taken anew, as where a detection gives the turn.

    Raises:
        DataError: there are no samples, or the protocol needs what a sample does not have.
    """
    if not samples:
        raise DataError("there is no hand to evaluate on")
    if boxes < 1:
        raise ValueError(f"a hand is looked at in at least 1 box, got {boxes}")
    samples = [_prepared(sample, store, protocol) for sample in samples]
    sides = np.repeat([_normalising_length(sample, protocol) for sample in samples], boxes)
    random = np.random.default_rng(0)
    samples = [
        replace(sample, box_in_image=_beside(sample.box_in_image, random)) if number else sample
        for sample in samples
        for number in range(boxes)
    ]
    predicted, confidences, in_input, sizes = [], [], [], []
    groups = track(
        evaluation_crops(samples, store, input_size, batch_size, UPRIGHT if upright else NO_AUGMENTATION),
        description="evaluating",
        total=math.ceil(len(samples) / batch_size),
        console=Console(stderr=True),
        transient=True,
        disable=not show_progress,
    )
    for group, crops in groups:
        decoded = decode(predict(np.stack([crop.pixels for crop in crops])))
        for sample, crop, in_heatmap, confidence in zip(group, crops, decoded.in_heatmap, decoded.scores, strict=True):
            keypoints_in_input = in_heatmap.astype(np.float64) * STRIDE
            keypoints_in_image = crop.image_to_input.inverse().apply(keypoints_in_input)
            predicted.append(keypoints_in_image)
            confidences.append(confidence)
            picture = store.get(sample.image_path)
            sizes.append(metrics.normalising_side(sample.box_in_image) / max(picture.width, picture.height))
            in_input.append(
                metrics.distances(keypoints_in_image, sample.keypoints_in_image) * crop.image_to_input.scale
            )
    true = np.stack([sample.keypoints_in_image for sample in samples])
    return Evaluation(
        samples=samples,
        predicted_in_image=np.stack(predicted),
        confidence=np.stack(confidences),
        distance_px=metrics.distances(np.stack(predicted), true),
        distance_in_input=np.stack(in_input),
        sides_px=sides,
        size_in_picture=np.array(sizes),
        input_size=input_size,
    )


def _prepared(sample: Sample, store: ImageStore, protocol: Protocol) -> Sample:
    """The sample with the box that the protocol crops."""
    if protocol != "mmpose-rhd":
        return sample
    picture = store.get(sample.image_path)
    box = metrics.mmpose_rhd_box(sample.box_in_image, (picture.width, picture.height))
    return replace(sample, box_in_image=box)


def _beside(box: Box, random: np.random.Generator) -> Box:
    """A box about as far off as a detector's."""
    scaled = box.scaled(float(np.exp(random.uniform(*np.log(_BOX_SCALES)))))
    across, down = random.uniform(-_BOX_SHIFT, _BOX_SHIFT, 2) * max(box.width, box.height)
    return replace(scaled, x=scaled.x + float(across), y=scaled.y + float(down))


def _normalising_length(sample: Sample, protocol: Protocol) -> float:
    if protocol != "head":
        return metrics.normalising_side(sample.box_in_image)
    if sample.head_size_px is None:
        raise DataError(f"{sample.image_path}: protocol 'head' needs a head size, this data set has none")
    return sample.head_size_px


def pck_of_turned_pictures(
    predict: Predict, samples: Sequence[Sample], store: ImageStore, input_size: int
) -> dict[str, dict[str, float]]:
    """PCK@0.1 by degrees, with the turn given and not given. Distances are divided by the side of the unturned box."""
    sides = np.array([metrics.normalising_side(sample.box_in_image) for sample in samples])
    shares: dict[str, dict[str, float]] = {}
    for degrees in TURNS:
        with tempfile.TemporaryDirectory() as folder:
            pictures = [turned(s, store, degrees, Path(folder) / f"{i}.png") for i, s in enumerate(samples)]
            kept = ImageStore()
            shares[str(degrees)] = {}
            for name, upright in (("turn_given", True), ("turn_not_given", False)):
                evaluation = evaluate_samples(predict, pictures, kept, input_size, upright=upright, show_progress=True)
                shares[str(degrees)][name] = metrics.pck(evaluation.distance_px, sides, evaluation.labelled, 0.1)
    return shares


def report(evaluation: Evaluation) -> dict[str, Any]:
    """Everything measured, as plain values for JSON: overall, by kind of hand, visible and hidden, by keypoint.

    `by_group` and the like hold what the data sets tell of. Figures that nothing was counted for are None.
    """
    counted = evaluation.labelled
    pck = metrics.pck_per_keypoint(evaluation.distance_px, evaluation.sides_px, counted, 0.2)
    epe = metrics.epe_per_keypoint(evaluation.distance_px, counted)
    content: dict[str, Any] = {
        "input_size": evaluation.input_size,
        "all": _figures(evaluation),
        **{
            f"by_{name}": {part: _figures(evaluation.subset(chosen)) for part, chosen in parts.items()}
            for name, parts in breakdown(evaluation.samples, evaluation.size_in_picture).items()
        },
        "visible": asdict(evaluation.scores(evaluation.visible)),
        "hidden": asdict(evaluation.scores(~evaluation.visible)),
        "by_keypoint": {
            name: {"pck_at_0_2": float(share), "epe_px": float(distance)}
            for name, share, distance in zip(KEYPOINT_NAMES, pck, epe, strict=True)
        },
    }
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """The scores, and standard errors (`_se`) of the main ones over groups of people, or over pictures without one."""
    clusters = [cluster_of(sample) for sample in evaluation.samples]
    counted = evaluation.labelled

    def standard_error(distance: NDArray[np.float64], sides: NDArray[np.float64], *thresholds: float) -> float:
        return metrics.clustered_standard_error(distance, sides, counted, clusters, thresholds)

    in_256_px = evaluation.distance_in_input * (256 / evaluation.input_size)
    return {
        **asdict(evaluation.scores()),
        "auc_mmpose_in_256_px_crop": evaluation.auc_mmpose_in_crop(256),
        "groups": len(set(clusters)),
        "pck_at_0_1_se": standard_error(evaluation.distance_px, evaluation.sides_px, 0.1),
        "pck_at_0_2_se": standard_error(evaluation.distance_px, evaluation.sides_px, 0.2),
        "auc_mmpose_in_256_px_crop_se": standard_error(
            in_256_px, np.ones(len(in_256_px)), *metrics.MMPOSE_AUC_THRESHOLDS_PX
        ),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def contact_sheet(
    evaluation: Evaluation, store: ImageStore, indices: Sequence[int], *, columns: int = 8, side: int = 160
) -> Image.Image:
    """Predictions drawn on the crops of the chosen samples, left to right, top to bottom.

    White rings are the labels. Below stand the mean error over the hand's side and the beginning of the file's name.
    """
    errors = evaluation.relative_error()
    rows = -(-len(indices) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    unused = np.random.default_rng(0)
    for place, index in enumerate(indices):
        crop = make_crop(evaluation.samples[index], store, side, unused)
        keypoints_in_crop = crop.image_to_input.apply(evaluation.predicted_in_image[index])
        drawn = draw_hand(Image.fromarray(crop.pixels), keypoints_in_crop, evaluation.confidence[index])
        pen = ImageDraw.Draw(drawn)
        for x, y in crop.keypoints_in_input[evaluation.samples[index].labelled]:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), outline="white")
        caption = f"{errors[index]:.2f} {evaluation.samples[index].name}"[: side // 6]
        pen.text((2, side - 12), caption, fill="white", stroke_width=1, stroke_fill="black")
        sheet.paste(drawn, (place % columns * side, place // columns * side))
    return sheet


def write_plots(evaluation: Evaluation, store: ImageStore, folder: Path) -> None:
    """Writes `pck.png` (the curve over thresholds) and `worst.png` (the 40 worst hands) into the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sources = np.array([sample.source for sample in evaluation.samples])
    for name in sorted(set(sources.tolist())):
        part = evaluation.subset(sources == name)
        curve = metrics.pck_curve(part.distance_px, part.sides_px, part.labelled)
        axes.plot(metrics.NORMALISED_AUC_THRESHOLDS, curve, label=f"{name} ({len(part.samples)})")
    axes.set(xlabel="distance / side of the box", ylabel="PCK", xlim=(0, 0.3), ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(folder / "pck.png", dpi=120)
    contact_sheet(evaluation, store, evaluation.worst(40)).save(folder / "worst.png")


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network.

    Attributes:
        predict: what it computes.
        variant: which one it is.
        input_size: the input side in pixels it is served at.
        weights_sha256: digest of the weights file that it comes from.
    """

    predict: Predict
    variant: str
    input_size: int
    weights_sha256: str


def network_of_weights(path: Path, variant: str | None = None) -> Network:
    """The network in a weights file, of `variant` if one is given. WeightsError if it cannot be used."""
    from keras import ops

    from trainer import weights
    from trainer.models.detector import decode

    stored = weights.load(path, variant)
    model = weights.to_model(stored)

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = model.predict_on_batch(to_model_input(crops))
        return np.asarray(ops.convert_to_numpy(decode(outputs)) if stored.variant == DETECTOR else outputs)

    return Network(predict, stored.variant, stored.info.input_size, stored.sha256)


def network_of_servable(folder: Path, variant: str | None = None) -> Network:
    """The network in a SavedModel with its model card, called as TensorFlow Serving calls it.

    RefusedError if there is none, or if its card names another variant than `variant`, where one is given.
    """
    if not (folder / "saved_model.pb").is_file():
        raise RefusedError(f"{folder}: no servable there (a folder with saved_model.pb)")
    card = model_card.read(folder)
    if variant is not None and card.variant != variant:
        raise RefusedError(f"{folder} holds a {card.variant} network, not a {variant} one")
    return Network(load_servable(folder, card.signature), card.variant, card.input_size, card.weights_sha256)


def _network(arguments: argparse.Namespace) -> Network:
    from trainer import weights

    if arguments.servable:
        return network_of_servable(arguments.servable, arguments.variant)
    if arguments.weights:
        return network_of_weights(arguments.weights, arguments.variant)
    return network_of_weights(weights.default_path(arguments.variant), arguments.variant)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument(
        "--variant",
        choices=("standard", "lightweight", "hand_detector"),
        help="what the network has to be (default: any); the detector is measured on whole pictures, scenes:DIR, and of"
        " the other arguments has --holdout (which looks at groups, too), --weights, --servable, --input-size, --json, "
        "--out and --plots",
    )
    parser.add_argument(
        "--data", required=True, action="append", metavar="KIND:PATH", help="may be given several times"
    )
    parser.add_argument("--holdout", action="append", metavar="REGEX", help="only pictures with such names")
    parser.add_argument(
        "--split-8-1-1", choices=("validation", "test"), help="only this part of the paper's split, by picture"
    )
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="box", help=_protocol_help())
    parser.add_argument(
        "--boxes",
        type=_at_least_one,
        default=1,
        metavar="N",
        help="look at each hand in N boxes, all but one of them off as a detector's are; tells more of few hands",
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--weights", type=Path, help="weights file (default: the repository's, of this variant)")
    network.add_argument("--servable", type=Path, help="folder of a SavedModel")
    parser.add_argument(
        "--input-size", type=int, help="input side in pixels, a multiple of 8 (default: as it is served)"
    )
    parser.add_argument(
        "--upright", action="store_true", help="turn crops so that wrist -> middle_mcp points up, as a detection does"
    )
    parser.add_argument(
        "--turned",
        action="store_true",
        help="also measure on pictures turned by 0 to 315 degrees, with the turn given and without",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON into a file, for `card`")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the PCK curve and the worst cases")
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable samples out, and count them")


def _command(arguments: argparse.Namespace) -> str:
    """The command that gives the same figures again."""
    words = ["python", "-m", "trainer", "evaluate"]
    for name in ("variant", "data", "holdout", "split_8_1_1", "protocol", "weights", "servable", "input_size"):
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
    if arguments.boxes > 1:
        words += ["--boxes", str(arguments.boxes)]
    words += [f"--{name}" for name in ("upright", "turned") if getattr(arguments, name)]
    return shlex.join([*words, *(["--skip-bad"] if arguments.skip_bad else [])])


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _protocol_help() -> str:
    return "; ".join(f"{name}: {what}" for name, what in PROTOCOLS.items())


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints."""
    if not (arguments.variant or arguments.weights or arguments.servable):
        raise RefusedError("name the network: --variant for the repository's weights, or --weights, or --servable")
    network = _network(arguments)
    if network.variant == DETECTOR:
        return _run_detector(arguments, network)
    skipped = SkippedSamples()
    on_bad: OnBad = skipped if arguments.skip_bad else refuse_bad
    data = read_sources([Source.parse(text) for text in arguments.data], on_bad)
    if arguments.holdout:
        data = split_by_name(data, arguments.holdout, may_take_all=True)[1]
    store = ImageStore()
    if arguments.skip_bad:
        data = readable(data, store, on_bad)
    samples = list(data.samples)
    if arguments.split_8_1_1:
        split = paper_split(samples)
        samples = list(split.validation if arguments.split_8_1_1 == "validation" else split.test)

    input_size = served_size(network.input_size, arguments.input_size)
    evaluation = evaluate_samples(
        network.predict,
        samples,
        store,
        input_size,
        protocol=arguments.protocol,
        boxes=arguments.boxes,
        upright=arguments.upright,
        show_progress=True,
    )
    if arguments.plots:
        write_plots(evaluation, store, arguments.plots)
    content = report(evaluation)
    content |= {
        "variant": network.variant,
        "protocol": arguments.protocol,
        "boxes_a_hand": arguments.boxes,
        "upright": arguments.upright,
        "left_out": len(skipped.reasons),
        "weights_sha256": network.weights_sha256,
        "command": _command(arguments),
    }
    if arguments.turned:
        content["turned"] = _rounded(pck_of_turned_pictures(network.predict, samples, store, input_size))
    if arguments.out:
        write_text_atomically(arguments.out, json.dumps(content, indent=2) + "\n")
    if skipped.reasons:
        print(skipped.summary(), file=sys.stderr)
    print(json.dumps(content, indent=2) if arguments.json else table(content))
    return 0


def _run_detector(arguments: argparse.Namespace, network: Network) -> int:
    from trainer.detection import evaluate as detection
    from trainer.detection.sets import held_out_of

    of_crops = ("split_8_1_1", "upright", "turned", "skip_bad")
    if arguments.boxes > 1 or arguments.protocol != "box" or any(getattr(arguments, name) for name in of_crops):
        raise RefusedError("the detector is measured on whole pictures; give --data, --holdout and what names it")
    pictures = held_out_of(arguments.data, arguments.holdout or [])
    size = served_size(network.input_size, arguments.input_size, input_step(DETECTOR))
    store = ImageStore()
    judged = detection.detect(network.predict, pictures, store, size)
    if arguments.plots:
        detection.write_plots(judged, store, arguments.plots)
    content = {
        **detection.report(judged),
        "variant": network.variant,
        "input_size": size,
        "weights_sha256": network.weights_sha256,
        "command": _command(arguments),
    }
    if arguments.out:
        write_text_atomically(arguments.out, json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2) if arguments.json else detection.table(content))
    return 0


def table(content: dict[str, Any]) -> str:
    """The figures of `report` as lines of text, standard errors over groups behind a plus-minus sign."""
    columns = (
        "samples",
        "groups",
        "pck_at_0_1",
        "pck_at_0_2",
        "auc_mmpose",
        "auc_mmpose_in_256_px_crop",
        "auc_trapezoid",
        "epe_px",
    )
    rows = {**content["by_data_set"], "all": content["all"], "visible": content["visible"], "hidden": content["hidden"]}
    for name in ("group", "view", "fingers", "size"):
        rows |= {f"{name}: {part}": figures for part, figures in content.get(f"by_{name}", {}).items()}
    width = max(len(name) for name in rows)
    heads = [column.rjust(_CELL) for column in columns]
    lines = [" " * width + "".join(f"  {head}" for head in heads)]
    for name, figures in rows.items():
        cells = [_cell(figures, column) for column in columns]
        lines.append(name.ljust(width) + "".join(f"  {c.rjust(len(h))}" for c, h in zip(cells, heads, strict=True)))
    for degrees, shares in content.get("turned", {}).items():
        given, not_given = shares["turn_given"], shares["turn_not_given"]
        lines.append(f"turned by {degrees:>3} degrees: PCK@0.1 {given}, without the turn {not_given}")
    return "\n".join(lines)


_CELL = len("0.1234 ±0.1234")


def _cell(figures: dict[str, Any], column: str) -> str:
    value, error = figures.get(column), figures.get(f"{column}_se")
    if value is None:
        return "-"
    return str(value) if error is None else f"{value} ±{error}"
