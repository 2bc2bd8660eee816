import asyncio

import pytest

from service.inference.errors import DeadlineExceededError, OverloadedError, TooLargeError
from service.inference.memory import ByteBudget, DecodingRoom, Hold
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


class Decodings:
    """Images that hold their turns until they are told to end."""

    def __init__(self, room: DecodingRoom) -> None:
        self._room = room
        self.running: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.kept: list[Hold] = []

    def begin(self, size: int, *, deadline: float = 1e9, keep: bool = False) -> "asyncio.Task[None]":
        self.tasks.append(asyncio.ensure_future(self._decode(size, deadline, keep)))
        return self.tasks[-1]

    async def _decode(self, size: int, deadline: float, keep: bool) -> None:
        async with self._room.turn(size, deadline=deadline, keep=keep) as hold:
            self.running.append(size)
            self._done = asyncio.Event()
            await self._done.wait()
            self.running.remove(size)
        self.kept.append(hold)

    async def end_last(self) -> None:
        self._done.set()
        await settle()


async def test_small_images_go_ahead_of_large_ones() -> None:
    decodings = Decodings(DecodingRoom(100, ManualClock(), threads=2, small=10))
    for size in (80, 90, 10, 9):
        decodings.begin(size)
    await settle()
    assert decodings.running == [80, 10, 9]
    for task in decodings.tasks:
        task.cancel()


async def test_large_images_take_turns_within_the_budget() -> None:
    room = DecodingRoom(100, ManualClock(), threads=8, small=10)
    decodings = Decodings(room)
    for size in (60, 40, 30):
        decodings.begin(size)
    await settle()
    assert decodings.running == [60, 40]
    await decodings.end_last()
    assert decodings.running == [60, 30]
    assert room.most_held == 100
    for task in decodings.tasks:
        task.cancel()


async def test_one_thread_is_left_to_small_images() -> None:
    decodings = Decodings(DecodingRoom(1000, ManualClock(), threads=3, small=10))
    for _ in range(4):
        decodings.begin(20)
    await settle()
    assert decodings.running == [20, 20]
    for task in decodings.tasks:
        task.cancel()


async def test_image_whose_turn_does_not_come_in_time_is_given_up() -> None:
    clock = ManualClock()
    decodings = Decodings(DecodingRoom(100, clock, threads=2, small=10))
    decodings.begin(80)
    late, later = decodings.begin(80, deadline=clock.time() + 1), decodings.begin(70)
    await settle()
    clock.advance(1)
    await settle()
    assert isinstance(late.exception(), DeadlineExceededError)
    await decodings.end_last()
    assert decodings.running == [70]
    later.cancel()


async def test_image_that_is_not_wanted_any_more_leaves_its_turn_to_the_next() -> None:
    decodings = Decodings(DecodingRoom(100, ManualClock(), threads=2, small=10))
    decodings.begin(80)
    gone = decodings.begin(90)
    decodings.begin(70)
    await settle()
    gone.cancel()
    await decodings.end_last()
    assert decodings.running == [70]
    decodings.tasks[0].cancel()
    decodings.tasks[2].cancel()


async def test_turn_granted_to_somebody_who_just_left_is_not_lost() -> None:
    decodings = Decodings(DecodingRoom(100, ManualClock(), threads=2, small=10))
    decodings.begin(80)
    gone = decodings.begin(90)
    decodings.begin(70)
    await settle()
    ending = asyncio.ensure_future(decodings.end_last())
    while decodings.running:  # noqa: ASYNC110 -- the very moment at which its turn is over counts
        await asyncio.sleep(0)
    gone.cancel()  # it has its turn, and has not noticed yet
    await ending
    assert decodings.running == [70]
    decodings.tasks[2].cancel()


async def test_image_that_could_never_be_decoded_is_refused() -> None:
    decodings = Decodings(DecodingRoom(100, ManualClock(), threads=2, small=10))
    refused = decodings.begin(101)
    await settle()
    assert isinstance(refused.exception(), TooLargeError)


async def test_pixels_that_are_kept_stay_accounted_for() -> None:
    decodings = Decodings(DecodingRoom(100, ManualClock(), threads=2, small=10))
    decodings.begin(80, keep=True)
    decodings.begin(50)
    await settle()
    await decodings.end_last()
    assert decodings.running == []
    decodings.kept[0].release()
    await settle()
    assert decodings.running == [50]
    decodings.tasks[1].cancel()
