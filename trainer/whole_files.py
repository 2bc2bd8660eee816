"""Files that are there whole or as they were before: on a full disk, and after a kill or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Gives the block a temporary path for each of `paths`, to write to; makes them the files if it ends well.

    None is renamed before all of them are written, to the disk itself, so files that belong together stay together
    when there is no room for the last. Folders are made; temporary files do not stay, and what a killed process left of
    them is written over. OSError as writing raises it.
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


def write_whole(path: Path, text: str) -> None:
    """Makes `text`, UTF-8, the file's content."""
    with replaced(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")
