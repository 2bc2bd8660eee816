"""Start of every worker process of the trainer: one arithmetic thread each; it ends with its parent.

The work itself is the caller's. Processes, not threads, do what must keep many cores busy: Pillow and NumPy release the
interpreter only for part of it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Final

_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside the block use one thread for linear algebra: the processes are the parallelism."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def begin() -> None:
    """To be called first in a worker process: leaves Ctrl-C and SIGTERM to the parent, and ends when the parent does.

    A SIGTERM that the parent itself sends still ends it: that is how a pool gets rid of its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        if hasattr(signal, "sigwaitinfo"):  # which tells the sender; not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads to come are born with it
            threading.Thread(target=_end_when_told_by, args=(parent,), daemon=True).start()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_when_told_by(parent: BaseProcess) -> None:
    # A process group is told to stop as a whole; the parent then saves, for which it may need another batch.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(1)


def _end_with(parent: BaseProcess) -> None:
    # A killed parent would leave its workers waiting for ever.
    parent.join()
    os._exit(1)
