"""How much memory requests may hold, all together.

Two things are large: the files that come in, and their pixels once decoded. A `ByteBudget` bounds each. An upload is
refused where there is no room (`hold`), because its sender can try again; decoding waits for room (`wait_for`), because
the request has a deadline. Everything runs on one event loop and takes no lock.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from service.inference.errors import DeadlineExceededError, OverloadedError
from service.inference.ports import Clock

UPLOAD_BYTES: Final = 256 * 1024 * 1024
"""What request bodies and frames may hold by default, all together: a dozen of the largest, or hundreds of photos."""

_RETRY_S: Final = 1.0  # a request holds its memory for about as long as its answer takes


class ByteBudget:
    """A number of bytes that requests share.

    Args:
        limit: bytes that may be held at a time.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a budget must have at least one byte, not {limit}")
        self.limit: Final = limit
        self.held = 0
        self.most_held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def hold(self, size: int = 0) -> "Hold":
        """Hold so many bytes in a `with`, and more with `Hold.grow`. Raises OverloadedError if there is no room."""
        hold = Hold(self)
        hold.grow(size)
        return hold

    def check_room(self, size: int) -> None:
        """Raise OverloadedError if so many bytes could not be held now."""
        if self.held + size > self.limit:
            raise OverloadedError(
                "the service is receiving as much as it has memory for; send the request again",
                code="out_of_memory_budget",
                retry_after_s=_RETRY_S,
            )

    @asynccontextmanager
    async def wait_for(self, size: int, *, deadline: float, clock: Clock) -> AsyncIterator[None]:
        """Wait for room, first come first served, and hold it for as long as the block runs.

        Args:
            size: bytes, at most the limit.
            deadline: the clock's time after which there is no use in waiting.
            clock: time and timers.

        Raises:
            DeadlineExceededError: there was no room in time.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit_waiting()
        expiry = clock.call_at(deadline, lambda: _expire(turn))
        try:
            await turn
            yield
        finally:
            expiry.cancel()
            if not turn.cancelled() and turn.exception() is None:
                self.change(-size)
            self._admit_waiting()

    def change(self, by: int) -> None:
        """Hold more bytes, or fewer; callers that hold use `hold` or `wait_for`. Raises OverloadedError."""
        if by > 0:
            self.check_room(by)
        self.held += by
        self.most_held = max(self.most_held, self.held)

    def _admit_waiting(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if self.held + size > self.limit:
                    return
                self.change(size)
                turn.set_result(None)
            self._waiting.popleft()


class Hold:
    """Some bytes of a budget, given back at the end of the `with` block or by `release`."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def grow(self, by: int) -> None:
        """Hold more. Raises OverloadedError if there is no room; what is held stays held."""
        self._budget.change(by)
        self.size += by

    def resize(self, size: int) -> None:
        """Hold so many bytes from now on. Raises OverloadedError as `grow` does."""
        self.grow(size - self.size)

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        self.resize(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _expire(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(DeadlineExceededError("the request's time was up before its image could be decoded"))
