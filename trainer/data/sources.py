"""Data sets as they are named on the command line: `coco:DIR`, `rhd:DIR`, `mmpose-rhd:FILE`, each perhaps `@WEIGHT`.

Several can be given at once; a weight says how often a set's samples are drawn in training, relative to one sample of a
set of weight 1. Splitting by file name (`split_by_name`) keeps whole groups of pictures, places or people, out of
training.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trainer.data.coco import read_coco
from trainer.data.rhd import paper_split, read_mmpose_rhd, read_rhd
from trainer.data.sample import DataError, OnBad, Sample, refuse_bad

READERS: dict[str, Callable[..., list[Sample]]] = {
    "coco": read_coco,
    "rhd": read_rhd,
    "mmpose-rhd": read_mmpose_rhd,
}
"""Reader by the word before the colon."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set to read: which reader, where, and how often its samples are drawn."""

    kind: str
    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `KIND:PATH` or `KIND:PATH@WEIGHT`. DataError says what is allowed."""
        kind, colon, rest = text.partition(":")
        if not colon or kind not in READERS or not rest:
            raise DataError(f"{text!r}: data is named KIND:PATH[@WEIGHT] with KIND one of {', '.join(READERS)}")
        path, at, weight = rest.rpartition("@")
        if not at or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight):
            return cls(kind, Path(rest))
        if float(weight) <= 0:
            raise DataError(f"{text!r}: the weight must be positive")
        return cls(kind, Path(path), float(weight))

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
    """All samples of several sets, each sample with its set's weight.

    Raises:
        DataError: as the readers do; or a picture of one set could not be told from one of another.
    """
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
        weights.extend([source.weight] * len(read))
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
    try:
        patterns = [re.compile(pattern) for pattern in holdout]
    except re.error as error:
        raise DataError(f"holdout {error.pattern!r} is no regular expression: {error}") from error
    pairs = list(zip(data.samples, data.weights, strict=True))
    held = [any(pattern.search(sample.name) for pattern in patterns) for sample, _ in pairs]
    train = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    validation = [pair for pair, out in zip(pairs, held, strict=True) if out]
    if not train and not may_take_all:
        raise DataError(f"the holdout rules {list(holdout)} leave no sample to train on")
    return _unzipped(train), _unzipped(validation)


def split_8_1_1(data: WeightedSamples) -> tuple[WeightedSamples, WeightedSamples]:
    """The training and the validation part of the paper's random split; the test part stays out of both."""
    split = paper_split(data.samples)
    weight_of = {id(sample): weight for sample, weight in zip(data.samples, data.weights, strict=True)}

    def weighted(samples: tuple[Sample, ...]) -> WeightedSamples:
        return WeightedSamples(samples, tuple(weight_of[id(sample)] for sample in samples))

    return weighted(split.train), weighted(split.validation)


def _unzipped(pairs: list[tuple[Sample, float]]) -> WeightedSamples:
    return WeightedSamples(tuple(sample for sample, _ in pairs), tuple(weight for _, weight in pairs))
