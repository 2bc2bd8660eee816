import asyncio
import math

import pytest

from service.inference.byte_budget import ByteBudget
from service.inference.errors import DeadlineExceededError, OverloadedError
from tests.support.clock import ManualClock, settle


def test_what_is_held_never_exceeds_the_budget() -> None:
    budget = ByteBudget(100)
    with budget.hold(60) as first:
        with pytest.raises(OverloadedError) as refused:
            budget.hold(41)
        assert refused.value.retry_after_s is not None
        first.grow(40)
        with pytest.raises(OverloadedError):
            first.grow(1)
        assert (budget.held, first.size) == (100, 100)
    assert (budget.held, budget.most_held) == (0, 100)


def test_giving_back_twice_gives_back_once() -> None:
    budget = ByteBudget(10)
    with budget.hold(5) as hold, budget.hold(5):
        hold.release()
        hold.release()
        assert budget.held == 5
    assert budget.held == 0


class Waiters:
    """Requests that wait for room in a budget of 100 bytes, and hold it until they are told to end."""

    def __init__(self) -> None:
        self.budget, self.clock = ByteBudget(100), ManualClock()
        self.holding: list[int] = []

    def begin(self, size: int, *, within: float = math.inf) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self._hold(size, self.clock.time() + within))

    async def _hold(self, size: int, deadline: float) -> None:
        async with self.budget.wait_for(size, deadline=deadline, clock=self.clock):
            self.holding.append(size)
            try:
                await asyncio.Event().wait()  # until it is cancelled
            finally:
                self.holding.remove(size)


async def end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await settle()


async def test_waiters_get_room_first_come_first_served() -> None:
    waiters = Waiters()
    first, second, third, fourth = (waiters.begin(size) for size in (60, 40, 30, 1))
    await settle()
    assert waiters.holding == [60, 40]
    await end(second)
    assert waiters.holding == [60, 30, 1]
    assert waiters.budget.most_held == 100
    await end(first, third, fourth)
    assert waiters.budget.held == 0


async def test_waiter_without_room_in_time_is_given_up() -> None:
    waiters = Waiters()
    first, late, third = waiters.begin(80), waiters.begin(90, within=1), waiters.begin(20)
    await settle()
    assert waiters.holding == [80]
    waiters.clock.advance(1)
    await settle()
    assert isinstance(late.exception(), DeadlineExceededError)
    assert waiters.holding == [80, 20]
    await end(first, third)


async def test_waiter_that_leaves_makes_room_for_the_next() -> None:
    waiters = Waiters()
    first, gone, third = waiters.begin(80), waiters.begin(90), waiters.begin(20)
    await settle()
    await end(gone)
    assert waiters.holding == [80, 20]
    await end(first, third)


async def test_room_given_to_a_waiter_that_is_just_leaving_is_not_lost() -> None:
    waiters = Waiters()
    first, gone = waiters.begin(80), waiters.begin(90)
    await settle()
    first.cancel()
    while waiters.budget.held != 90:  # noqa: ASYNC110 -- it has its room from here on, and does not know yet
        await asyncio.sleep(0)
    await end(gone)
    assert waiters.budget.held == 0
