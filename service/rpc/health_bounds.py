"""What health checks may hold, who need no key: turns, time and numbers of their own, so that they take nobody else's.

A question's bytes come right behind its head. So whoever sends none is waited for only briefly as soon as somebody else
waits, and of those who wait the newest is next: silent calls, however many, do not keep a probe from its answer. gRPC
has received a message as a whole before its size is known; what these may hold is the turns times the largest message.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from service.inference.errors import InvalidInputError, OverloadedError, TooLargeError, TooSlowError
from service.rpc.messages import only_message

HEALTH: Final = "/grpc.health.v1.Health/"

_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """How much of the server health checks may take.

    Attributes:
        turns: messages that are received at a time.
        waiting: calls that wait for their turn; who has waited longest is refused for a newer one.
        checks: questions being answered at a time.
        watches: open at a time.
        message_bytes: of a question, which holds a name.
        timeout_s: for a turn, and for the message then.
        hurried_s: for the message, while others wait.
    """

    turns: int = 4
    waiting: int = 64
    checks: int = 64
    watches: int = 64
    message_bytes: int = 512
    timeout_s: float = 1.0
    hurried_s: float = 0.05


class HealthBounds:
    """Receives the messages of health checks within `HealthLimits`."""

    def __init__(self, limits: HealthLimits) -> None:
        self._limits = limits
        self._receiving: set[asyncio.Timeout] = set()
        self._free = limits.turns
        self._waiting: list[asyncio.Future[None]] = []
        self._checks = 0
        self._watches = 0

    async def received(self, messages: AsyncIterator[Any]) -> Any:
        """The only message of a call. Raises OverloadedError, TooSlowError, TooLargeError or InvalidInputError."""
        async with self._turn():
            message = await self._in_time(messages)
        if message is None:
            raise InvalidInputError("the call holds no message", code="empty_body")
        size = message.ByteSize() if hasattr(message, "ByteSize") else 0
        if size > self._limits.message_bytes:
            most = self._limits.message_bytes
            raise TooLargeError(f"a health check's message has {size} bytes, and at most {most} are allowed")
        return message

    @contextmanager
    def answering(self, *, watch: bool) -> Iterator[None]:
        """The block answers a question, or is a watch. Raises OverloadedError if there are too many."""
        there, most = (self._watches, self._limits.watches) if watch else (self._checks, self._limits.checks)
        if there >= most:
            raise OverloadedError(
                f"{there} health {'watches are open' if watch else 'checks are being answered'}, and at most {most}"
                " may be",
                retry_after_s=_RETRY_S,
            )
        self._count(watch, 1)
        try:
            yield
        finally:
            self._count(watch, -1)

    def _count(self, watch: bool, by: int) -> None:
        if watch:
            self._watches += by
        else:
            self._checks += by

    async def _in_time(self, messages: AsyncIterator[Any]) -> Any:
        allowed_s = self._limits.hurried_s if self._waiting else self._limits.timeout_s
        timeout = asyncio.timeout(allowed_s)
        try:
            async with timeout:
                self._receiving.add(timeout)
                return await only_message(messages)
        except TimeoutError as error:
            raise TooSlowError(
                f"the message was not complete within {self._limits.timeout_s:g} seconds,"
                f" or {self._limits.hurried_s:g} while others wait",
                code="body_too_slow",
            ) from error
        finally:
            self._receiving.discard(timeout)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        await self._take()
        try:
            yield
        finally:
            self._give()

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._hurry()
        if len(self._waiting) > self._limits.waiting:
            oldest = self._waiting.pop(0)
            if not oldest.done():  # else its caller has just gone, and its task has not noticed yet
                oldest.set_exception(_too_many())
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await mine
        except BaseException as error:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif mine.done() and not mine.cancelled() and mine.exception() is None:
                self._give()  # it came in the very moment that nobody wanted it any more
            if isinstance(error, TimeoutError):
                raise _too_many() from error
            raise

    def _give(self) -> None:
        while self._waiting:
            newest = self._waiting.pop()
            if not newest.done():
                newest.set_result(None)
                return
        self._free += 1

    def _hurry(self) -> None:
        soon = asyncio.get_running_loop().time() + self._limits.hurried_s
        for timeout in self._receiving:
            when = timeout.when()
            if not timeout.expired() and when is not None and when > soon:
                timeout.reschedule(soon)


def _too_many() -> OverloadedError:
    return OverloadedError("too many health checks are sending their messages", retry_after_s=_RETRY_S)
