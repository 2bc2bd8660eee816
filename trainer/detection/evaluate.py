"""Measures the hand detector where every hand is known: `python -m trainer evaluate --variant hand_detector`.

Pictures are letterboxed and detections of one hand told apart as serving does it. A hand counts as found where a
detection's middle lies within `NEAR` of its size from its own and the sizes differ by no more than a factor of
`SIZE_RATIO`: how much upright squares overlap would say little about turned hands. A detection finds one hand only, and
a hand is found by one detection only: a second one is a false alarm.

Hands that are very small (`SMALLEST_SHARE`), or mostly outside of the picture, and regions of which the labels tell
nothing are excused: they are neither missed nor do detections there count as false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.pose.detections import Detection, detections_in_image, distinct
from service.pose.geometry import Affine, Box, turn_to_upright
from service.pose.preprocessing import crop
from trainer.data.pipeline import ImageStore
from trainer.data.sample import DataError
from trainer.detection.labels import LabelledHand, LabelledPicture
from trainer.detection.targets import LEAST_INSIDE

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Letterboxed pictures uint8 RGB [N, S, S, 3] to detections float32 [N, 16, 7]."""

NEAR: Final = 0.35
"""Largest distance of a detection's middle from a hand's, over the hand's size."""

SIZE_RATIO: Final = 1.6
"""Largest factor between a detection's size and a hand's."""

SMALLEST_SHARE: Final = 0.06
"""Of the picture's longer side: the size below which a hand is excused."""

MATCHING: Final = (
    f"found: middle within {NEAR} of the hand's size, size within a factor of {SIZE_RATIO}; hands under"
    f" {SMALLEST_SHARE:.0%} of the picture's longer side and ignored regions are excused"
)

_BANDS: Final = ((0.12, "6 to 12 %"), (0.25, "12 to 25 %"), (math.inf, "over 25 %"))
_THRESHOLDS: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_ALARM_RATES: Final = (0.01, 0.03, 0.1, 0.3)
_SHOWN_THRESHOLD: Final = 0.5
_BATCH: Final = 16

Verdict = int | Literal["false alarm", "excused"]
"""What a detection is: the index of the hand that it finds, or nothing."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A picture with what was detected in it, best first, and what each detection is."""

    picture: LabelledPicture
    detections: tuple[Detection, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is surely no hand in it."""
        return not self.picture.hands and not self.picture.ignored


@dataclass(frozen=True, slots=True)
class FoundHand:
    """A hand that counts, and how it was found.

    Attributes:
        hand: as labelled.
        share: its size over the picture's longer side.
        detection: None if it was missed.
    """

    hand: LabelledHand
    share: float
    detection: Detection | None

    def found_at(self, threshold: float) -> bool:
        return self.detection is not None and self.detection.score >= threshold


def judge(picture: LabelledPicture, detections: Sequence[Detection]) -> Judged:
    """Which detections find which hands. What a detection is does not depend on any with a lower score."""
    places = [hand.upright_square() for hand in picture.hands]
    free = set(range(len(places)))
    verdicts: list[Verdict] = []
    ordered = sorted(detections, key=lambda each: -each.score)
    for detection in ordered:
        middle = np.array(detection.centre_in_image)
        distances = {
            index: float(np.linalg.norm(middle - centre)) / size
            for index, (centre, size) in enumerate(places)
            if max(size / detection.size, detection.size / size) <= SIZE_RATIO
        }
        near = [index for index, distance in distances.items() if distance <= NEAR and index in free]
        if near:
            index = min(near, key=lambda each: distances[each])
            free.remove(index)
            verdicts.append(index if _counts(picture, index) else "excused")
        elif any(_holds(box, detection.centre_in_image) for box in _excused(picture)):
            verdicts.append("excused")
        else:
            verdicts.append("false alarm")
    return Judged(picture, tuple(ordered), tuple(verdicts))


def hands_of(judged: Sequence[Judged]) -> list[FoundHand]:
    """Every hand that counts."""
    found = []
    for each in judged:
        by_hand = dict(zip(each.verdicts, each.detections, strict=True))
        for index, hand in enumerate(each.picture.hands):
            if _counts(each.picture, index):
                found.append(FoundHand(hand, _share(each.picture, hand), by_hand.get(index)))
    return found


def alarms_of(judged: Sequence[Judged]) -> list[Detection]:
    """Every false alarm."""
    return [
        detection
        for each in judged
        for detection, verdict in zip(each.detections, each.verdicts, strict=True)
        if verdict == "false alarm"
    ]


def curve(judged: Sequence[Judged]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(threshold, false alarms a picture, recall), each float64 [T], by falling threshold."""
    found = np.array([each.detection.score for each in hands_of(judged) if each.detection is not None])
    alarms = np.array([each.score for each in alarms_of(judged)])
    thresholds = np.unique(np.concatenate([found, alarms, [1.0]]))[::-1]
    recall = (found[None] >= thresholds[:, None]).sum(axis=1) / max(1, len(hands_of(judged)))
    return thresholds, (alarms[None] >= thresholds[:, None]).sum(axis=1) / max(1, len(judged)), recall


def recall_at_alarms(judged: Sequence[Judged], rate: float) -> float:
    """Largest share of hands that is found at a threshold with so many false alarms a picture at the most."""
    _, rates, recalls = curve(judged)
    return float(recalls[rates <= rate].max(initial=0.0))


def report(judged: Sequence[Judged]) -> dict[str, Any]:
    """Everything measured, as plain values for JSON. What nothing was counted for is None."""
    hands = hands_of(judged)
    groups = sorted({each.picture.group for each in judged if each.picture.group})
    return {
        "matching": MATCHING,
        **_figures(judged),
        "recall_at_false_alarms_a_picture": {
            str(rate): _rounded(recall_at_alarms(judged, rate) if hands else None) for rate in _ALARM_RATES
        },
        "by_size": {name: _recalls([each for each in hands if _band(each.share) == name]) for _, name in _BANDS},
        **_poses(hands),
        "by_group": {group: _figures([each for each in judged if each.picture.group == group]) for group in groups},
    }


def rows_of(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The figures of `report` over the threshold as a table: its head, and a row of text for each figure."""
    rows = {
        f"found, of {content['hands']} hands": content["recall"],
        **{f"found, {name} of the picture ({of['hands']})": of["recall"] for name, of in content["by_size"].items()},
        "false alarms a picture": content["false_alarms_a_picture"],
        f"with a detection, of {content['hand_free_pictures']} without a hand": content[
            "hand_free_pictures_with_a_detection"
        ],
    }
    thresholds = tuple(map(str, _THRESHOLDS))
    return [
        ("at a score of", *thresholds),
        *((name, *("-" if of[t] is None else f"{of[t]:.3f}" for t in thresholds)) for name, of in rows.items()),
    ]


def sentences_of(content: Mapping[str, Any]) -> list[str]:
    """The figures of `report` that do not depend on a threshold."""
    at_rates = content["recall_at_false_alarms_a_picture"]
    error = content["direction_error_degrees"]
    found = ", ".join(f"{at_rates[rate]} at {rate} false alarms a picture" for rate in at_rates)
    poses = (
        f"Of {content['hands_with_a_side']} hands found at a score of {content['of_hands_found_at']} the side is right"
        f" in {content['side_accuracy']}, the direction is off by {error['median']} degrees (median), {error['p90']}"
        " (90 %)."
    )
    return [f"Hands found: {found}.", poses, f"{content['matching'][0].upper()}{content['matching'][1:]}."]


def table(content: Mapping[str, Any]) -> str:
    """The figures of `report` as lines of text."""
    rows = rows_of(content)
    width = max(len(row[0]) for row in rows)
    lines = [row[0].ljust(width) + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    return "\n".join([*lines, *sentences_of(content)])


def _figures(judged: Sequence[Judged]) -> dict[str, Any]:
    alarms = alarms_of(judged)
    empty = [each for each in judged if each.is_empty]
    return {
        "pictures": len(judged),
        "hand_free_pictures": len(empty),
        **_recalls(hands_of(judged)),
        "false_alarms_a_picture": {
            str(t): _share_of([each.score >= t for each in alarms], len(judged)) for t in _THRESHOLDS
        },
        "hand_free_pictures_with_a_detection": {
            str(t): _share_of([any(d.score >= t for d in each.detections) for each in empty], len(empty))
            for t in _THRESHOLDS
        },
    }


def _recalls(hands: Sequence[FoundHand]) -> dict[str, Any]:
    return {
        "hands": len(hands),
        "recall": {str(t): _share_of([each.found_at(t) for each in hands], len(hands)) for t in _THRESHOLDS},
    }


def _poses(hands: Sequence[FoundHand], threshold: float = _SHOWN_THRESHOLD) -> dict[str, Any]:
    """How well side and direction of the found hands are told."""
    sides, turns, middles, sizes = [], [], [], []
    for each in hands:
        if each.detection is None or not each.found_at(threshold):
            continue
        centre, size = each.hand.upright_square()
        middles.append(math.dist(each.detection.centre_in_image, centre) / size)
        sizes.append(abs(math.log(each.detection.size / size)))
        if each.hand.handedness is not None:
            sides.append((each.detection.right >= 0.5) == (each.hand.handedness == "right"))
        if each.hand.along is not None:
            off = each.detection.radians - turn_to_upright(each.hand.along)
            turns.append(math.degrees(abs(math.remainder(off, 2 * math.pi))))
    return {
        "of_hands_found_at": threshold,
        "hands_with_a_side": len(sides),
        "side_accuracy": _share_of(sides, len(sides)),
        "direction_error_degrees": _quantiles(turns),
        "middle_error_over_size": _quantiles(middles),
        "size_error_log": _quantiles(sizes),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: _rounded(float(np.quantile(values, at)) if values else None)
        for name, at in (("median", 0.5), ("p90", 0.9), ("p95", 0.95))
    }


def _share_of(true: Sequence[bool], count: int) -> float | None:
    return _rounded(sum(true) / count if count else None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _share(picture: LabelledPicture, hand: LabelledHand) -> float:
    return hand.upright_square()[1] / max(picture.size)


def _band(share: float) -> str:
    return next(name for limit, name in _BANDS if share < limit)


def _counts(picture: LabelledPicture, index: int) -> bool:
    hand = picture.hands[index]
    inside = ((hand.keypoints >= 0) & (hand.keypoints <= picture.size)).all(axis=1).mean()
    return bool(inside >= LEAST_INSIDE) and _share(picture, hand) >= SMALLEST_SHARE


def _excused(picture: LabelledPicture) -> list[Box]:
    """Where detections are no false alarms."""
    uncounted = [hand.box for index, hand in enumerate(picture.hands) if not _counts(picture, index)]
    return [*picture.ignored, *uncounted]


def _holds(box: Box, point: tuple[float, float]) -> bool:
    return 0 <= point[0] - box.x <= box.width and 0 <= point[1] - box.y <= box.height


def detect(predict: Predict, pictures: Sequence[LabelledPicture], store: ImageStore, input_size: int) -> list[Judged]:
    """Runs the detector on every picture, letterboxed, and judges what it finds.

    Raises:
        DataError: there are no pictures.
        BadSampleError: one cannot be read.
    """
    if not pictures:
        raise DataError("there is no picture to evaluate on")
    judged = []
    for begin in range(0, len(pictures), _BATCH):
        group = pictures[begin : begin + _BATCH]
        shown = [_shown(picture, store, input_size) for picture in group]
        rows = predict(np.stack([pixels for pixels, _ in shown]))
        for picture, (_, to_input), of_picture in zip(group, shown, rows, strict=True):
            judged.append(judge(picture, distinct(detections_in_image(of_picture, to_input))))
    return judged


def _shown(picture: LabelledPicture, store: ImageStore, input_size: int) -> tuple[NDArray[np.uint8], Affine]:
    whole = Box(0.0, 0.0, float(picture.size[0]), float(picture.size[1]))
    seen = crop(store.get(picture.path), whole, (input_size, input_size))
    return seen.pixels, seen.image_to_input


def write_plots(judged: Sequence[Judged], store: ImageStore, folder: Path) -> None:
    """Writes `recall.png` (recall over false alarms) and `worst.png` (misses and false alarms) into the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    thresholds, rates, recalls = curve(judged)
    axes.plot(rates, recalls)
    for marked in (0.3, 0.5, 0.7):
        at = int(np.argmin(np.abs(thresholds - marked)))
        axes.annotate(f"{marked}", (rates[at], recalls[at]))
    axes.set(xlabel="false alarms a picture", ylabel="hands found", xlim=(0, 1), ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(folder / "recall.png", dpi=120)
    worst_sheet(judged, store).save(folder / "worst.png")


def worst_sheet(
    judged: Sequence[Judged],
    store: ImageStore,
    *,
    threshold: float = _SHOWN_THRESHOLD,
    count: int = 40,
    columns: int = 8,
    side: int = 200,
) -> Image.Image:
    """The pictures with the surest false alarms, then those with the largest missed hands, half of `count` each.

    Labels are white, found hands green, false alarms red, excused detections and ignored regions yellow.
    """
    alarming = [(_highest_alarm(each), index) for index, each in enumerate(judged)]
    missing = [(_largest_miss(each, threshold), index) for index, each in enumerate(judged)]
    chosen = [index for height, index in sorted(alarming, reverse=True)[: count // 2] if height >= threshold]
    chosen += [index for size, index in sorted(missing, reverse=True)[: count - count // 2] if size > 0]
    sheet = Image.new("RGB", (columns * side, max(1, -(-len(chosen) // columns)) * side))
    for place, index in enumerate(chosen):
        cell = _drawn(judged[index], store, side, threshold)
        sheet.paste(cell, (place % columns * side, place // columns * side))
    return sheet


def _highest_alarm(judged: Judged) -> float:
    return max((each.score for each in alarms_of([judged])), default=0.0)


def _largest_miss(judged: Judged, threshold: float) -> float:
    return max((each.share for each in hands_of([judged]) if not each.found_at(threshold)), default=0.0)


def _drawn(judged: Judged, store: ImageStore, side: int, threshold: float) -> Image.Image:
    pixels, to_cell = _shown(judged.picture, store, side)
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    for box in judged.picture.ignored:
        _square(pen, to_cell, box.centre, (box.width, box.height), 0.0, "yellow")
    for hand in judged.picture.hands:
        centre, size = hand.upright_square()
        turn = turn_to_upright(hand.along) if hand.along is not None else 0.0
        _square(pen, to_cell, (float(centre[0]), float(centre[1])), (size, size), turn, "white")
    for detection, verdict in zip(judged.detections, judged.verdicts, strict=True):
        if detection.score < threshold:
            continue
        colour = {"false alarm": "red", "excused": "yellow"}.get(str(verdict), "lime")
        both = (detection.size, detection.size)
        _square(pen, to_cell, detection.centre_in_image, both, detection.radians, colour)
        x, y = to_cell.apply(np.array(detection.centre_in_image)).tolist()
        text = f"{detection.score:.2f}{'R' if detection.right >= 0.5 else 'L'}"
        pen.text((x, y), text, fill=colour, stroke_width=1, stroke_fill="black")
    caption = f"{judged.picture.group or ''} {judged.picture.name}"[: side // 6]
    pen.text((2, side - 12), caption, fill="white", stroke_width=1, stroke_fill="black")
    return drawn


def _square(
    pen: ImageDraw.ImageDraw,
    to_cell: Affine,
    centre: tuple[float, float],
    sides: tuple[float, float],
    radians: float,
    colour: str,
) -> None:
    """A box about its centre that is upright once the picture is turned by `radians`; its upper edge is double."""
    half = np.array(sides) / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)]) * half
    turned = Affine.rotation(-radians).then(Affine.translation(*centre)).then(to_cell).apply(corners)
    pen.line([(float(x), float(y)) for x, y in turned], fill=colour, width=2)
