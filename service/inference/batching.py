"""Micro-batching: requests that wait together run together.

Contract of a `MicroBatcher`
    * One batcher serves one model, so a batch never mixes two.
    * A batch leaves when it is full, when its oldest request has waited `max_wait_s`, or at once when nothing is
      running. While `max_running` batches run nothing leaves, however long it has waited.
    * The items of one request queue up together, and so run together where there is room.
    * `run` receives the items in the order in which they leave and must return as many results in the same order; this
      is checked, and a violation fails the batch, never another caller.
    * Interactive requests leave before bulk ones; within a priority, first come first served.
    * A request whose deadline passes, or whose caller goes away, is removed before its batch leaves. One that expires
      while it runs is answered at once and its result is thrown away.
    * The queue is bounded by reservation: a place is taken before any work is done for a request, so a full queue
      answers at once, with an estimate of when there will be room.
    * The bound adapts to the deadlines: a request is refused in the same way when those before it will take longer than
      it has time, as measured by the batches that have run. What is accepted under overload is answered in time.
    * If a batch fails, every caller in it gets the failure.

Time and timers come from a `Clock`, so tests advance time by hand. Everything runs on one event loop and takes no lock.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, Protocol, TypeVar

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.inference.ports import Clock, DropReason, RejectReason, ReleaseReason

_SMOOTHING: Final = 0.2  # weight of the newest batch in the running estimate of the service time
_LEAST_RETRY_S: Final = 0.05
_CAUTION: Final = 1.3  # how much longer than expected those before may take without a later one missing its deadline


class Priority(IntEnum):
    """Who goes first when both wait."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """How long to wait, how much to gather, how much to hold.

    Attributes:
        max_batch_size: items in a batch at the most.
        max_wait_s: seconds that an item waits for company while another batch runs; infinite: until the batch is full,
            or none runs.
        max_queue: items that have a place and have not left, at the most.
        max_running: batches that run at the same time at the most.
    """

    max_batch_size: int = 8
    max_wait_s: float = 0.005
    max_queue: int = 256
    max_running: int = 1

    def __post_init__(self) -> None:
        if min(self.max_batch_size, self.max_queue, self.max_running) < 1 or not self.max_wait_s >= 0:
            raise ValueError(f"sizes must be at least 1 and the wait not negative: {self}")


class BatchObserver(Protocol):
    """What a batcher reports; `service.inference.ports.Observer` with the model filled in."""

    def batch_released(self, size: int, reason: ReleaseReason) -> None: ...

    def queue_changed(self, depth: int) -> None: ...

    def request_dropped(self, reason: DropReason) -> None: ...

    def request_rejected(self, reason: RejectReason) -> None: ...


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A caller's own result, and where its time went, in seconds."""

    result: Result
    queued_s: float
    ran_s: float


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    """One item between submission and its answer."""

    item: Item
    since: float
    deadline: float
    answer: "asyncio.Future[Answer[Result]]"
    expiry: asyncio.TimerHandle | None = field(default=None)


class MicroBatcher(Generic[Item, Result]):
    """Gathers items into batches for one model; see the module's contract.

    Args:
        run: runs one batch. It gets the items and the latest deadline among them (in the clock's time), and returns
            one result an item, in order. It may raise a ServiceError; anything else counts as internal.
        policy: sizes and waits.
        clock: time and timers; deadlines are in its time.
        observer: told of batches, depth, drops and rejections.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], float], Awaitable[Sequence[Result]]],
        *,
        policy: BatchingPolicy,
        clock: Clock,
        observer: BatchObserver,
    ) -> None:
        self._run = run
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._queues: dict[Priority, deque[_Waiting[Item, Result]]] = {each: deque() for each in Priority}
        self._reserved = dict.fromkeys(Priority, 0)
        self._running: dict[asyncio.Task[None], Sequence[_Waiting[Item, Result]]] = {}
        self._oldest_waited: asyncio.TimerHandle | None = None
        self._seconds_per_item: float | None = None
        self._items_seen = 0
        self._closed = False
        self._vacant = asyncio.Event()
        self._vacant.set()

    @property
    def depth(self) -> int:
        """Places taken: requests being prepared, waiting or running."""
        return sum(self._reserved.values())

    @contextmanager
    def reserve(
        self, places: int = 1, *, deadline: float = math.inf, priority: Priority = Priority.INTERACTIVE
    ) -> Iterator[None]:
        """Take places in the queue for as long as the block runs.

        Args:
            places: how many items will be submitted.
            deadline: the clock's time after which their answers are of no use.
            priority: which queue they will wait in.

        Raises:
            OverloadedError: if there is no room, or if it would be too late when their turn comes; `retry_after_s`
                tells when that should be otherwise.
            UnavailableError: if the batcher is closed.
        """
        if self._closed:
            raise UnavailableError("this model is being unloaded; send the request again", retry_after_s=1.0)
        if self.depth + places > self._policy.max_queue:
            self._observer.request_rejected(RejectReason.QUEUE_FULL)
            raise OverloadedError(
                f"{self.depth} requests are waiting for this model, and at most {self._policy.max_queue} may",
                retry_after_s=self._time_to_serve(self.depth + places - self._policy.max_queue),
            )
        ahead = self.depth if priority is Priority.BULK else self._reserved[Priority.INTERACTIVE]
        ahead += self._abandoned()
        late_s = self._expected_s(ahead + places) * _CAUTION - (deadline - self._clock.time())
        if ahead and late_s > 0:
            self._observer.request_rejected(RejectReason.DEADLINE)
            raise OverloadedError(
                f"{ahead} requests are waiting for this model, more than it can answer in the time that this one has",
                retry_after_s=max(_LEAST_RETRY_S, late_s),
            )
        self._change_reserved(priority, places)
        try:
            yield
        finally:
            self._change_reserved(priority, -places)

    async def submit(self, item: Item, *, deadline: float, priority: Priority = Priority.INTERACTIVE) -> Answer[Result]:
        """Wait for the result of a single item; see `submit_all`."""
        (answer,) = await self.submit_all([item], deadline=deadline, priority=priority)
        return answer

    async def submit_all(
        self, items: Sequence[Item], *, deadline: float, priority: Priority = Priority.INTERACTIVE
    ) -> list[Answer[Result]]:
        """Wait for the results of one request's items, in their order.

        They queue up together, so that they share a batch where there is room. At the first failure the others are
        given up.

        Args:
            items: what `run` gets.
            deadline: the clock's time after which the answers are of no use.
            priority: which queue to wait in.

        Raises:
            DeadlineExceededError: the deadline passed, before or while an item ran.
            ServiceError: whatever an item's batch failed with.
        """
        now = self._clock.time()
        if now >= deadline:
            for _ in items:
                self._observer.request_dropped(DropReason.EXPIRED)
            raise DeadlineExceededError("the request's time was up before it could wait for the model")
        all_waiting = [self._enqueue(item, now, deadline, priority) for item in items]
        self._release()
        try:
            if len(all_waiting) == 1:  # nearly always, and then there is nothing to gather
                return [await all_waiting[0].answer]
            return list(await asyncio.gather(*(waiting.answer for waiting in all_waiting)))
        finally:
            for waiting in all_waiting:
                self._give_up(waiting)

    def _enqueue(self, item: Item, now: float, deadline: float, priority: Priority) -> _Waiting[Item, Result]:
        waiting = _Waiting[Item, Result](item, now, deadline, asyncio.get_running_loop().create_future())
        waiting.expiry = self._clock.call_at(deadline, lambda: self._expire(waiting))
        self._queues[priority].append(waiting)
        return waiting

    def _give_up(self, waiting: _Waiting[Item, Result]) -> None:
        """Nobody waits for this item any more: no timer, no place in a queue, no complaint about a failure unseen."""
        if waiting.expiry is not None:
            waiting.expiry.cancel()
        self._forget(waiting, DropReason.CANCELLED)
        if not waiting.answer.cancel() and not waiting.answer.cancelled():
            waiting.answer.exception()

    async def close(self) -> None:
        """Take no new reservations, and return when everything that was accepted has its answer."""
        self._closed = True
        await self._vacant.wait()
        while self._running:
            await asyncio.wait(self._running)

    # Leaving the queue

    def _release(self) -> None:
        """Send off every batch whose time has come, and set the timer for the next one."""
        while (reason := self._reason_to_leave()) is not None:
            batch = self._take()
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._observer.batch_released(len(batch), reason)
            self._running[task] = batch
            task.add_done_callback(self._batch_done)
        self._watch_oldest()

    def _reason_to_leave(self) -> ReleaseReason | None:
        waiting = sum(map(len, self._queues.values()))
        if not waiting or len(self._running) >= self._policy.max_running:
            return None
        if waiting >= self._policy.max_batch_size:
            return ReleaseReason.FULL
        if not self._running:
            return ReleaseReason.IDLE
        if self._clock.time() >= self._oldest_leaves_at():
            return ReleaseReason.WAITED
        return None

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        for priority in Priority:
            queue = self._queues[priority]
            while queue and len(batch) < self._policy.max_batch_size:
                batch.append(queue.popleft())
        return batch

    def _oldest_leaves_at(self) -> float:
        oldest = min(queue[0].since for queue in self._queues.values() if queue)
        return oldest + self._policy.max_wait_s

    def _watch_oldest(self) -> None:
        if self._oldest_waited is not None:
            self._oldest_waited.cancel()
            self._oldest_waited = None
        # With every runner busy, the end of a batch is what releases the next one, not the time.
        has_a_runner = len(self._running) < self._policy.max_running
        if any(self._queues.values()) and has_a_runner and self._policy.max_wait_s < math.inf:
            self._oldest_waited = self._clock.call_at(self._oldest_leaves_at(), self._release)

    def _expire(self, waiting: _Waiting[Item, Result]) -> None:
        if waiting.answer.done():
            return
        was_queued = self._forget(waiting, DropReason.EXPIRED)
        where = "while it waited for the model" if was_queued else "while the model ran"
        waiting.answer.set_exception(DeadlineExceededError(f"the request's time was up {where}"))

    def _forget(self, waiting: _Waiting[Item, Result], reason: DropReason) -> bool:
        """Remove an item that is still queued; whether it was."""
        for queue in self._queues.values():
            if waiting in queue:
                queue.remove(waiting)
                self._observer.request_dropped(reason)
                self._watch_oldest()
                return True
        return False

    # Running

    async def _run_batch(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        started = self._clock.time()
        try:
            results = await self._run([each.item for each in batch], max(each.deadline for each in batch))
            if len(results) != len(batch):
                raise InternalError(f"a batch of {len(batch)} came back as {len(results)} results")
        except asyncio.CancelledError:
            self._fail(batch, UnavailableError("the service stopped while the model ran", retry_after_s=1.0))
            raise
        except ServiceError as error:
            self._fail(batch, error)
            return
        except Exception as error:  # noqa: BLE001 -- whatever it is, the waiting callers must learn of it
            failure = InternalError("the model failed to run")
            failure.__cause__ = error
            self._fail(batch, failure)
            return
        ran = self._clock.time() - started
        self._learn(len(batch), ran)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(Answer(result, started - waiting.since, ran))

    def _fail(self, batch: Sequence[_Waiting[Item, Result]], error: ServiceError) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)

    def _batch_done(self, task: "asyncio.Task[None]") -> None:
        self._running.pop(task, None)
        self._release()

    # Bookkeeping

    def _change_reserved(self, priority: Priority, by: int) -> None:
        self._reserved[priority] += by
        if self.depth:
            self._vacant.clear()
        else:
            self._vacant.set()
        self._observer.queue_changed(self.depth)

    def _learn(self, items: int, seconds: float) -> None:
        """A full batch counts in full, a small one less: under load, when the estimate matters, batches are full.

        At first it is the mean over the items seen, so that one slow batch, such as the first after a start, which may
        have waited for another model to be loaded, does not have everybody refused for a while.
        """
        seen, now = self._seconds_per_item or 0.0, seconds / items
        self._items_seen += items
        weight = max(_SMOOTHING * items / self._policy.max_batch_size, items / self._items_seen)
        self._seconds_per_item = seen + weight * (now - seen)

    def _abandoned(self) -> int:
        """Items that run although nobody waits for them any more: no place is theirs, but their time is."""
        return sum(waiting.answer.done() for batch in self._running.values() for waiting in batch)

    def _time_to_serve(self, items: int) -> float:
        """Seconds until this many of the places taken should be free again."""
        return max(_LEAST_RETRY_S, self._expected_s(items))

    def _expected_s(self, items: int) -> float:
        """Seconds for so many items by what has been seen; 0 while nothing has."""
        return items * (self._seconds_per_item or 0.0) / self._policy.max_running
