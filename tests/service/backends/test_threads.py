"""The threads that models run in, real ones, and what an event loop gets from them."""

import asyncio
import gc
import threading
import weakref
from contextlib import nullcontext

import pytest

from service.backends.threads import OwnThreads, Threads, own_threads


class Hold:
    """Work that goes on until it may end."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        self.may_end.wait(20)
        return "done"

    async def begun(self) -> None:
        await asyncio.to_thread(self.began.wait, 20)


async def test_a_call_answers_from_another_thread_and_in_the_order_of_the_calls() -> None:
    order: list[int] = []

    def work(number: int) -> tuple[int, str]:
        order.append(number)
        return number, threading.current_thread().name

    with own_threads("inference", 1) as threads:
        calls: Threads = threads
        answers = await asyncio.gather(*(calls.call(work, number) for number in range(20)))
    assert answers == [(number, "inference_0") for number in range(20)]
    assert order == list(range(20))


async def test_as_many_calls_run_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(2)
    with own_threads("inference", 2) as threads:
        await asyncio.gather(threads.call(together.wait, 20), threads.call(together.wait, 20))


@pytest.mark.parametrize("failure", [ValueError("wrong"), SystemExit(3)])
async def test_what_is_raised_reaches_the_caller_and_the_thread_goes_on(failure: BaseException) -> None:
    def fail() -> None:
        raise failure

    with own_threads("inference", 1) as threads:
        # asyncio lets SystemExit through in a way of its own when a task ends with it, so it is caught before that.
        with pytest.raises(type(failure)) as caught:
            await threads.call(fail)
        assert caught.value is failure
        assert await threads.call(int, "7") == 7


async def test_a_call_that_is_cancelled_before_it_begins_never_does() -> None:
    hold, calls = Hold(), list[int]()
    with own_threads("inference", 1) as threads:
        holding = asyncio.ensure_future(threads.call(hold))
        await hold.begun()
        waiting = asyncio.ensure_future(threads.call(calls.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        hold.may_end.set()
        await holding
        await threads.call(calls.append, 2)
    assert calls == [2]


async def test_who_is_cancelled_does_not_wait_for_the_thread() -> None:
    hold = Hold()
    with own_threads("inference", 1) as threads:
        holding = asyncio.ensure_future(threads.call(hold))
        await hold.begun()
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        hold.may_end.set()
        assert await threads.call(int, "7") == 7


async def test_on_closing_what_has_not_begun_is_cancelled_and_the_threads_end() -> None:
    hold = Hold()
    threads = OwnThreads("closing", 1)
    holding = asyncio.ensure_future(threads.call(hold))
    await hold.begun()
    waiting = asyncio.ensure_future(threads.call(int, "7"))
    await asyncio.sleep(0)
    threads.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.may_end.set()
    assert await holding == "done"
    for thread in threading.enumerate():
        if thread.name.startswith("closing"):
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()


def test_the_end_of_the_event_loop_does_not_end_the_thread() -> None:
    hold = Hold()

    async def leave(threads: OwnThreads) -> None:
        holding = asyncio.ensure_future(threads.call(hold))
        await hold.begun()
        holding.cancel()

    async def again(threads: OwnThreads) -> int:
        return await threads.call(int, "7")

    with own_threads("inference", 1) as threads:
        asyncio.run(leave(threads))
        hold.may_end.set()
        assert asyncio.run(again(threads)) == 7


@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_of_a_call_is_kept_after_it(fails: bool) -> None:
    class Crops:
        pass

    def look(_crops: Crops) -> None:
        if fails:
            raise ValueError("wrong")

    with own_threads("inference", 1) as threads:
        crops = Crops()
        gone = threading.Event()
        weakref.finalize(crops, gone.set)
        gc.disable()  # it would find cycles, too, only later
        try:
            with pytest.raises(ValueError, match="wrong") if fails else nullcontext():
                await threads.call(look, crops)
            del crops
            assert await asyncio.to_thread(gone.wait, 20)
        finally:
            gc.enable()


async def test_threads_that_are_closed_take_no_more_calls() -> None:
    threads = OwnThreads("inference", 1)
    threads.close()
    with pytest.raises(RuntimeError, match="no more calls"):
        await threads.call(int, "7")


def test_threads_of_which_one_cannot_start_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start"):
        OwnThreads("inference", 2)
    started[0].join(20)
    assert not started[0].is_alive()
