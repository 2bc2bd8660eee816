"""Keeps TensorFlow's start-up messages off the terminal without hiding errors.

TensorFlow's native code writes to file descriptor 2 before its own log level can take effect, so the
environment variable alone does not silence it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_messages_held_back() -> Iterator[None]:
    """Drops what the block writes to file descriptor 2; if the block fails, it is written after all."""
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
