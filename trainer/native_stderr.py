"""Keeps TensorFlow's start-up messages off the terminal without hiding errors.

TensorFlow's native code writes to file descriptor 2 before its own log level takes effect, so setting that level is not
enough.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_stderr_held_back() -> Iterator[None]:
    """Drops what the block writes to file descriptor 2, or prints it after all if the block fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            except BaseException:
                sys.stderr.flush()
                held.seek(0)
                os.write(terminal, held.read())
                raise
            finally:
                sys.stderr.flush()
                os.dup2(terminal, 2)
    finally:
        os.close(terminal)
