"""Bounds on what calls do at a time: turns, for which further calls wait, and slots, without which they are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from service.inference.errors import OverloadedError

_RETRY_S: Final = 1.0


class NewestFirst:
    """A semaphore that the newest waiting task acquires first."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[asyncio.Future[None]] = []

    def locked(self) -> bool:
        """Whether `acquire` would wait."""
        return self._free == 0

    async def acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        acquired: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(acquired)
        try:
            await acquired
        except asyncio.CancelledError:
            if acquired in self._waiting:
                self._waiting.remove(acquired)
            elif not acquired.cancelled():
                self.release()  # acquired in the moment of the cancellation
            raise

    def release(self) -> None:
        while self._waiting:
            newest = self._waiting.pop()
            if not newest.done():
                newest.set_result(None)
                return
        self._free += 1


@asynccontextmanager
async def turn(turns: asyncio.Semaphore | NewestFirst, timeout_s: float) -> AsyncIterator[None]:
    """The block has a turn. Raises OverloadedError if there is none in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await turns.acquire()
    except TimeoutError as error:
        raise OverloadedError("too many calls are sending their messages", retry_after_s=_RETRY_S) from error
    try:
        yield
    finally:
        turns.release()


class Slots(asyncio.Semaphore):
    """At most so many at a time; further ones are refused with OverloadedError.

    Args:
        most: how many.
        what: what they are, for the error.
    """

    def __init__(self, most: int, what: str) -> None:
        super().__init__(most)
        self._refusal = f"{most} {what} are open, and at most {most} may be"

    async def acquire(self) -> Literal[True]:
        if self.locked():
            raise OverloadedError(self._refusal, retry_after_s=_RETRY_S)
        return await super().acquire()
