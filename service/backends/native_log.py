"""Filters what TensorFlow's native code writes to standard error while it starts.

That code reports the machine's instruction sets and missing GPUs on file descriptor 2, some of it before its own log
level can take effect. Everything else that is written there meanwhile, from any thread, passes through.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_INFORMATION: Final = re.compile(rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:\d+\.")


@contextmanager
def native_log_filtered() -> Iterator[None]:
    """Drop native information and warnings from standard error while the block runs; errors stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # holds from the moment that it is read
    sys.stderr.flush()
    terminal = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    passing = threading.Thread(target=_pass_on, args=(reading, terminal), name="native log")
    passing.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)  # closes the pipe's last writing end, so that the thread comes to its end
        passing.join()
        os.close(terminal)


def _pass_on(reading: int, terminal: int) -> None:
    """Copy lines from one file descriptor to another, without native information and warnings."""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _INFORMATION.match(line):
                os.write(terminal, line)
