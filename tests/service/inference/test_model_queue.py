"""What the module docstring of `service.inference.model_queue` promises, promise by promise."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.inference.estimates import Priority
from service.inference.model_queue import Answer, BatchingPolicy, ModelQueue
from service.inference.ports import DropReason, RejectReason, ReleaseReason
from tests.support.clock import ManualClock, settle
from tests.support.models import served_model
from tests.support.observer import RecordingObserver

FAR = math.inf


@dataclass
class Runner:
    """Runs batches; each stays open until `finish` or `fail` ends it. A result is its item, doubled."""

    batches: list[list[int]] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    open: "list[asyncio.Future[Sequence[int]]]" = field(default_factory=list)

    async def __call__(self, items: Sequence[int], deadline: float) -> Sequence[int]:
        self.batches.append(list(items))
        self.deadlines.append(deadline)
        self.open.append(asyncio.get_running_loop().create_future())
        return await self.open[-1]

    async def finish(self, batch: int, results: Sequence[int] | None = None) -> None:
        self.open[batch].set_result([2 * item for item in self.batches[batch]] if results is None else results)
        await settle()

    async def fail(self, batch: int, error: Exception) -> None:
        self.open[batch].set_exception(error)
        await settle()


class Bench:
    """A queue with everything around it under the test's control."""

    def __init__(self, **policy: Any) -> None:
        self.runner, self.clock, self.observer = Runner(), ManualClock(), RecordingObserver()
        self.queue = ModelQueue[int, int](
            served_model(), self.runner, policy=BatchingPolicy(**policy), clock=self.clock, observer=self.observer
        )
        self._tasks: list[asyncio.Task[Answer[int]]] = []

    async def submit(
        self, *items: int, within: float = FAR, priority: Priority = Priority.INTERACTIVE
    ) -> "asyncio.Task[Answer[int]]":
        """Submit a request's items and let everything settle; the task is its caller."""

        async def call() -> Answer[int]:
            with self.queue.place(items=len(items), deadline=self.clock.time() + within, priority=priority) as place:
                return await place.run(items)

        self._tasks.append(asyncio.get_running_loop().create_task(call()))
        await settle()
        return self._tasks[-1]

    @property
    def released(self) -> list[tuple[int, ReleaseReason]]:
        return [(size, reason) for _, size, reason in self.observer.batches]

    @property
    def drops(self) -> list[DropReason]:
        return [reason for _, reason in self.observer.drops]


@contextmanager
def places(bench: Bench, number: int) -> Iterator[None]:
    """So many places are taken."""
    with ExitStack() as taken:
        for _ in range(number):
            taken.enter_context(bench.queue.place())
        yield


async def test_an_idle_backend_gets_a_single_request_at_once() -> None:
    bench = Bench(max_wait_s=10)
    await bench.submit(1)
    assert bench.runner.batches == [[1]]
    assert bench.released == [(1, ReleaseReason.IDLE)]


async def test_what_arrives_while_a_batch_runs_leaves_together_when_it_ends() -> None:
    bench = Bench()
    for item in (1, 2, 3):
        await bench.submit(item)
    await bench.runner.finish(0)
    assert bench.runner.batches == [[1], [2, 3]]


async def test_a_full_batch_leaves_though_another_runs() -> None:
    bench = Bench(max_batch_size=2, max_wait_s=10, max_running=2)
    for item in (1, 2, 3):
        await bench.submit(item)
    assert bench.runner.batches == [[1], [2, 3]]
    assert bench.released[1] == (2, ReleaseReason.FULL)


async def test_the_oldest_request_waits_no_longer_than_max_wait_for_company() -> None:
    bench = Bench(max_wait_s=0.005, max_running=2)
    await bench.submit(1)
    await bench.submit(2)
    bench.clock.advance(0.0049)
    await settle()
    assert bench.runner.batches == [[1]]
    bench.clock.advance(0.0002)
    await settle()
    assert bench.runner.batches == [[1], [2]]
    assert bench.released[1] == (1, ReleaseReason.WAITED)


async def test_with_an_infinite_wait_a_batch_leaves_full_or_once_none_runs() -> None:
    bench = Bench(max_batch_size=2, max_wait_s=math.inf, max_running=2)
    for item in (1, 2):
        await bench.submit(item)
    bench.clock.advance(1000)
    await settle()
    assert bench.runner.batches == [[1]]
    await bench.runner.finish(0)
    assert bench.runner.batches == [[1], [2]]
    for item in (3, 4):
        await bench.submit(item)
    assert bench.runner.batches == [[1], [2], [3, 4]]
    assert [reason for _, reason in bench.released] == [
        ReleaseReason.IDLE,
        ReleaseReason.IDLE,
        ReleaseReason.FULL,
    ]


async def test_no_more_batches_run_than_allowed() -> None:
    bench = Bench(max_batch_size=1, max_running=2)
    for item in range(4):
        await bench.submit(item)
    bench.clock.advance(60)
    await settle()
    assert bench.runner.batches == [[0], [1]]
    await bench.runner.finish(1)
    assert bench.runner.batches == [[0], [1], [2]]


async def test_each_caller_gets_its_own_result_and_where_its_time_went() -> None:
    bench = Bench()
    callers = [await bench.submit(item) for item in (5, 6, 7)]
    bench.clock.advance(0.25)
    await bench.runner.finish(0)
    bench.clock.advance(0.5)
    await bench.runner.finish(1)
    answers = [await caller for caller in callers]
    assert [answer.results for answer in answers] == [[10], [12], [14]]
    assert [answer.queued_s for answer in answers] == [0, 0.25, 0.25]
    assert [answer.ran_s for answer in answers] == [0.25, 0.5, 0.5]


async def test_interactive_requests_leave_before_bulk_ones() -> None:
    bench = Bench(max_batch_size=2)
    await bench.submit(0)
    for item, priority in ((1, Priority.BULK), (2, Priority.BULK), (3, Priority.INTERACTIVE)):
        await bench.submit(item, priority=priority)
    await bench.runner.finish(0)
    await bench.runner.finish(1)
    assert bench.runner.batches == [[0], [3, 1], [2]]


async def test_a_batch_is_told_its_latest_deadline() -> None:
    bench = Bench()
    await bench.submit(0)
    await bench.submit(1, within=3)
    await bench.submit(2, within=5)
    await bench.runner.finish(0)
    assert bench.runner.deadlines[1] == bench.clock.time() + 5


async def test_a_request_that_expires_in_the_queue_never_runs() -> None:
    bench = Bench()
    await bench.submit(0)
    late = await bench.submit(1, within=0.1)
    bench.clock.advance(0.2)
    with pytest.raises(DeadlineExceededError, match="while it waited"):
        await late
    await bench.runner.finish(0)
    assert bench.runner.batches == [[0]]
    assert bench.drops == [DropReason.EXPIRED]


async def test_a_request_that_expires_while_it_runs_is_answered_at_once() -> None:
    bench = Bench()
    late = await bench.submit(0, within=0.1)
    bench.clock.advance(0.2)
    with pytest.raises(DeadlineExceededError, match="while the model ran"):
        await late
    await bench.runner.finish(0)
    assert bench.drops == []


async def test_a_request_whose_time_is_already_up_is_not_queued() -> None:
    bench = Bench()
    with pytest.raises(DeadlineExceededError):
        await (await bench.submit(0, within=0))
    assert bench.runner.batches == []
    assert bench.drops == [DropReason.EXPIRED]


async def test_a_caller_that_goes_away_leaves_the_queue() -> None:
    bench = Bench()
    await bench.submit(0)
    gone = await bench.submit(1)
    stays = await bench.submit(2)
    gone.cancel()
    await settle()
    await bench.runner.finish(0)
    await bench.runner.finish(1)
    assert bench.runner.batches == [[0], [2]]
    assert bench.drops == [DropReason.CANCELLED]
    assert (await stays).results == [4]


async def test_a_caller_that_goes_away_while_its_batch_runs_harms_nobody() -> None:
    bench = Bench()
    await bench.submit(0)
    gone, stays = await bench.submit(1), await bench.submit(2)
    await bench.runner.finish(0)
    gone.cancel()
    await settle()
    await bench.runner.finish(1)
    assert (await stays).results == [4]


async def test_the_items_of_one_request_run_together_and_answer_in_order() -> None:
    bench = Bench(max_batch_size=2)
    caller = await bench.submit(5, 6, 7)
    assert bench.runner.batches == [[5, 6]]
    await bench.runner.finish(0)
    await bench.runner.finish(1)
    assert (await caller).results == [10, 12, 14]


async def test_when_one_item_of_a_request_fails_those_still_waiting_are_given_up() -> None:
    bench = Bench(max_batch_size=1)
    caller = await bench.submit(5, 6, 7)
    await bench.runner.fail(0, UnavailableError("down"))
    with pytest.raises(UnavailableError):
        await caller
    await bench.runner.finish(1)  # it had left before the caller learnt of the failure
    assert bench.runner.batches == [[5], [6]]
    assert bench.drops == [DropReason.CANCELLED]


async def test_a_failed_batch_fails_every_caller_in_it_and_no_other() -> None:
    bench = Bench()
    first = await bench.submit(0)
    second, third = await bench.submit(1), await bench.submit(2)
    await bench.runner.finish(0)
    fourth = await bench.submit(3)
    await bench.runner.fail(1, UnavailableError("the model server is down"))
    await bench.runner.finish(2)
    assert (await first).results == [0]
    for caller in (second, third):
        with pytest.raises(UnavailableError, match="model server is down"):
            await caller
    assert (await fourth).results == [6]


async def test_an_unforeseen_failure_is_internal_and_keeps_its_cause() -> None:
    bench = Bench()
    caller = await bench.submit(0)
    await bench.runner.fail(0, ZeroDivisionError("secret"))
    with pytest.raises(InternalError) as caught:
        await caller
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("results", [[], [1, 2]])
async def test_a_batch_of_the_wrong_length_is_an_error_and_not_a_mix_up(results: list[int]) -> None:
    bench = Bench()
    caller = await bench.submit(0)
    await bench.runner.finish(0, results)
    with pytest.raises(InternalError, match=f"batch of 1 came back as {len(results)}"):
        await caller


async def test_a_full_queue_answers_at_once_and_says_when_to_come_back() -> None:
    bench = Bench(max_queue=2)
    caller = await bench.submit(0)
    bench.clock.advance(4.0)
    await bench.runner.finish(0)
    await caller
    with places(bench, 2):
        with pytest.raises(OverloadedError) as caught, bench.queue.place():
            pass
        assert caught.value.retry_after_s == pytest.approx(4.0)  # one place has to become free, at 4 s an item
        assert bench.queue.depth == 2
    assert bench.queue.depth == 0
    assert [reason for _, reason in bench.observer.rejections] == [RejectReason.QUEUE_FULL]


async def test_the_hands_of_one_picture_share_a_place() -> None:
    bench = Bench(max_queue=1)
    caller = await bench.submit(5, 6, 7)
    assert bench.queue.depth == 1
    await bench.runner.finish(0)
    assert (await caller).results == [10, 12, 14]


async def test_the_retry_after_grows_with_the_items_and_follows_the_service_time() -> None:
    bench = Bench(max_queue=10, max_batch_size=1)
    for seconds in (1.0, 3.0):
        caller = await bench.submit(0)
        bench.clock.advance(seconds)
        await bench.runner.finish(-1)
        await caller
    waits = []
    with places(bench, 10):
        for items in (1, 5):
            with pytest.raises(OverloadedError) as caught, bench.queue.place(items=items):
                pass
            waits.append(caught.value.retry_after_s)
    assert waits == pytest.approx([2.0, 10.0])  # an item takes 2 s in the mean


async def test_of_many_items_the_last_ones_count_most() -> None:
    bench = Bench(max_queue=10, max_batch_size=1)
    for seconds in (*[1.0] * 20, 3.0):
        caller = await bench.submit(0)
        bench.clock.advance(seconds)
        await bench.runner.finish(-1)
        await caller
    with places(bench, 10), pytest.raises(OverloadedError) as caught, bench.queue.place():
        pass
    assert caught.value.retry_after_s == pytest.approx(1.4)  # an item takes 1 s + 0.2 x (3 s - 1 s)


async def test_a_place_is_free_again_whatever_happened_to_its_request() -> None:
    bench = Bench(max_queue=1)
    with pytest.raises(RuntimeError), bench.queue.place():
        raise RuntimeError
    with bench.queue.place():
        assert [depth for _, depth in bench.observer.depths] == [1, 0, 1]


async def test_a_batch_tells_the_observer_of_each_request_in_it_once() -> None:
    bench = Bench()
    await bench.submit(1)
    await bench.submit(2, 3)
    await bench.submit(4)
    await bench.runner.finish(0)
    await bench.runner.finish(1)
    assert bench.observer.requests_in_batches == [1, 2]


async def test_closing_waits_for_what_was_accepted_and_refuses_what_comes_later() -> None:
    bench = Bench()
    callers = [await bench.submit(item) for item in (1, 2)]
    closing = asyncio.get_running_loop().create_task(bench.queue.close())
    await settle()
    assert not closing.done()
    with pytest.raises(UnavailableError), bench.queue.place():
        pass
    await bench.runner.finish(0)
    assert not closing.done()
    await bench.runner.finish(1)
    assert closing.done()
    assert [(await caller).results for caller in callers] == [[2], [4]]


async def test_a_request_that_was_accepted_before_closing_is_still_answered() -> None:
    bench = Bench()
    with bench.queue.place() as place:
        closing = asyncio.get_running_loop().create_task(bench.queue.close())
        await settle()
        assert not closing.done()
        caller = asyncio.get_running_loop().create_task(place.run([4]))
        await settle()
        await bench.runner.finish(0)
        assert (await caller).results == [8]
    await settle()
    assert closing.done()


@pytest.mark.parametrize(
    "wrong", [{"max_batch_size": 0}, {"max_queue": 0}, {"max_running": 0}, {"max_wait_s": -1}, {"max_wait_s": math.nan}]
)
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchingPolicy(**wrong)


events = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([0.02, 0.2, FAR]), st.sampled_from(Priority)),
        st.tuples(st.just("cancel"), st.integers(0, 60), st.none()),
        st.tuples(st.just("finish"), st.integers(0, 5), st.none()),
        st.tuples(st.just("fail"), st.integers(0, 5), st.none()),
        st.tuples(st.just("advance"), st.sampled_from([0.001, 0.01, 0.1]), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(events, st.integers(1, 5), st.integers(1, 3))
def test_under_any_course_of_events_every_caller_gets_its_own_answer(
    course: list[tuple[str, Any, Any]], max_batch_size: int, max_running: int
) -> None:
    asyncio.run(_follow(course, max_batch_size, max_running))


async def _follow(course: list[tuple[str, Any, Any]], max_batch_size: int, max_running: int) -> None:
    bench = Bench(max_batch_size=max_batch_size, max_wait_s=0.01, max_running=max_running)
    callers: list[asyncio.Task[Answer[int]]] = []
    for event, value, priority in course:
        unfinished = [index for index, future in enumerate(bench.runner.open) if not future.done()]
        if event == "submit":
            callers.append(await bench.submit(len(callers), within=value, priority=priority))
        elif event == "cancel" and callers:
            callers[value % len(callers)].cancel()
        elif event == "advance":
            bench.clock.advance(value)
        elif event == "finish" and unfinished:
            await bench.runner.finish(unfinished[value % len(unfinished)])
        elif event == "fail" and unfinished:
            await bench.runner.fail(unfinished[value % len(unfinished)], UnavailableError("down"))
        await settle()
        assert sum(not future.done() for future in bench.runner.open) <= max_running
    while unfinished := [index for index, future in enumerate(bench.runner.open) if not future.done()]:
        await bench.runner.finish(unfinished[0])

    for item, caller in enumerate(callers):
        assert caller.done()
        if caller.cancelled():
            continue
        error = caller.exception()
        assert caller.result().results == [2 * item] if error is None else isinstance(error, ServiceError)
    assert all(len(batch) <= max_batch_size for batch in bench.runner.batches)
    ran = [item for batch in bench.runner.batches for item in batch]
    assert len(ran) == len(set(ran))
