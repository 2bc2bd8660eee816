"""Data sets of the detector, named by what they are for, `KIND:DIR`, each a folder in COCO form.

* `scenes`: photos in which every hand is labelled or in an ignored region; those without any show what is no hand;
* `close`: photos of one hand, which are also cut out and pasted into others;
* `rendered`: what `synth` made.

How much is drawn of each is the recipe's (`trainer.detection.compose.Shares`). What is held out goes by the picture's
name or its group, in all sets; scenes alone are measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.sample import DataError
from trainer.data.sources import Source, check_sources_apart, holds_out
from trainer.detection.batches import DetectorData
from trainer.detection.labels import LabelledPicture, read_pictures

KINDS: Final = ("scenes", "close", "rendered")
"""What a data set of the detector may be for."""


@dataclass(frozen=True, slots=True)
class DetectorSets:
    """Pictures by what they are for.

    Attributes:
        train: those to train on, with their kind.
        held_out: scenes to measure on.
    """

    train: tuple[tuple[str, LabelledPicture], ...]
    held_out: tuple[LabelledPicture, ...]

    def data(self) -> DetectorData:
        """The four stocks to train on."""

        def of(kind: str) -> list[LabelledPicture]:
            return [picture for each, picture in self.train if each == kind]

        scenes = of("scenes")
        return DetectorData(
            rendered=of("rendered"),
            scenes=[picture for picture in scenes if picture.hands],
            close=of("close"),
            empty=[picture for picture in scenes if not picture.hands and not picture.ignored],
        )


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Reads `KIND:DIR`. DataError says what is allowed."""
    sources = [Source.parse(text, KINDS) for text in texts]
    for source in sources:
        if source.weight != 1.0 or source.is_share:
            raise DataError(f"{source}: how often pictures are drawn is the recipe's, not @{source.weight:g}")
    return sources


def read_sets(sources: Sequence[Source]) -> list[tuple[str, LabelledPicture]]:
    """Every picture of the sets with its kind.

    Raises:
        DataError: a set cannot be read, or a picture of one could not be told from one of another.
    """
    read = [(source.kind, picture) for source in sources for picture in read_pictures(source.path)]
    seen: set[tuple[str, str]] = set()
    for _, picture in read:
        if (picture.source, picture.name) in seen:
            raise DataError(
                f"two data sets are known as {picture.source!r} and have a picture {picture.name}: rename the folder of"
                " one"
            )
        seen.add((picture.source, picture.name))
    return read


def held_out_of(data: Sequence[str], holdout: Sequence[str]) -> list[LabelledPicture]:
    """The pictures of the sets, named `KIND:DIR`, that are held out by these expressions; without any, all of them."""
    is_held = _holds_out(holdout or [""])
    return [picture for _, picture in read_sets(parse_sources(data)) if is_held(picture)]


def _holds_out(holdout: Sequence[str]) -> Callable[[LabelledPicture], bool]:
    is_held = holds_out(holdout)
    return lambda picture: is_held(picture.name) or is_held(picture.group or "")


def split_sets(pictures: Sequence[tuple[str, LabelledPicture]], holdout: Sequence[str]) -> DetectorSets:
    """Keeps the pictures out of training in whose name, or group, one of the expressions finds itself.

    Raises:
        DataError: an expression is not valid, nothing is left to train on, or people or sources would be on both sides.
    """
    is_held = _holds_out(holdout)
    held = [(kind, each) for kind, each in pictures if is_held(each)]
    train = [(kind, each) for kind, each in pictures if not is_held(each)]
    if not any(each.hands for _, each in train):
        raise DataError("there is no picture with a hand to train on")
    check_sources_apart([each for _, each in train], [each for _, each in held])
    return DetectorSets(tuple(train), tuple(each for kind, each in held if kind == "scenes"))
