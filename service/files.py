"""Files that change while the service runs: read within a bound, replaced in one step, followed."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

_log = logging.getLogger(__name__)


class FileError(ValueError):
    """A file of the operator's cannot be read, used or written; the message names it, and is one line."""


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
        expected: errors that need no traceback in the log.
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


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        FileError: it cannot be read, or is longer than `max_bytes`; the rest was not read.
    """
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
    A link stays a link.

    Raises:
        FileError: it cannot be written, and is what it was before.
    """
    try:
        _replace(path.resolve(), content)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    before = path.stat() if path.exists() else None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            _give_to(unfinished, before)
            unfinished.chmod(before.st_mode & 0o777)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _give_to(path: Path, before: os.stat_result) -> None:
    """Keep owner and group: a file that root has edited must stay readable for the service's user."""
    for owner, group in ((before.st_uid, before.st_gid), (-1, before.st_gid)):
        try:
            os.chown(path, owner, group)
        except OSError:  # not permitted, or the file system has no owners
            continue
        return
