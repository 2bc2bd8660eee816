"""A clock that tests move by hand."""

import asyncio
from collections.abc import Callable


class ManualClock:
    """Implements `service.inference.ports.Clock`: time stands still until `advance` moves it.

    Timers that are due run inside `advance`, in the order of their times (and of their making, where those are equal),
    each seeing `time()` as its own moment. What they set in motion on the event loop runs when the loop next gets a
    turn: see `settle`.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[tuple[asyncio.TimerHandle, Callable[[], object]]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, (), asyncio.get_running_loop())
        self._timers.append((handle, callback))
        return handle

    def advance(self, seconds: float) -> None:
        """Move time on, running every timer that falls due on the way."""
        end = self._now + seconds
        while (due := self._next_due(end)) is not None:
            self._timers.remove(due)
            handle, callback = due
            self._now = max(self._now, handle.when())
            callback()
        self._now = end

    def _next_due(self, end: float) -> tuple[asyncio.TimerHandle, Callable[[], object]] | None:
        self._timers = [timer for timer in self._timers if not timer[0].cancelled()]
        due = [timer for timer in self._timers if timer[0].when() <= end]
        return min(due, key=lambda timer: timer[0].when(), default=None)


async def settle(turns: int = 20) -> None:
    """Give the event loop turns, so that everything that can run without waiting has run."""
    for _ in range(turns):
        await asyncio.sleep(0)
