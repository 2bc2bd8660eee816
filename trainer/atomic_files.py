"""Atomic writes: after a full disk, a kill or a power cut a file is the new one or the old one, never a part of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_atomically(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Gives the block a temporary path to write for each of `paths`; renames them to `paths` if it succeeds.

    All of them are on the disk before the first is renamed, so files that belong together stay together when the disk
    fills up. Folders are made. Temporary files are removed; those of a killed process are written over. Raises OSError
    as writing does.
    """
    temporaries = tuple(path.with_name(f"{path.name}.part") for path in paths)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporaries
        for temporary in temporaries:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces the file's content by `text`, UTF-8."""
    with replaced_atomically(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")
