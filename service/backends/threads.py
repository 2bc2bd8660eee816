"""Threads for what an event loop waits for but must not do itself, such as running a model.

`concurrent.futures` makes a future with a lock for each call, and asyncio one more that follows it. Where a call comes
for every request, on a processor whose caches have been put to other use since the last one, that is more than half of
what going to a thread and back takes (`python -m benchmarks.thread_hop`).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Threads(Protocol):
    """Where blocking functions are called."""

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns or raises. Who is cancelled meanwhile waits no longer; a call that has begun ends.

        Args:
            function: called in a thread, or not at all if the caller is cancelled before one is free.
            arguments: for it, by position.
        """
        ...


class _Call(NamedTuple):
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Any]"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class OwnThreads:
    """Implements `Threads` with a fixed number of threads, which take the calls in the order in which they come.

    Args:
        name: of the threads.
        number: how many.
    """

    def __init__(self, name: str, number: int) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._closed = False
        self._threads = [Thread(target=_work_off, args=(self._calls,), name=f"{name}_{i}") for i in range(number)]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()  # those that have started would keep the process
            raise

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._closed:
            raise RuntimeError("these threads take no more calls")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(loop, answer, function, arguments))
        try:
            return await answer
        finally:
            del answer  # it holds what was raised, which holds this frame

    def close(self) -> None:
        """Cancel the calls that have not begun, and end each thread once it is done with its own; waits for none.

        To be called where the event loop runs, or ran.
        """
        self._closed = True
        with suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None and not call.loop.is_closed():
                    call.answer.cancel()
        for _ in self._threads:
            self._calls.put(None)


@contextmanager
def own_threads(name: str, number: int) -> Iterator[OwnThreads]:
    """The threads, for as long as the block runs; see `OwnThreads`."""
    threads = OwnThreads(name, number)
    try:
        yield threads
    finally:
        threads.close()


def _work_off(calls: "SimpleQueue[_Call | None]") -> None:
    while (call := calls.get()) is not None:
        if not call.answer.cancelled():
            _do(call)
        del call  # else it would be kept, with its arguments, until the next one comes


def _do(call: _Call) -> None:
    loop, answer, function, arguments = call
    del call
    result, failure = None, None
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the caller must learn of it
        failure = error
    try:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(_answer, answer, result, failure)
    finally:
        del answer, arguments, failure  # what was raised holds this frame, which would hold it and them


def _answer(answer: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
    if answer.done():  # the caller was cancelled
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)
