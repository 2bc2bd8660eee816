"""Every hand in a photo, or none: recall by size, false alarms on photos without hands, sides, beside MediaPipe Hands.

    python -m benchmarks.every_hand data/scenes --url http://127.0.0.1:8000
    python -m benchmarks.every_hand data/scenes --url http://127.0.0.1:8000 --mediapipe .venv-mediapipe/bin/python

The folder is a COCO set of whole photos: some with labelled hands, some without any (`kind` "negative"; those with
`crop` are cut-outs of other photos). A running service is asked for every photo with `min_score=0`, so that one pass
serves all thresholds. With `--fold REGEX=URL`, given several times, photos of the groups that match are asked of that
service, whose detector did not learn from them; the threshold of a fold is then chosen on the photos outside it, so
that at most one hand-free photo in a hundred yields a hand there.

A hand is found if an answer's box (around its keypoints) overlaps the labelled one by IoU >= 0.5, or half of the
keypoints lie within 0.35 of the hand's size. Labels marked `ignore` are neither asked for nor counted against an
answer. Intervals are of a bootstrap over groups of photos, which is what the photos are samples of.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import add_json, show, write_json
from service.client import HandPoseClient
from service.pose.geometry import Box

ALLOWED_FALSE_ALARMS: Final = 0.01
SIZES: Final = ((0.06, 0.12), (0.12, 0.25), (0.25, 1.01))
"""Of a hand over the picture's longer side."""

# Run by the other interpreter. In: a list of files. Out: for each its hands.
MEDIAPIPE: Final = """
import json, sys
import mediapipe, numpy
from PIL import Image

hands = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=6)
answers = []
for path in json.load(sys.stdin):
    pixels = numpy.asarray(Image.open(path).convert("RGB"))
    found = hands.process(pixels)
    answers.append([
        {
            "score": 1.0,
            # MediaPipe names sides for mirrored pictures, as a selfie camera shows them: the other one is what is seen.
            "side": {"Left": "right", "Right": "left"}[side.classification[0].label],
            "keypoints": [[p.x * pixels.shape[1], p.y * pixels.shape[0]] for p in marks.landmark],
        }
        for marks, side in zip(found.multi_hand_landmarks or (), found.multi_handedness or ())
    ])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """A hand as labelled or as answered: keypoints [21, 2] in pixels of the picture, and its side."""

    keypoints: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    side: str | None
    score: float = 1.0

    @property
    def box(self) -> Box:
        return Box.around(self.keypoints[self.labelled])

    @property
    def size(self) -> float:
        return max(self.box.width, self.box.height)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo with its labels."""

    path: Path
    longer_side: int
    group: str
    hand_free: bool
    cut_out: bool
    hands: tuple[Hand, ...]


def read_photos(folder: Path) -> list[Photo]:
    """All photos of the set. A photo that has only ignored hands counts as neither kind and asks for nothing."""
    document = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    annotations: dict[Any, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    photos = []
    for image in document["images"]:
        of_image = annotations.get(image["id"], [])
        hands = tuple(_labelled(each) for each in of_image if not each.get("ignore") and each.get("keypoints"))
        place = folder / "images" / image["file_name"]
        photos.append(
            Photo(
                place if place.is_file() else folder / image["file_name"],
                max(image["width"], image["height"]),
                str(image["group"]),
                image.get("kind") == "negative" and not of_image,
                bool(image.get("crop")),
                hands,
            )
        )
    return photos


def _labelled(annotation: dict[str, Any]) -> Hand:
    table = np.asarray(annotation["keypoints"], np.float64).reshape(21, 3)
    return Hand(table[:, :2], table[:, 2] > 0, annotation.get("handedness"))


def ask_service(url: str, photos: Sequence[Photo]) -> list[list[Hand]]:
    """The hands that a running service finds, of any score."""
    with HandPoseClient(url) as client:
        answers = []
        for photo in photos:
            found = client.estimate(photo.path, max_hands=16, min_score=0.0).hands
            answers.append(
                [
                    Hand(
                        np.array([(point.x, point.y) for point in hand.keypoints]),
                        np.ones(21, bool),
                        hand.handedness.label if hand.handedness else None,
                        hand.score,
                    )
                    for hand in found
                ]
            )
        return answers


def ask_mediapipe(python: str, photos: Sequence[Photo]) -> list[list[Hand]]:
    """The hands that MediaPipe Hands finds in one pass with its default confidences, at most six a photo."""
    process = subprocess.run(
        [python, "-c", MEDIAPIPE],
        input=json.dumps([str(photo.path.resolve()) for photo in photos]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return [
        [Hand(np.array(hand["keypoints"]), np.ones(21, bool), hand["side"], hand["score"]) for hand in hands]
        for hands in json.loads(process.stdout)
    ]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (one.width * one.height + other.width * other.height - shared)


def is_found(hand: Hand, answer: Hand) -> bool:
    """Whether the answer is this hand, by the rule in the module's description."""
    far = np.linalg.norm(hand.keypoints - answer.keypoints, axis=1)[hand.labelled]
    return overlap(hand.box, answer.box) >= 0.5 or float((far <= 0.35 * hand.size).mean()) >= 0.5


def match(hands: Sequence[Hand], answers: Sequence[Hand]) -> list[Hand | None]:
    """For each labelled hand the answer that is nearest of those that find it; an answer finds one hand only."""
    left = list(answers)
    matched: list[Hand | None] = []
    for hand in hands:
        near = [each for each in left if is_found(hand, each)]
        best = min(near, key=lambda each: float(np.linalg.norm(hand.keypoints - each.keypoints)), default=None)
        if best is not None:
            left.remove(best)
        matched.append(best)
    return matched


def threshold_for(photos: Sequence[Photo], answers: Sequence[Sequence[Hand]]) -> float:
    """The lowest score at which at most `ALLOWED_FALSE_ALARMS` of the hand-free photos yield a hand."""
    best = sorted(
        (
            max((hand.score for hand in found), default=0.0)
            for photo, found in zip(photos, answers, strict=True)
            if photo.hand_free
        ),
        reverse=True,
    )
    return float(np.nextafter(best[int(ALLOWED_FALSE_ALARMS * len(best))], 2.0)) if best else 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one labelled hand."""

    group: str
    share_of_picture: float
    side: str | None
    answer: Hand | None
    errors: NDArray[np.float64]  # of the labelled keypoints, over the hand's size


def outcomes(photos: Sequence[Photo], answers: Sequence[Sequence[Hand]]) -> list[Outcome]:
    """Every labelled hand with the answer that found it."""
    every = []
    for photo, found in zip(photos, answers, strict=True):
        for hand, answer in zip(photo.hands, match(photo.hands, found), strict=True):
            errors = np.empty(0)
            if answer is not None:
                errors = np.linalg.norm(hand.keypoints - answer.keypoints, axis=1)[hand.labelled] / hand.size
            every.append(Outcome(photo.group, hand.size / photo.longer_side, hand.side, answer, errors))
    return every


def interval(every: Sequence[Outcome], value: Callable[[Sequence[Outcome]], float]) -> str:
    """The value and its 95 % interval of a bootstrap over groups."""
    if not every:
        return "-"
    groups = sorted({each.group for each in every})
    of_group = {group: [each for each in every if each.group == group] for group in groups}
    rng = np.random.default_rng(0)
    drawn = [
        value([each for place in rng.integers(len(groups), size=len(groups)) for each in of_group[groups[place]]])
        for _ in range(400)
    ]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return f"{value(every):.3f} ({low:.2f}-{high:.2f})"


def recall(every: Sequence[Outcome]) -> float:
    """Share of the hands that were found."""
    return float(np.mean([each.answer is not None for each in every])) if every else float("nan")


def pck(every: Sequence[Outcome], at: float) -> float:
    """Share of the keypoints of hands found that lie within this share of the hand's size."""
    errors = np.concatenate([each.errors for each in every]) if every else np.empty(0)
    return float((errors <= at).mean()) if errors.size else float("nan")


def sides_right(every: Sequence[Outcome]) -> float:
    """Share of the hands found whose side is told rightly, of those whose side is known."""
    told = [each.answer.side == each.side for each in every if each.answer and each.side and each.answer.side]
    return float(np.mean(told)) if told else float("nan")


def rows_of(name: str, photos: Sequence[Photo], answers: Sequence[Sequence[Hand]]) -> list[list[str]]:
    """The table's rows for one contestant, whose answers are already those above its threshold."""
    every = outcomes(photos, answers)
    rows = []
    for least, most in SIZES:
        of_size = [each for each in every if least <= each.share_of_picture < most]
        rows.append([f"recall, {least:.0%} to {min(most, 1):.0%} ({len(of_size)} hands)", interval(of_size, recall)])
    found = [each for each in every if each.answer is not None]
    rows.append(["PCK@0.2 of those found", interval(found, lambda some: pck(some, 0.2))])
    rows.append(["PCK@0.1 of those found", interval(found, lambda some: pck(some, 0.1))])
    rows.append(["sides right", interval([each for each in found if each.side], sides_right)])
    for what, cut_out in (("hand-free photos with a hand", False), ("hand-free cut-outs with a hand", True)):
        free = [
            bool(hands)
            for photo, hands in zip(photos, answers, strict=True)
            if photo.hand_free and photo.cut_out == cut_out
        ]
        rows.append([what, f"{sum(free)} of {len(free)}"])
    return [[what, name, value] for what, value in rows]


def above(answers: Sequence[Sequence[Hand]], thresholds: Sequence[float]) -> list[list[Hand]]:
    """The answers whose score reaches the threshold of their photo."""
    return [
        [hand for hand in hands if hand.score >= threshold]
        for hands, threshold in zip(answers, thresholds, strict=True)
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder in COCO form")
    parser.add_argument("--url", help="a running service for all photos")
    parser.add_argument("--fold", action="append", default=[], metavar="REGEX=URL", help="for groups that match")
    parser.add_argument("--groups", default="", metavar="REGEX", help="photos of these groups only")
    parser.add_argument("--mediapipe", metavar="PYTHON", help="interpreter of an environment with mediapipe")
    parser.add_argument("--threshold", type=float, help="in place of one chosen on the photos outside of a fold")
    add_json(parser)
    arguments = parser.parse_args()
    photos = [photo for photo in read_photos(arguments.photos) if re.search(arguments.groups, photo.group)]
    rows: list[list[str]] = []
    folds = [fold.rpartition("=")[::2] for fold in arguments.fold] or ([("", arguments.url)] if arguments.url else [])
    if folds:
        fold_of = [next(i for i, (regex, _) in enumerate(folds) if re.search(regex, each.group)) for each in photos]
        answers: list[list[Hand]] = [[] for _ in photos]
        for index, (_, url) in enumerate(folds):
            places = [place for place, fold in enumerate(fold_of) if fold == index]
            for place, found in zip(places, ask_service(url, [photos[p] for p in places]), strict=True):
                answers[place] = found
        thresholds = []
        for index in range(len(folds)):
            outside = [p for p, fold in enumerate(fold_of) if fold != index] or range(len(photos))
            chosen = threshold_for([photos[p] for p in outside], [answers[p] for p in outside])
            thresholds.append(chosen if arguments.threshold is None else arguments.threshold)
        print("thresholds:", ", ".join(f"{each:.3f}" for each in thresholds))
        rows += rows_of("this service", photos, above(answers, [thresholds[fold] for fold in fold_of]))
    if arguments.mediapipe:
        rows += rows_of("MediaPipe Hands", photos, ask_mediapipe(arguments.mediapipe, photos))
    show(["what", "who", "value (95 % interval over groups)"], rows)
    write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
