"""How much memory requests may hold, all together.

Two things are large: the files that come in, and their pixels while they are decoded. A `ByteBudget` bounds each. What
comes in is refused where there is no room, because its sender can try again; what is to be decoded waits for its turn,
because it has a deadline of its own. Everything runs on one event loop and takes no lock.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from service.inference.errors import DeadlineExceededError, OverloadedError, TooLargeError
from service.inference.ports import Clock

SMALL_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""An image that takes no more than this to be decoded does not wait for its turn."""

UPLOAD_BYTES: Final = 256 * 1024 * 1024
"""What request bodies and frames may hold by default, all together: a dozen of the largest, or hundreds of photos."""

DECODING_BYTES: Final = 512 * 1024 * 1024
"""What large images may take by default while they are decoded: one of 50 megapixels at a time."""

_RETRY_S: Final = 1.0  # a request holds its memory for about as long as its answer takes


class ByteBudget:
    """So many bytes, shared by everybody.

    Args:
        limit: bytes that may be held at a time.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a budget must have at least one byte, not {limit}")
        self._limit = limit
        self._held = 0
        self._most = 0

    @property
    def limit(self) -> int:
        """Bytes that may be held at a time."""
        return self._limit

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @property
    def most_held(self) -> int:
        """The most that was held at a time."""
        return self._most

    def hold(self, size: int = 0) -> "Hold":
        """Hold so many bytes, and more with `Hold.grow`; to be used in a `with`. Raises OverloadedError."""
        hold = Hold(self.change)
        hold.grow(size)
        return hold

    def check_room(self, size: int) -> None:
        """Raise OverloadedError if so many bytes could not be held now."""
        if self._held + size > self._limit:
            raise OverloadedError(
                "the service is receiving as much as it has memory for; send the request again",
                code="out_of_memory_budget",
                retry_after_s=_RETRY_S,
            )

    def change(self, by: int) -> None:
        """Hold more bytes, or fewer. Raises OverloadedError; `hold` is what sees to it that they are given back."""
        if by > 0:
            self.check_room(by)
        self._held += by
        self._most = max(self._most, self._held)


class Hold:
    """Some bytes of a budget, given back at the end of the `with` block or by `release`."""

    def __init__(self, change: Callable[[int], None]) -> None:
        self._change = change
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def grow(self, by: int) -> None:
        """Hold more. Raises OverloadedError if there is no room; what is held stays held."""
        self._change(by)
        self._size += by

    def resize(self, size: int) -> None:
        """Hold so many bytes from now on. Raises OverloadedError as `grow` does."""
        self.grow(size - self._size)

    def release(self) -> None:
        """Give everything back; more often than once does no harm."""
        size, self._size = self._size, 0
        self._change(-size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class DecodingRoom:
    """Turns for decoding: small images go ahead, large ones take turns within a budget, first come first served.

    At least one thread is always left to small images, where there is more than one, so that somebody's poster does
    not keep everybody's snapshots waiting.

    Args:
        limit: bytes that large images may take while they are decoded, all together.
        clock: time and timers; deadlines are in its time.
        threads: that decode.
        small: bytes up to which an image is small. Of those no more are decoded at a time than there are threads.
    """

    def __init__(self, limit: int, clock: Clock, *, threads: int = 1, small: int = SMALL_IMAGE_BYTES) -> None:
        self._budget = ByteBudget(limit)
        self._clock = clock
        self._lanes = max(1, threads - 1)
        self._small = small
        self._running = 0
        self._waiting: deque[tuple[int, asyncio.Future[Hold]]] = deque()

    @property
    def held(self) -> int:
        """The bytes that large images take now."""
        return self._budget.held

    @property
    def most_held(self) -> int:
        """The most bytes that large images took at a time."""
        return self._budget.most_held

    @asynccontextmanager
    async def turn(self, size: int, *, deadline: float, keep: bool = False) -> AsyncIterator[Hold]:
        """Wait for the turn of an image; it lasts as long as the block.

        The block must not end before the decoding has, even if it is cancelled: threads cannot be stopped.

        Args:
            size: bytes that decoding takes, from `OpenedImage.bytes_needed`.
            deadline: the clock's time after which there is no use in it.
            keep: if the block ends well, the bytes stay held until the hold is released.

        Raises:
            TooLargeError: it could never be decoded.
            DeadlineExceededError: its turn did not come in time.
        """
        if size <= self._small and not keep:
            yield Hold(lambda _by: None)
            return
        if size > self._budget.limit:
            raise TooLargeError(
                f"decoding this image would take {size >> 20} MiB of memory, and at most {self._budget.limit >> 20} are"
                " allowed; send it smaller",
                code="too_many_pixels",
            )
        hold = await self._granted(size, deadline)
        try:
            yield hold
        except BaseException:
            hold.release()
            raise
        finally:
            self._running -= 1
            if not keep:
                hold.release()
            self._grant()

    async def _granted(self, size: int, deadline: float) -> Hold:
        granted: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        self._grant()
        expiry = None if math.isinf(deadline) else self._clock.call_at(deadline, lambda: _expire(granted))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._running -= 1
                granted.result().release()
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            self._grant()

    def _grant(self) -> None:
        """Give the next ones their turns."""
        while self._waiting and self._running < self._lanes:
            size, granted = self._waiting[0]
            if not granted.done():
                if self._budget.held + size > self._budget.limit:
                    return
                hold = Hold(self._change)
                hold.grow(size)
                self._running += 1
                granted.set_result(hold)
            self._waiting.popleft()

    def _change(self, by: int) -> None:
        self._budget.change(by)
        if by < 0:
            self._grant()


def _expire(granted: "asyncio.Future[Hold]") -> None:
    if not granted.done():
        granted.set_exception(DeadlineExceededError("the request's time was up before its image could be decoded"))
