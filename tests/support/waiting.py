"""Waiting for something that another process does."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 20.0) -> None:
    """Return as soon as the condition holds. Raises TimeoutError if it does not in this many seconds."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if not isinstance(held, bool):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
