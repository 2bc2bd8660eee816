"""Turns: the newest task is next, and no turn is lost with a task that leaves."""

import asyncio

import pytest

from service.inference.errors import OverloadedError
from service.rpc.turns import NewestFirst, turn


async def test_the_newest_waiting_task_has_the_next_turn() -> None:
    turns, order = NewestFirst(1), list[str]()

    async def wait(name: str) -> None:
        async with turn(turns, 10):
            order.append(name)

    async with asyncio.TaskGroup() as group, turn(turns, 10):
        for name in ("first", "second", "third"):
            group.create_task(wait(name))
        await asyncio.sleep(0)

    assert order == ["third", "second", "first"]


async def test_tasks_that_leave_while_they_wait_or_as_their_turn_comes_keep_no_turn() -> None:
    turns = NewestFirst(1)
    async with turn(turns, 10):
        older, newer = (asyncio.create_task(turns.acquire()) for _ in range(2))
        await asyncio.sleep(0)
    newer.cancel()  # its turn has come, which it does not know yet
    older.cancel()
    await asyncio.gather(older, newer, return_exceptions=True)

    assert older.cancelled()
    assert newer.cancelled()
    assert not turns.locked()


async def test_a_turn_that_does_not_come_in_time_is_an_error_that_says_when_to_retry() -> None:
    turns = NewestFirst(1)
    async with turn(turns, 10):
        with pytest.raises(OverloadedError) as caught:
            async with turn(turns, 0.01):
                pass

    assert caught.value.retry_after_s == 1.0
    assert not turns.locked()
