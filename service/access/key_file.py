"""The operator's API keys in a YAML file: read, checked, followed when the file changes, and edited by a command.

    - name: kiosk                           # for people: it is in the log, never in an answer
      sha256: 5d9c68c6c50ed3d02a2fcf54f63993b6...   # of the key; the key itself is only with its user
      created: 2026-11-22T20:10:00+00:00    # for people; may be left out
      expires: 2027-11-22T00:00:00+00:00    # may be left out
      images_per_second: 20                 # may be left out: the service's settings count; 0: no limit
      burst: 60                             # may be left out; needs images_per_second

`python -m service keys new --name kiosk` makes a key, prints it once, and appends its entry. To revoke a key, remove
its entry. An empty list refuses every request.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service import yaml_files
from service.files import FileError, follow, read_at_most, replace
from service.inference.access import MAX_KEYS, Allowance, ApiKey, Doorkeeper
from service.inference.keys import digest_of, new_key

MAX_BYTES: Final = 1024 * 1024
SECONDS_OF_BURST: Final = 2.0
"""The burst of a rate that names none: so many seconds' worth."""

_NEW_FILE: Final = "# API keys: see docs/access.md. The keys themselves are not here, only their SHA-256.\n"


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file.

    Raises:
        FileError: it cannot be read or is wrong.
    """
    return parse_keys(read_at_most(path, MAX_BYTES), str(path))


def parse_keys(content: bytes, name: str = "key file") -> list[ApiKey]:
    """The keys in a file's content; `name` is the file's in errors.

    Raises:
        FileError: they are wrong.
    """
    return [entry.key() for entry in _entries(yaml_files.parse(content, name), name)]


def _entries(document: yaml_files.Document, name: str) -> "list[_Entry]":
    try:
        entries = _ENTRIES.validate_python([] if document.data is None else document.data)
    except ValidationError as error:
        raise FileError(_in_one_line(error, name)) from error
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in entries]
        for index, value in enumerate(values):
            if value in values[:index]:
                raise FileError(
                    f"{name}, entry {index + 1}: {what} {value!r} is that of entry {values.index(value) + 1}, too"
                )
    return entries


class KeyFile:
    """Hands the keys in a file to a doorkeeper, again whenever the file changes.

    Args:
        path: the file.
        doorkeeper: gets the keys.
    """

    def __init__(self, path: Path, doorkeeper: Doorkeeper) -> None:
        self._path = path
        self._doorkeeper = doorkeeper
        self._content: bytes | None = None

    def load(self) -> bool:
        """Read the file if it has changed; whether it had.

        Raises:
            FileError: it is wrong. The doorkeeper keeps its keys.
        """
        return self._use(self._changed())

    async def watch(self, every_s: float = 1.0) -> None:
        """Follow the file for ever. A file that is wrong, or is gone, changes nothing, and is logged once."""

        async def load() -> bool:
            return self._use(await asyncio.to_thread(self._changed))  # the doorkeeper belongs to the event loop

        await follow(load, every_s=every_s, what=f"keys in {self._path}")

    def _changed(self) -> tuple[bytes, list[ApiKey]] | None:
        # The content is compared, not the time: a mounted file changes by a link that now leads elsewhere.
        content = read_at_most(self._path, MAX_BYTES)
        if self._content and not content.strip():  # it may be in the middle of being written
            raise FileError(f"{self._path}: is empty; for no keys, write []")
        return None if content == self._content else (content, parse_keys(content, str(self._path)))

    def _use(self, changed: tuple[bytes, list[ApiKey]] | None) -> bool:
        if changed is None:
            return False
        content, keys = changed
        self._doorkeeper.follow(keys)
        self._content = content
        return True


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
        FileError: the file is wrong, or would be with the entry, or cannot be written.
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
    before = _text_of(path) if path.exists() else _NEW_FILE
    if before.strip() in ("", "[]"):
        before = _NEW_FILE
    parse_keys(before.encode(), str(path))
    after = before + ("" if before.endswith("\n") else "\n") + text
    parse_keys(after.encode(), str(path))
    replace(path, after.encode())
    return key


def remove_key(path: Path, name: str) -> None:
    """Take the entry of this name out of a file; everything else in it stays as it is.

    Raises:
        FileError: the file is wrong, has no such entry, or cannot be written.
    """
    keys = read_keys(path)
    index = next((index for index, key in enumerate(keys) if key.name == name), None)
    if index is None:
        raise FileError(f"{path}: there is no key named {name!r}; there are {', '.join(_names(keys)) or 'none'}")
    text = _text_of(path)
    document, lines = yaml_files.parse(text.encode(), str(path)), text.splitlines(keepends=True)
    begin, end = document.line_of((index,)) - 1, document.lines.get((index + 1,), len(lines) + 1) - 1
    after = "".join(lines[:begin] + lines[end:])
    if _names(parse_keys(after.encode(), str(path))) != [each for each in _names(keys) if each != name]:
        raise FileError(f"{path}: the entry cannot be separated from the others; remove it with an editor")
    replace(path, after.encode())


def _names(keys: Sequence[ApiKey]) -> list[str]:
    return [key.name for key in keys]


def _text_of(path: Path) -> str:
    try:
        return read_at_most(path, MAX_BYTES).decode()
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
            raise PydanticCustomError("burst_without_rate", "burst: needs images_per_second above 0, too")
        return self

    def key(self) -> ApiKey:
        return ApiKey(self.name, bytes.fromhex(self.sha256), self.expires, self._allowance())

    def _allowance(self) -> Allowance | None:
        return None if self.images_per_second is None else allowance_of(self.images_per_second, self.burst)


def allowance_of(images_per_second: float, burst: float | None) -> Allowance:
    """A rate as it is written down: 0 is no limit, and a burst that is not given is `SECONDS_OF_BURST` of the rate."""
    if not images_per_second:
        return Allowance()
    return Allowance(images_per_second, burst or max(1.0, SECONDS_OF_BURST * images_per_second))


_ENTRIES: Final = TypeAdapter(Annotated[list[_Entry], Field(max_length=MAX_KEYS)])

_ALLOWED: Final = {
    "name": "1 to 64 of A-Z a-z 0-9 . _ @ -, beginning with a letter or digit",
    "sha256": "64 hexadecimal digits in lower case, the SHA-256 of a key made by python -m service keys new",
    "expires": "a date and time with its zone, such as 2027-11-22T00:00:00+00:00",
}


def _in_one_line(error: ValidationError, name: str) -> str:
    """What is wrong first: file, entry, field, what is allowed. Never the value: it might be a key."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = first["loc"]
    where = f"{name}, entry {int(place[0]) + 1}" if place else name
    field = ".".join(str(part) for part in place[1:])
    message = str(first["msg"])
    if not place:
        message = "a list of entries with name and sha256 is expected" if first["type"] == "list_type" else message
    elif field in _ALLOWED and first["type"] != "missing":
        message = f"must be {_ALLOWED[field]}"
    return f"{where}: {f'{field}: ' if field else ''}{message[:1].lower()}{message[1:]}"
