"""Turns of health checks come back, whatever becomes of those who wait for them."""

import asyncio
from collections.abc import AsyncIterator

from service.rpc.health_bounds import HealthBounds, HealthLimits


async def silence() -> AsyncIterator[bytes]:
    """A call that never sends its message."""
    await asyncio.Event().wait()
    yield b""


async def question() -> AsyncIterator[bytes]:
    yield b"a name"


async def test_a_newcomer_and_a_caller_who_leaves_in_one_moment_keep_no_turn() -> None:
    bounds = HealthBounds(HealthLimits(turns=1, waiting=2, timeout_s=60.0, hurried_s=60.0))
    receiving, oldest, second = (asyncio.create_task(bounds.received(silence())) for _ in range(3))
    await asyncio.sleep(0)  # one has the turn, two wait

    newcomer = asyncio.create_task(bounds.received(silence()))
    oldest.cancel()  # is known to its task only after the newcomer has looked who waits longest
    await asyncio.sleep(0)
    for each in (receiving, second, newcomer):
        each.cancel()
    ended = await asyncio.gather(receiving, oldest, second, newcomer, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    async with asyncio.timeout(10):
        assert await bounds.received(question()) == b"a name"
