"""How often a shard was begun, kept beside its output: the only trace of a picture that kills its process.

Ray gives a dead worker's shard to another for as long as it takes, so a picture that takes the process with it would
keep the job from ever ending. A shard that was begun too often is done one picture at a time, each noted before it is
estimated: one that was noted at two deaths is to blame, and gets a problem for a record. Once is not enough: stopping a
job kills its workers too. A shard that ends with an error has killed no process, and does not count.
"""

from collections import Counter
from contextlib import suppress
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from service.offline.storage import TEMPORARY, Place

_OFTEN: Final = 3
_DEATHS: Final = 2


class _Attempts(BaseModel):
    model_config = ConfigDict(frozen=True)

    begun: int = 0
    image: str | None = None
    deaths: dict[str, int] = Field(default_factory=dict)


class ShardAttempts:
    """The attempts at one shard. Making one notes that the shard is begun; raises OSError if nothing can be written."""

    def __init__(self, output: Place, file_name: str) -> None:
        self._output = output
        self._name = f"{TEMPORARY}/{file_name}.json"
        try:
            before = _Attempts.model_validate_json(output.read(self._name))
        except FileNotFoundError:
            before = _Attempts()
        deaths = Counter(before.deaths)
        if before.image is not None:
            deaths[before.image] += 1
        self._write(_Attempts(begun=before.begun + 1, deaths=deaths))

    @property
    def one_by_one(self) -> bool:
        """Whether the shard was begun so often that its pictures are to be done one by one."""
        return self._attempts.begun > _OFTEN

    @property
    def fatal(self) -> frozenset[str]:
        """Pictures at which the process died often enough to blame them."""
        return frozenset(image for image, deaths in self._attempts.deaths.items() if deaths >= _DEATHS)

    def begin_image(self, image: str) -> None:
        self._write(self._attempts.model_copy(update={"image": image}))

    def failed(self) -> None:
        """The shard is not done, but its process lives: as if it had not been begun."""
        with suppress(OSError):  # the store may be why it failed
            self._write(self._attempts.model_copy(update={"begun": self._attempts.begun - 1, "image": None}))

    def done(self) -> None:
        with suppress(FileNotFoundError):  # another worker may have done the shard too
            self._output.remove(self._name)

    def _write(self, attempts: _Attempts) -> None:
        self._attempts = attempts
        self._output.write(self._name, attempts.model_dump_json().encode())
