"""One training at a time in a run's folder: two would overwrite each other's checkpoints.

The lock is the kernel's and goes with the process, so a kill leaves nothing to clear away. It holds among processes of
one machine, and among machines as far as the shared file system keeps such locks. Commands that only read do not ask.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trainer.errors import RefusedError

FILE_NAME: Final = ".lock"


@contextlib.contextmanager
def only_one_trains(folder: Path) -> Iterator[None]:
    """Holds the run's folder, which is made if there is none, while the block runs.

    Raises:
        RefusedError: another process trains this run now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{folder} is being trained by another process; wait for it, stop it, or choose another --run"
            ) from None
        except OSError as error:  # some network file systems have no such locks
            print(
                f"note: {folder} cannot be locked ({error.strerror}): start no second training there", file=sys.stderr
            )
        yield
