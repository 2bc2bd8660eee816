"""What stays for the life of the process is not searched for garbage over and over.

Python's collector walks through every object that could be part of a cycle, again whenever enough new ones have come.
TensorFlow, a web framework and two models are 470,000 that never go away, and each such walk is a pause of a fifth of a
second in which no request gets on. So they are set apart once all is loaded.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle() -> None:
    """Collect what is garbage now, and set everything else apart until this is called again.

    Whatever let go of a model calls it, for cycles among what was set apart are not found any more. It takes some
    tenths of a second, in which nothing else runs.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def unsettled_at_the_end() -> Iterator[None]:
    """After the block nothing is set apart: a process may outlive its service, as a test's does."""
    try:
        yield
    finally:
        gc.unfreeze()
