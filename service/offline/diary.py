"""How often a shard was begun, written beside its output: the only witness of a picture that kills its process.

Ray gives a dead worker's shard to another for as long as it takes, so a picture that takes the process with it would
keep the job from ever ending. A shard that was begun too often is done one picture at a time, each noted before it is
looked at: one that was noted at two deaths is the culprit, and gets a problem for a record. Once is not enough: a job
that is stopped kills its workers too. A shard that ends with an error has killed nobody, and does not count.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field

from service.offline.storage import TEMPORARY, Place

_OFTEN: Final = 3
_DEATHS: Final = 2


class _Page(BaseModel):
    model_config = ConfigDict(frozen=True)

    begun: int = 0
    looking_at: str | None = None
    deaths: dict[str, int] = Field(default_factory=dict)


@dataclass(slots=True)
class Diary:
    """What is written down of one shard while it is not done."""

    _output: Place
    _name: str
    _page: _Page = field(default_factory=_Page)

    @classmethod
    def open(cls, output: Place, file_name: str) -> Self:
        """Note that a shard is begun. Raises OSError if nothing can be written."""
        diary = cls(output, f"{TEMPORARY}/{file_name}.json")
        try:
            before = _Page.model_validate_json(output.read(diary._name))
        except FileNotFoundError:
            before = _Page()
        deaths = dict(before.deaths)
        if before.looking_at is not None:
            deaths[before.looking_at] = deaths.get(before.looking_at, 0) + 1
        diary._write(_Page(begun=before.begun + 1, deaths=deaths))
        return diary

    @property
    def one_by_one(self) -> bool:
        """Whether the shard was begun so often that its pictures are to be looked at one by one."""
        return self._page.begun > _OFTEN

    @property
    def fatal(self) -> frozenset[str]:
        """Pictures at which the process died often enough to blame them."""
        return frozenset(picture for picture, deaths in self._page.deaths.items() if deaths >= _DEATHS)

    def looking_at(self, picture: str) -> None:
        """Note a picture before it is looked at."""
        self._write(self._page.model_copy(update={"looking_at": picture}))

    def give_up(self) -> None:
        """The shard is not done, but its process lives: as if it had not been begun."""
        with suppress(OSError):  # the store may be why it is given up
            self._write(self._page.model_copy(update={"begun": self._page.begun - 1, "looking_at": None}))

    def close(self) -> None:
        """The shard is done."""
        with suppress(FileNotFoundError):  # somebody else may have done the shard too
            self._output.remove(self._name)

    def _write(self, page: _Page) -> None:
        self._page = page
        self._output.write(self._name, page.model_dump_json().encode())
