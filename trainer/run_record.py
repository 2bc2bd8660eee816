"""What a run is: `run.json` in its folder holds the configuration in effect, the data, and what it has trained on.

`train` writes it before the first update and compares it when it goes on; `finish` takes everything from it. So a run
cannot become another experiment unnoticed, and no picture that it has trained on is ever measured as held out, not even
one that only an earlier piece of it, or the run it started from, has seen. The state of the training itself is
`trainer.checkpoints`'s affair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from trainer import weights
from trainer.atomic_files import write_text_atomically
from trainer.checkpoints import read_progress
from trainer.configs import TrainConfig
from trainer.data.augment import AugmentConfig
from trainer.data.credits import credits_of
from trainer.data.label_trust import LabelTrust
from trainer.data.sample import Credit, Pictured
from trainer.data.sources import Source, WeightedSamples
from trainer.detection.compose import Shares
from trainer.errors import RefusedError

RUNS_FOLDER = Path("runs")
FILE_NAME = "run.json"
FORMAT = 1

_MAY_CHANGE = ("validation_samples", "validate_minutes", "checkpoint_minutes", "log_seconds", "for_gpu")
"""Fields of a configuration that do not show in the weights."""

P = TypeVar("P", bound=Pictured)
Picture = tuple[str, str]
"""A picture by its data set's name and its own."""


class RunError(RefusedError):
    """A run whose record is missing, damaged, or of another experiment."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    Attributes:
        config: as it was in effect, command line included.
        sources: the data sets as they were named.
        skip_bad: whether unusable samples were left out.
        hands: hands trained on by data set, now.
        digest: of the training samples now, in order, with their weights.
        trained_on: every picture that any piece of the run, the run it started from, or its teacher has trained on.
        held_out: pictures kept for validation now.
        warm_start: name of the run, or the weights file, that the weights started from.
        teacher: name of the run whose beliefs are mixed into the targets.
        notes: what a reader of the results has to know.
        credits: sources, licences and authors of the pictures, as far as the data sets name them.
    """

    config: TrainConfig
    sources: tuple[str, ...]
    skip_bad: bool
    hands: Mapping[str, int]
    digest: str
    trained_on: frozenset[Picture]
    held_out: frozenset[Picture]
    warm_start: str | None = None
    teacher: str | None = None
    notes: tuple[str, ...] = ()
    credits: tuple[Credit, ...] = ()

    def measured(self, samples: Iterable[P]) -> list[P]:
        """Those samples whose picture is held out and was never trained on.

        Raises:
            RunError: there are none, or some held-out picture is not among the samples.
        """
        wanted = self.held_out - self.trained_on
        if not wanted:
            raise RunError("nothing is held out that was not trained on, so there is nothing to measure on")
        found = [sample for sample in samples if _picture(sample) in wanted]
        missing = sorted(wanted - {_picture(sample) for sample in found})
        if missing:
            raise RunError(
                f"{len(missing)} of the {len(wanted)} held-out pictures are not in the data, for example "
                f"{missing[0][1]} of {missing[0][0]}; give the data sets that the run was trained with, in folders of"
                " the names that they had then"
            )
        return found


def record_of(
    config: TrainConfig,
    sources: Sequence[Source],
    train: WeightedSamples,
    validation: WeightedSamples,
    *,
    skip_bad: bool,
) -> RunRecord:
    """The record of a run that begins now."""
    counted = [(sample, weight, 1) for sample, weight in zip(train.samples, train.weights, strict=True)]
    return record_of_pictures(config, sources, counted, validation.samples, skip_bad=skip_bad)


def record_of_pictures(
    config: TrainConfig,
    sources: Sequence[Source],
    train: Sequence[tuple[Pictured, float | str, int]],
    validation: Iterable[Pictured],
    *,
    skip_bad: bool,
) -> RunRecord:
    """`record_of` for pictures, each with how it is used in training and how many hands are in it."""
    hands = dict.fromkeys(sorted({picture.source for picture, _, _ in train}), 0)
    digest = hashlib.sha256()
    for picture, use, count in train:
        hands[picture.source] += count
        digest.update(f"{picture.source}\t{picture.name}\t{use}\n".encode())
    return RunRecord(
        config=config,
        sources=tuple(map(str, sources)),
        skip_bad=skip_bad,
        hands=hands,
        digest=digest.hexdigest(),
        trained_on=frozenset(_picture(picture) for picture, _, _ in train),
        held_out=frozenset(map(_picture, validation)),
        credits=credits_of([picture for picture, _, _ in train], sources),
    )


def started_from(record: RunRecord, warm_start: Path) -> RunRecord:
    """The record of a run that takes its first weights from the run in folder `warm_start`, or from a weights file."""
    if warm_start.is_file():
        return _after_weights(replace(record, warm_start=str(warm_start)), warm_start, "started from")
    return _after(replace(record, warm_start=warm_start.name), warm_start)


def stages_of(record: RunRecord, path: Path) -> RunRecord:
    """The record of a run whose stages 2 and 3 begin as those of a weights file."""
    return _after_weights(record, path, "stages 2 and 3 started from")


def taught_by(record: RunRecord, teacher: Path) -> RunRecord:
    """The record of a run that learns from the run in folder `teacher` as well as from the labels."""
    return _after(replace(record, teacher=teacher.name), teacher)


def _after(record: RunRecord, run: Path) -> RunRecord:
    """`record`, with what an earlier run knew before this one began."""
    if not (run / FILE_NAME).is_file():
        note = f"{run.name} has no {FILE_NAME}: what it was trained on is not known"
        return replace(record, notes=(*record.notes, note))
    before = read(run)
    return replace(
        record,
        trained_on=record.trained_on | before.trained_on,
        notes=(*before.notes, *record.notes),
        credits=_together(before.credits, record.credits),
    )


def _after_weights(record: RunRecord, path: Path, what: str) -> RunRecord:
    """`record`, with what is known of the pictures that finished weights were trained on: how many, and a rule."""
    stored = weights.load(path)
    known = tuple(Credit(**credit) for credit in stored.info.provenance.get("credits", ()))
    note = note_on(stored, record.config, what)
    return replace(record, notes=(*record.notes, note), credits=_together(known, record.credits))


def _together(some: Iterable[Credit], others: Iterable[Credit]) -> tuple[Credit, ...]:
    return tuple(sorted({*some, *others}))


def note_on(stored: weights.StoredWeights, config: TrainConfig, what: str) -> str:
    """Says what finished weights, which are `what`, were trained on, and whether what is held out now is among it."""
    known = stored.info.provenance
    names = ", ".join(map(str, known.get("hands_trained_on", {}))) or "data of which nothing is known"
    note = f"{what} weights {stored.sha256[:12]}, trained on {names}"
    if not held_out_alike(stored, config):
        rules = list(known.get("held_out_file_names", ()))
        note += f", which held out {rules}: others that are held out now may have been trained on"
    return note


def held_out_alike(stored: weights.StoredWeights, config: TrainConfig) -> bool:
    """Whether finished weights come from a run that held out by the rules of `config`."""
    known = stored.info.provenance
    return (set(known.get("held_out_file_names", ())), known.get("split")) == (set(config.holdout), config.split)


def continued(record: RunRecord, folder: Path, *, changed: bool) -> RunRecord:
    """`record` as that of the next piece of the run in `folder`; `record` itself if the run has not begun.

    Args:
        record: of this piece.
        folder: the run's.
        changed: whether the experiment may differ from the one begun, which is then noted.

    Raises:
        RunError: it differs, it is to start from other weights, or nothing says what the run in the folder is.
    """
    progress = read_progress(folder)
    if progress is None:
        return record
    before = read(folder)
    if record.warm_start not in (None, before.warm_start):
        raise RunError(
            f"{folder} started from {before.warm_start or 'fresh weights'}, not from {record.warm_start}, and goes on"
            " from its checkpoint: leave --warm-start out, give it as it was, or begin a run of another name"
        )
    differing = _differing(before, record)
    if differing and not changed:
        raise RunError(
            f"{folder} is another experiment: {differing[0]}. Go on as it was begun, begin a run of another name, "
            "or allow the change with --changed"
        )
    notes = (f"from update {progress.step} on, {what}" for what in differing)
    return replace(
        record,
        warm_start=before.warm_start,
        trained_on=before.trained_on | record.trained_on,
        notes=(*before.notes, *notes),
        credits=_together(before.credits, record.credits),
    )


def _differing(before: RunRecord, now: RunRecord) -> list[str]:
    differing = [
        f"{field.name} is {getattr(now.config, field.name)!r}, it was {getattr(before.config, field.name)!r}"
        for field in fields(TrainConfig)
        if field.name not in _MAY_CHANGE and getattr(now.config, field.name) != getattr(before.config, field.name)
    ]
    if now.teacher != before.teacher:
        differing.append(f"the teacher is {now.teacher or 'none'}, it was {before.teacher or 'none'}")
    if now.digest != before.digest:
        differing.append(f"the training samples are others ({dict(now.hands)}, before {dict(before.hands)})")
    return differing


def write(record: RunRecord, folder: Path) -> None:
    """Writes the record into the run's folder, whole or not at all."""
    content = {
        "format": FORMAT,
        "config": asdict(record.config),
        "sources": record.sources,
        "skip_bad": record.skip_bad,
        "hands": dict(record.hands),
        "digest": record.digest,
        "trained_on": _by_source(record.trained_on),
        "held_out": _by_source(record.held_out),
        "warm_start": record.warm_start,
        "teacher": record.teacher,
        "notes": record.notes,
        "credits": [asdict(credit) for credit in record.credits],
    }
    write_text_atomically(folder / FILE_NAME, json.dumps(content, indent=1) + "\n")


def read(folder: Path) -> RunRecord:
    """The record of the run in `folder`. RunError if there is none or it is damaged."""
    path = folder / FILE_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{path} is of format {content['format']}; this program reads format {FORMAT}")
        return RunRecord(
            config=_config(content["config"]),
            sources=tuple(content["sources"]),
            skip_bad=content["skip_bad"],
            hands=content["hands"],
            digest=content["digest"],
            trained_on=_pictures(content["trained_on"]),
            held_out=_pictures(content["held_out"]),
            warm_start=content["warm_start"],
            teacher=content.get("teacher"),  # records from before there were teachers
            notes=tuple(content["notes"]),
            credits=tuple(Credit(**credit) for credit in content.get("credits", ())),  # nor were there credits
        )
    except FileNotFoundError:
        raise RunError(f"{path} is missing: without it there is no telling what the run was trained on") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _config(content: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        **{
            **content,
            "input_sizes": tuple((share, size) for share, size in content["input_sizes"]),
            "holdout": tuple(content["holdout"]),
            "augment": AugmentConfig(**content["augment"]),
            "trust": LabelTrust(**content.get("trust", {})),  # records of before there was any
            "shares": Shares(**content["shares"]) if content.get("shares") else None,
        }
    )


def _picture(sample: Pictured) -> Picture:
    return sample.source, sample.name


def _by_source(pictures: Iterable[Picture]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for source, name in sorted(pictures):
        grouped.setdefault(source, []).append(name)
    return grouped


def _pictures(content: dict[str, list[str]]) -> frozenset[Picture]:
    return frozenset((source, name) for source, names in content.items() for name in names)
