"""A request that could not be answered in time is refused at once, and told when it could."""

import asyncio
import math
from collections.abc import Sequence

import pytest

from service.inference.errors import OverloadedError
from service.inference.estimates import Priority
from service.inference.model_queue import BatchingPolicy, ModelQueue
from service.inference.ports import RejectReason
from tests.support.clock import ManualClock, settle
from tests.support.models import served_model
from tests.support.observer import RecordingObserver

FAR = math.inf


class Model:
    """The queue of a model that takes so many seconds a batch, whatever its size."""

    def __init__(self, seconds: float = 1.0, **policy: int) -> None:
        self.clock = ManualClock()
        self.seconds = seconds
        self.observer = RecordingObserver()
        self.queue = ModelQueue[int, int](
            served_model(), self._run, policy=BatchingPolicy(**policy), clock=self.clock, observer=self.observer
        )

    async def _run(self, items: Sequence[int], deadline: float) -> Sequence[int]:
        done = asyncio.Event()
        self.clock.call_at(self.clock.time() + self.seconds, done.set)
        await done.wait()
        return items

    async def submit(self, items: int = 1) -> None:
        """Have it run so many items, and learn how long they take."""
        tasks = [asyncio.ensure_future(self.ask()) for _ in range(items)]
        while not all(task.done() for task in tasks):
            await settle()
            self.clock.advance(self.seconds)
            await settle()

    async def ask(self, deadline: float = FAR) -> None:
        with self.queue.place(deadline=deadline) as place:
            await place.run([0])


def refused(model: Model, deadline_s: float, priority: Priority = Priority.INTERACTIVE) -> OverloadedError | None:
    try:
        with model.queue.place(deadline=model.clock.time() + deadline_s, priority=priority):
            return None
    except OverloadedError as error:
        return error


async def test_a_request_whose_turn_would_come_too_late_is_told_when_it_would_not() -> None:
    model = Model(max_batch_size=1)
    await model.submit()  # one second an item
    with model.queue.place(items=9):
        assert refused(model, 13.0) is None
        error = refused(model, 10.0)
        assert error is not None
        assert error.retry_after_s == pytest.approx(10 * 1.3 - 10.0)
    assert [reason for _, reason in model.observer.rejections] == [RejectReason.DEADLINE]


async def test_a_model_without_others_waiting_is_tried_whatever_the_deadline() -> None:
    model = Model(max_batch_size=1)
    await model.submit()

    assert refused(model, 0.1) is None


async def test_one_slow_batch_at_the_start_is_soon_made_up_for() -> None:
    model = Model(seconds=10.0, max_batch_size=8)
    await model.submit()  # alone, and perhaps while another model was being loaded
    with model.queue.place(items=9):
        assert refused(model, 10.0) is not None
    model.seconds = 0.8
    await model.submit(1 + 3 * 8)
    with model.queue.place(items=9):
        assert refused(model, 10.0) is None


async def test_nothing_is_refused_for_its_deadline_before_anything_is_known() -> None:
    model = Model(max_batch_size=1)
    with model.queue.place(items=50):
        assert refused(model, 0.1) is None


async def test_work_that_nobody_waits_for_any_more_still_takes_its_time() -> None:
    model = Model(max_batch_size=4)
    await model.submit(1 + 40 * 4)  # a quarter of a second an item
    loop = asyncio.get_running_loop()
    late = [loop.create_task(model.ask(model.clock.time() + 0.5)) for _ in range(5)]
    await settle()
    model.clock.advance(0.5)  # the first runs, alone, for another half second; the others have left the queue
    await settle()
    assert all(task.done() and task.exception() is not None for task in late)
    assert model.queue.depth == 0

    assert refused(model, 0.2) is not None
    assert refused(model, 2.0) is None


async def test_bulk_requests_do_not_count_for_an_interactive_one_but_for_each_other() -> None:
    model = Model(max_batch_size=1)
    await model.submit()
    with model.queue.place(items=50, priority=Priority.BULK), model.queue.place(items=1):
        assert refused(model, 5.0) is None
        assert refused(model, 5.0, Priority.BULK) is not None


async def test_full_batches_count_more_than_small_ones() -> None:
    model = Model(max_batch_size=8)
    await model.submit(1 + 25 * 8)  # the first leaves alone, and takes as long as eight together
    with model.queue.place(items=79):
        assert refused(model, 14.0) is None  # 80 items are ten batches


async def test_under_twice_the_load_everything_accepted_is_in_time() -> None:
    model = Model(seconds=0.1, max_batch_size=4, max_queue=1000)  # 40 a second
    await model.submit(1 + 10 * 4)
    loop = asyncio.get_running_loop()
    in_time = late = 0

    async def one() -> None:
        nonlocal in_time, late
        deadline = model.clock.time() + 2.0
        await model.ask(deadline)
        in_time += model.clock.time() <= deadline
        late += model.clock.time() > deadline

    tasks = []
    for _ in range(400):  # 80 a second for five seconds
        tasks.append(loop.create_task(one()))
        await settle(3)
        model.clock.advance(1 / 80)
    while not all(task.done() for task in tasks):
        await settle()
        model.clock.advance(0.1)
    failures = [error for task in tasks if (error := task.exception()) is not None]

    assert late == 0
    assert all(isinstance(error, OverloadedError) for error in failures)
    assert in_time == pytest.approx(5 * 40 + 1.5 * 40, rel=0.1)  # what it can do in the time, and what then waits
    assert in_time + len(failures) == 400
