"""Files that change while the service runs: read within a bound, replaced in one step, followed."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

MAX_BYTES: Final = 1024 * 1024

T = TypeVar("T")

_log = logging.getLogger(__name__)


class FileError(ValueError):
    """An operator's file cannot be used. The message is one line: which file, where in it, what is wrong."""


class FollowedFile(Generic[T]):
    """Reads a file again whenever its content changes.

    Args:
        path: the file.
        parse: values of a content; gets the file's name for errors. Raises FileError.
        use: receives the values, on the event loop.
        what: names the content in the log.
    """

    def __init__(self, path: Path, parse: Callable[[bytes, str], T], use: Callable[[T], None], *, what: str) -> None:
        self._path = path
        self._parse = parse
        self._receive = use
        self._what = what
        self._content: bytes | None = None

    def load(self) -> bool:
        """Read the file; returns whether it has changed.

        Raises:
            FileError: it is wrong; the previous values stay in use.
        """
        return self._use(self._changed())

    async def watch(self, every_s: float = 1.0) -> None:
        """Follow the file for ever. A file that is wrong or gone changes nothing, and is logged once."""

        async def load() -> bool:
            return self._use(await asyncio.to_thread(self._changed))

        await follow(load, every_s=every_s, what=f"{self._what} in {self._path}")

    def _changed(self) -> tuple[bytes, T] | None:
        # Compare contents, not times: a mounted file changes when a link moves.
        content = read_at_most(self._path)
        if self._content and not content.strip():  # perhaps in the middle of being written
            raise FileError(f"{self._path}: is empty; write [] or {{}} for no {self._what}")
        return None if content == self._content else (content, self._parse(content, str(self._path)))

    def _use(self, changed: tuple[bytes, T] | None) -> bool:
        if changed is not None:
            content, values = changed
            self._receive(values)
            self._content = content
        return changed is not None


async def follow(
    load: Callable[[], Awaitable[bool]],
    *,
    every_s: float,
    what: str,
    expected: tuple[type[Exception], ...] = (FileError,),
) -> None:
    """Load something again and again, for ever. A failure is logged once, until it passes or becomes another one.

    Args:
        load: loads it if it has changed, and returns whether it had. When it raises, what was loaded before applies.
        every_s: seconds between two calls.
        what: names it in the log.
        expected: errors whose message says everything. Others are logged with their traceback.
    """
    failure = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            if await load():
                _log.info("loaded the changed %s", what)
            failure = ""
        except Exception as error:  # noqa: BLE001 -- a defect met once must not end the following of later changes
            if repr(error) != failure:
                unexpected = None if isinstance(error, expected) else error
                _log.error(
                    "could not load the changed %s, the previous stays in use: %s", what, error, exc_info=unexpected
                )
            failure = repr(error)


def read_at_most(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file. Raises FileError if it cannot be read or is longer; the rest is not read."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise FileError(f"{path}: longer than {max_bytes} bytes")
    return content


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step: at any moment a reader sees all of the old content or all of the new.

    The file keeps its mode and, as far as permitted, its owner and group; a new file is readable by its owner only.
    A link stays a link. Raises FileError if it cannot be written, and is what it was before.
    """
    path = path.resolve()
    unfinished: Path | None = None
    try:
        before = path.stat() if path.exists() else None
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        unfinished = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            _give_to(unfinished, before)
            unfinished.chmod(before.st_mode & 0o777)
        unfinished.replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def _give_to(path: Path, before: os.stat_result) -> None:
    """Keep owner and group: a file that root has edited must stay readable for the service's user."""
    for owner, group in ((-1, before.st_gid), (before.st_uid, -1)):
        with suppress(OSError):  # not permitted, or the file system has no owners
            os.chown(path, owner, group)
