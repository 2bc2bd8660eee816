"""Data sets as they are named on the command line: `coco:DIR`, `rhd:DIR`, `mmpose-rhd:FILE`, with `@WEIGHT` or `@N%`.

A weight says how often one sample of the set is drawn in training, relative to one of a set of weight 1; a percentage
says how many of the samples drawn are the set's. Splitting by file name (`split_by_name`) keeps whole sources, places
or people, out of training.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trainer.data.coco import read_coco
from trainer.data.rhd import paper_split, read_mmpose_rhd, read_rhd
from trainer.data.sample import DataError, OnBad, Pictured, Sample, refuse_bad

READERS: dict[str, Callable[..., list[Sample]]] = {
    "coco": read_coco,
    "rhd": read_rhd,
    "mmpose-rhd": read_mmpose_rhd,
}
"""Reader by the word before the colon."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set to read: which reader, where, and how often its samples are drawn.

    Attributes:
        kind: name of the reader.
        path: file or folder.
        weight: of each sample, or of all together where `is_share`.
        is_share: whether `weight` is the set's percentage of the samples drawn.
    """

    kind: str
    path: Path
    weight: float = 1.0
    is_share: bool = False

    @classmethod
    def parse(cls, text: str, kinds: Collection[str] = tuple(READERS)) -> Self:
        """Reads `KIND:PATH`, `KIND:PATH@WEIGHT` or `KIND:PATH@N%`. DataError says what is allowed."""
        kind, colon, rest = text.partition(":")
        if not colon or kind not in kinds or not rest:
            raise DataError(
                f"{text!r}: data is named KIND:PATH[@WEIGHT] or KIND:PATH@N% with KIND one of {', '.join(kinds)}"
            )
        path, at, weight = rest.rpartition("@")
        number, percent = weight.removesuffix("%"), weight.endswith("%")
        if not at or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number):
            return cls(kind, Path(rest))
        if float(number) <= 0:
            raise DataError(f"{text!r}: the weight must be positive")
        return cls(kind, Path(path), float(number), percent)

    def __str__(self) -> str:
        """As `parse` reads it."""
        weight = "" if self.weight == 1.0 and not self.is_share else f"@{self.weight:g}{'%' if self.is_share else ''}"
        return f"{self.kind}:{self.path}{weight}"

    def read(self, on_bad: OnBad = refuse_bad) -> list[Sample]:
        """All samples of the set. Raises DataError as the reader does."""
        return READERS[self.kind](self.path, on_bad=on_bad)


@dataclass(frozen=True, slots=True)
class WeightedSamples:
    """Samples and how often each is drawn relative to a sample of weight 1: two tuples of equal length."""

    samples: tuple[Sample, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.samples)


def read_sources(sources: Sequence[Source], on_bad: OnBad = refuse_bad) -> WeightedSamples:
    """All samples of several sets, each with its weight.

    Percentages need not add up to 100. They are of the sets as they are, before any split.

    Raises:
        DataError: as the readers do; or a picture of one set could not be told from one of another; or some sets have
            a percentage and others not.
    """
    if len({source.is_share for source in sources}) > 1:
        raise DataError("give a percentage for every data set (KIND:PATH@N%) or for none")
    samples: list[Sample] = []
    weights: list[float] = []
    set_of: dict[tuple[str, str], Path] = {}
    for source in sources:
        read = source.read(on_bad)
        pictures = {(sample.source, sample.name) for sample in read}
        both = sorted(pictures & set_of.keys())
        if both:
            name, picture = both[0]
            raise DataError(
                f"{set_of[both[0]]} and {source.path} are both known as {name!r} and both have a picture {picture}:"
                " rename the folder of one; a set that is to count more is named once, with a weight (KIND:PATH@WEIGHT)"
            )
        set_of.update(dict.fromkeys(pictures, source.path))
        samples.extend(read)
        of_all = sum(sample.weight for sample in read) if source.is_share else 1.0
        weights.extend(source.weight * sample.weight / of_all for sample in read)
    return WeightedSamples(tuple(samples), tuple(weights))


def split_by_name(
    data: WeightedSamples, holdout: Sequence[str], *, may_take_all: bool = False
) -> tuple[WeightedSamples, WeightedSamples]:
    """Splits samples into those to train on and those held out, by their picture's name.

    Args:
        data: all samples.
        holdout: regular expressions; a sample whose `name` any of them finds itself in is held out.
        may_take_all: whether it is fine if nothing is left to train on.

    Raises:
        DataError: an expression is not valid, or the split leaves nothing to train on.
    """
    is_held = holds_out(holdout)
    pairs = _pairs(data)
    held = [is_held(sample.name) for sample, _ in pairs]
    train = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    validation = [pair for pair, out in zip(pairs, held, strict=True) if out]
    if not train and not may_take_all:
        raise DataError(f"the holdout rules {list(holdout)} leave no sample to train on")
    return _unzipped(train), _unzipped(validation)


def holds_out(holdout: Sequence[str]) -> Callable[[str], bool]:
    """Whether any of these regular expressions finds itself in a text. DataError if one is not valid."""
    try:
        patterns = [re.compile(pattern) for pattern in holdout]
    except re.error as error:
        raise DataError(f"holdout {error.pattern!r} is no regular expression: {error}") from error
    return lambda text: any(pattern.search(text) for pattern in patterns)


def check_sources_apart(train: Iterable[Pictured], validation: Iterable[Pictured]) -> None:
    """Refuses a split that leaves the same people, or the same source of photos, on both sides.

    Raises:
        DataError: names a group or a source of which pictures are trained on and held out.
    """

    def origins(pictures: Iterable[Pictured]) -> dict[tuple[str, str], str]:
        named: dict[tuple[str, str], str] = {}
        for picture in pictures:
            if picture.group:
                named["group", picture.group] = picture.name
            if picture.credit is not None and picture.credit.source:
                named["source", picture.credit.source] = picture.name
        return named

    trained_on, held_out = origins(train), origins(validation)
    both = sorted(trained_on.keys() & held_out.keys())
    if both:
        kind, name = both[0]
        raise DataError(
            f"{kind} {name!r} is trained on ({trained_on[both[0]]}) and held out ({held_out[both[0]]}): hold all of"
            " it out, or none"
        )


def with_enough_keypoints(data: WeightedSamples, fewest: int) -> WeightedSamples:
    """The samples of which at least so many keypoints are visible."""
    return _unzipped([pair for pair in _pairs(data) if pair[0].visible.sum() >= fewest])


def _pairs(data: WeightedSamples) -> list[tuple[Sample, float]]:
    return list(zip(data.samples, data.weights, strict=True))


def split_8_1_1(data: WeightedSamples) -> tuple[WeightedSamples, WeightedSamples]:
    """The training and the validation part of the paper's random split; the test part stays out of both."""
    split = paper_split(data.samples)
    weight_of = {id(sample): weight for sample, weight in zip(data.samples, data.weights, strict=True)}

    def weighted(samples: tuple[Sample, ...]) -> WeightedSamples:
        return WeightedSamples(samples, tuple(weight_of[id(sample)] for sample in samples))

    return weighted(split.train), weighted(split.validation)


def _unzipped(pairs: list[tuple[Sample, float]]) -> WeightedSamples:
    return WeightedSamples(tuple(sample for sample, _ in pairs), tuple(weight for _, weight in pairs))
