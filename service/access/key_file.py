"""The operator's API keys in a YAML file: read, checked, followed when the file changes, and edited by a command.

    - name: kiosk                           # for people: it is in the log, never in an answer
      sha256: 5d9c68c6c50ed3d02a2fcf54f63993b6...   # of the key; the key itself is kept by whoever uses it
      created: 2026-11-22T20:10:00+00:00    # for people; may be left out
      expires: 2027-11-22T00:00:00+00:00    # may be left out
      images_per_second: 20                 # may be left out: the service's settings count; 0: no limit
      burst: 60                             # may be left out; needs images_per_second

`python -m service keys new --name kiosk` makes a key, prints it once, and appends its entry. To revoke a key, remove
its entry. An empty list lets nobody in.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Self

import yaml
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from service import yaml_files
from service.files import FileError, read_at_most, replace
from service.inference.access import MAX_KEYS, Allowance, ApiKey
from service.inference.keys import digest_of, new_key

# The burst of a rate that names none: so many seconds' worth.
SECONDS_OF_BURST: Final = 2.0

_NEW_FILE: Final = "# API keys: see docs/access.md. The keys themselves are not here, only their SHA-256.\n"


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file. Raises FileError if it cannot be read or is wrong."""
    return parse_keys(read_at_most(path), str(path))


def parse_keys(content: bytes, name: str = "key file") -> list[ApiKey]:
    """The keys in a file's content. Raises FileError with file and line; it never repeats what might be a key."""
    return _keys(yaml_files.parse(content, name))


def _keys(document: yaml_files.Document) -> list[ApiKey]:
    return [] if document.data is None else [entry.key() for entry in document.validated(_ENTRIES)]


def add_key(
    path: Path,
    name: str,
    *,
    now: datetime,
    expires: datetime | None = None,
    images_per_second: float | None = None,
    burst: float | None = None,
) -> str:
    """Make a key and append its entry to a file, which is made if there is none; the key, which is kept nowhere.

    Raises:
        FileError: the file is wrong, or would be with the entry; or it cannot be written.
    """
    key = new_key()
    entry = {
        "name": name,
        "sha256": digest_of(key).hex(),
        "created": now.astimezone(UTC).isoformat(timespec="seconds"),
        "expires": None if expires is None else expires.isoformat(),
        "images_per_second": images_per_second,
        "burst": burst,
    }
    text = yaml.safe_dump([{k: v for k, v in entry.items() if v is not None}], sort_keys=False, allow_unicode=True)
    before = _text_of(path) if path.exists() else ""
    if before.strip() in ("", "[]"):
        before = _NEW_FILE
    after = (before + ("" if before.endswith("\n") else "\n") + text).encode()
    parse_keys(after, str(path))
    replace(path, after)
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove the entry of this name from a file; everything else in it stays as it is.

    Raises:
        FileError: the file is wrong, has no such entry, or cannot be written.
    """
    text = _text_of(path)
    document, lines = yaml_files.parse(text.encode(), str(path)), text.splitlines(keepends=True)
    names = [key.name for key in _keys(document)]
    if name not in names:
        raise FileError(f"{path}: there is no key named {name!r}; there are {', '.join(names) or 'none'}")
    index = names.index(name)
    begin, end = document.lines[index,] - 1, document.lines.get((index + 1,), len(lines) + 1) - 1
    after = "".join(lines[:begin] + lines[end:]).encode()
    if [key.name for key in parse_keys(after, str(path))] != names[:index] + names[index + 1 :]:
        raise FileError(f"{path}: the entry cannot be told from the others; remove it with an editor")
    replace(path, after)


def _text_of(path: Path) -> str:
    try:
        return read_at_most(path).decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: must be in UTF-8 to be edited") from error


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$", strict=True)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    images_per_second: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    burst: Annotated[float | None, Field(ge=1, allow_inf_nan=False)] = None

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> Self:
        if self.burst is not None and not self.images_per_second:
            raise ValueError("burst: needs images_per_second above 0, too")
        return self

    def key(self) -> ApiKey:
        rate = self.images_per_second
        allowance = None if rate is None else allowance_of(rate, self.burst)
        return ApiKey(self.name, bytes.fromhex(self.sha256), self.expires, allowance)


def allowance_of(images_per_second: float, burst: float | None) -> Allowance:
    """A rate as it is written down: 0 is no limit, and a burst that is not given is `SECONDS_OF_BURST` of the rate."""
    if not images_per_second:
        return Allowance()
    return Allowance(images_per_second, burst or max(1.0, SECONDS_OF_BURST * images_per_second))


def _distinct(entries: Sequence[_Entry]) -> Sequence[_Entry]:
    names, digests = {each.name for each in entries}, {each.sha256 for each in entries}
    if min(len(names), len(digests)) < len(entries):
        raise ValueError("two entries have the same name or the same sha256")
    return entries


_ENTRIES: Final = TypeAdapter(Annotated[list[_Entry], Field(max_length=MAX_KEYS), AfterValidator(_distinct)])
