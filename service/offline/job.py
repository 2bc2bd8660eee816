"""A job: which pictures, which model, cut into which shards; written down before the work begins.

A shard is a run of consecutive pictures and one file of output, named by its number. The file appears whole, so it is
its own mark of being done: a shard that is repeated writes the same file again, and a job that was stopped goes on with
the shards whose files are not there. What the job is about was written down at its start, so pictures that come or go
meanwhile move nothing.
"""

import gzip
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from service.backends.repository import as_served, newest_servables, resolve, variants_among
from service.inference.estimates import DEFAULT_MIN_SCORE, MOST_HANDS
from service.inference.models import ModelReference
from service.offline.records import Format
from service.offline.storage import Place, one_line
from service.settings import Settings

DESCRIPTION: Final = "_job.json"
LISTING: Final = "_images.json.gz"
DEFAULT_SHARD_SIZE: Final = 500

_LAYOUT: Final = 2  # of 1, pictures were taken to be one hand each


class JobError(Exception):
    """The job cannot be done as asked. The message is one line."""


class Description(BaseModel):
    """What is written down of a job. A job that goes on must be the same one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: int = _LAYOUT
    input: str
    model: Annotated[str, Field(description="variant[@version|@label]")]
    max_hands: Annotated[int, Field(ge=1, le=MOST_HANDS)] = 4
    min_score: Annotated[float, Field(ge=0, le=1)] = DEFAULT_MIN_SCORE
    whole: bool = False
    form: Format
    shard_size: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive pictures of a job, and the file that their records go to."""

    number: int
    first: int
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs to know, on any machine.

    Attributes:
        output: folder or URL where the shards go.
        description: of the job.
        settings: of the predictor.
    """

    output: str
    description: Description
    settings: Settings

    def file_name(self, shard: int) -> str:
        """The name of a shard's file."""
        return f"part-{shard:06d}.{self.description.form}"


@dataclass(frozen=True, slots=True)
class Job:
    """A job with its pictures, and the shards that are still to be done.

    Attributes:
        work: what workers need to know of it.
        shards: all of them.
        done: numbers of those that were done when the job began or went on.
        left_out: hidden files of the input, which the job leaves out; known when it begins only.
    """

    work: Work
    shards: tuple[Shard, ...]
    done: frozenset[int]
    left_out: tuple[str, ...] = ()

    @classmethod
    def begin(
        cls,
        source: str,
        target: str,
        settings: Settings,
        *,
        model: str,
        form: Format,
        shard_size: int | None = None,
        max_hands: int | None = None,
        min_score: float | None = None,
        whole: bool | None = None,
    ) -> Self:
        """Go on with the job that is written down in the target; if there is none, write one down.

        Args:
            source: folder, pattern or URL of the pictures.
            target: folder or URL for the shards.
            settings: of the predictor.
            model: what answers.
            form: of the shards' files.
            shard_size: pictures in a shard. As for what follows, None is: as the job has it, or the default.
            max_hands: hands to look for in a picture.
            min_score: hands that score less are left out.
            whole: whether each picture shows one hand as a whole.

        Raises:
            JobError: no pictures, or the target holds another job.
            StorageError: a place cannot be used.
        """
        pictures, output = Place.at(source), Place.at(target)
        search: dict[str, Any] = {"max_hands": max_hands, "min_score": min_score, "whole": whole}
        there, left_out = output.names(), list[str]()
        if DESCRIPTION in there:
            try:
                description = Description.model_validate_json(output.read(DESCRIPTION))
                images: list[str] = json.loads(gzip.decompress(output.read(LISTING)))
            except (OSError, ValueError, EOFError) as error:
                raise JobError(f"{target}: {DESCRIPTION} or {LISTING} is not readable: {one_line(error)}") from error
            if description.layout != _LAYOUT:
                raise JobError(f"{target}: holds a job of another version, whose records differ; choose another folder")
            asked = {"input": pictures.text, "model": model, "form": form, "shard_size": shard_size, **search}
            for name, value in asked.items():
                if value is not None and (has := getattr(description, name)) != value:
                    raise JobError(
                        f"{target}: holds a job with {name} {has}, and {value} was asked for;"
                        " ask for the same to go on with it, or choose another folder"
                    )
        else:
            if there - {LISTING}:  # a listing alone is of a job that was killed while it was written down
                raise JobError(f"{target}: holds files that are of no job; choose an empty folder")
            images, left_out = pictures.pictures()
            if not images:
                raise JobError(f"{source}: no file there")
            description = Description(
                input=pictures.text,
                model=model,
                form=form,
                shard_size=shard_size or DEFAULT_SHARD_SIZE,
                images=len(images),
                **{name: value for name, value in search.items() if value is not None},
            )
            output.files.create_dir(output.folder, recursive=True)
            output.write(LISTING, gzip.compress(json.dumps(images).encode(), mtime=0))
            output.write(DESCRIPTION, description.model_dump_json(indent=2).encode())  # last: now the job is there
        work = Work(output.text, description, settings)
        size = description.shard_size
        shards = tuple(
            Shard(number, start, tuple(images[start : start + size]))
            for number, start in enumerate(range(0, len(images), size))
        )
        done = frozenset(each.number for each in shards if work.file_name(each.number) in there)
        return cls(work, shards, done, tuple(left_out))

    @property
    def to_do(self) -> tuple[Shard, ...]:
        """The shards whose files were not there when the job began or went on."""
        return tuple(shard for shard in self.shards if shard.number not in self.done)

    @property
    def images_done(self) -> int:
        """Pictures whose records were there already."""
        return sum(len(shard.images) for shard in self.shards if shard.number in self.done)


def pinned(text: str, settings: Settings) -> str:
    """A model as the job names it: with its version, so that a later version does not take over in the middle.

    Models of TensorFlow Serving are named as they were given; its versions are the model servers' business.

    Args:
        text: variant[@version|@label].
        settings: which models there are.

    Raises:
        UnknownModelError: there is none of that name.
        ServableError: there are no models, or a card does not fit.
    """
    reference = ModelReference.parse(text)
    if settings.backend != "embedded":
        return str(reference)
    models = variants_among(as_served(newest_servables(settings.model_repo, settings.versions_in_memory)))
    return f"{reference.variant}@{resolve(models, reference).version}"
