"""One model's queue: requests that wait together run together, in micro-batches.

Contract of a `ModelQueue`
    * A queue serves one model, so a batch never mixes two.
    * A batch leaves when it is full, when its oldest item has waited `max_wait_s`, or at once when nothing is running.
      While `max_running` batches run nothing leaves, however long it has waited.
    * The items of one request queue up together, and so run together where there is room.
    * `run` receives the items in the order in which they leave and must return as many results in the same order; this
      is checked, and a violation fails the batch, never another caller.
    * Interactive requests leave before bulk ones; within a priority, first come first served.
    * A request whose deadline passes, or whose caller goes away, is removed before its batch leaves. One that expires
      while it runs is answered at once and its result is thrown away.
    * The queue is bounded by places: a request takes one before any work is done for it, and all its items share it.
      A full queue answers at once, with an estimate of when there will be room.
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
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.inference.estimates import Priority
from service.inference.models import AnyModel
from service.inference.ports import Backend, Clock, DropReason, Observer, RejectReason, ReleaseReason

_SMOOTHING: Final = 0.2  # weight of the newest batch in the running estimate of the service time
_LEAST_RETRY_S: Final = 0.05
_CAUTION: Final = 1.3  # how much longer than expected those before may take without a later one missing its deadline

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item], float], Awaitable[Sequence[Result]]]


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """How long to wait, how much to gather, how much to hold.

    Attributes:
        max_batch_size: items in a batch at the most.
        max_wait_s: seconds that an item waits for company while another batch runs; infinite: until the batch is full,
            or none runs.
        max_queue: requests that have a place, at the most.
        max_running: batches that run at the same time at the most.
    """

    max_batch_size: int = 8
    max_wait_s: float = 0.005
    max_queue: int = 256
    max_running: int = 1

    def __post_init__(self) -> None:
        if min(self.max_batch_size, self.max_queue, self.max_running) < 1 or not self.max_wait_s >= 0:
            raise ValueError(f"sizes must be at least 1 and the wait not negative: {self}")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A request's results, in the order of its items, and where their time went: the longest of each, in seconds."""

    results: list[Result]
    queued_s: float
    ran_s: float


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Result]):
    """One item between submission and its result."""

    item: Item
    since: float
    deadline: float
    context: Context
    result: "asyncio.Future[tuple[Result, float, float]]"
    expiry: asyncio.TimerHandle | None = None


class ModelQueue(Generic[Item, Result]):
    """Gathers items into batches for one model; see the module's contract.

    Args:
        model: whose queue it is, for the observer.
        run: runs one batch. It gets the items and the latest deadline among them (in the clock's time), and returns
            one result an item, in order. It may raise a ServiceError; anything else counts as internal.
        policy: sizes and waits.
        clock: time and timers; deadlines are in its time.
        observer: told of batches, depth, drops and rejections.
    """

    def __init__(
        self,
        model: AnyModel,
        run: Run[Item, Result],
        *,
        policy: BatchingPolicy,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._model = model
        self._run = run
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._queues: dict[Priority, deque[_Waiting[Item, Result]]] = {each: deque() for each in Priority}
        self.depth = 0  # places taken: requests being prepared, waiting or running
        self._items = dict.fromkeys(Priority, 0)  # of the requests that have a place
        self._running: dict[asyncio.Task[None], Sequence[_Waiting[Item, Result]]] = {}
        self._oldest_waited: asyncio.TimerHandle | None = None
        self._seconds_per_item = 0.0
        self._items_seen = 0
        self._closed = False
        self._vacant = asyncio.Event()
        self._vacant.set()

    @contextmanager
    def place(
        self, *, items: int = 1, deadline: float = math.inf, priority: Priority = Priority.INTERACTIVE
    ) -> Iterator["Place[Item, Result]"]:
        """Take a place in the queue for as long as the block runs.

        Args:
            items: how many items the request is expected to run together.
            deadline: the clock's time after which their results are of no use.
            priority: which queue they will wait in.

        Raises:
            OverloadedError: if there is no room, or if it would be too late when their turn comes; `retry_after_s`
                tells when that should be otherwise.
            UnavailableError: if the queue is closed.
        """
        self._admit(items, deadline, priority)
        self._take_place(priority, 1, items)
        try:
            yield Place(self, deadline, priority)
        finally:
            self._take_place(priority, -1, -items)

    async def close(self) -> None:
        """Give no more places, and return when everything that was accepted has its answer."""
        self._closed = True
        await self._vacant.wait()
        while self._running:
            await asyncio.wait(self._running)

    # Places

    def _admit(self, items: int, deadline: float, priority: Priority) -> None:
        """Raise what `place` does."""
        if self._closed:
            raise UnavailableError("this model is being unloaded; send the request again", retry_after_s=1.0)
        if self.depth >= self._policy.max_queue:
            self._observer.request_rejected(self._model, RejectReason.QUEUE_FULL)
            raise OverloadedError(
                f"{self.depth} requests are waiting for this model, and at most {self._policy.max_queue} may",
                retry_after_s=max(_LEAST_RETRY_S, self._expected_s(items)),
            )
        ahead = sum(self._items[each] for each in Priority if each <= priority) + self._abandoned()
        late_s = self._expected_s(ahead + items) * _CAUTION - (deadline - self._clock.time())
        if ahead and late_s > 0:
            self._observer.request_rejected(self._model, RejectReason.DEADLINE)
            raise OverloadedError(
                f"{ahead} images or hands are waiting for this model, more than it can answer in the time that this"
                " request has",
                retry_after_s=max(_LEAST_RETRY_S, late_s),
            )

    def _take_place(self, priority: Priority, places: int, items: int) -> None:
        self.depth += places
        self._items[priority] += items
        self._vacant.set() if self.depth == 0 else self._vacant.clear()
        self._observer.queue_changed(self._model, self.depth)

    def _abandoned(self) -> int:
        """Items that run although nobody waits for them any more: they have no place, but still take time."""
        return sum(waiting.result.done() for batch in self._running.values() for waiting in batch)

    def _expected_s(self, items: int) -> float:
        """Seconds for so many items, by what has been seen; 0 while nothing has."""
        return items * self._seconds_per_item / self._policy.max_running

    # Waiting

    async def submit(self, items: Sequence[Item], deadline: float, priority: Priority) -> Answer[Result]:
        """See `Place.run`."""
        if not items:
            return Answer([], 0.0, 0.0)
        now = self._clock.time()
        if now >= deadline:
            for _ in items:
                self._observer.request_dropped(self._model, DropReason.EXPIRED)
            raise DeadlineExceededError("the request's time was up before it could wait for the model")
        context = copy_context()
        all_waiting = [self._enqueue(item, now, deadline, priority, context) for item in items]
        self._release()
        try:
            results, queued, ran = zip(*await asyncio.gather(*(each.result for each in all_waiting)), strict=True)
            return Answer(list(results), max(queued), max(ran))
        finally:
            for waiting in all_waiting:
                self._give_up(waiting)

    def _enqueue(
        self, item: Item, now: float, deadline: float, priority: Priority, context: Context
    ) -> _Waiting[Item, Result]:
        waiting = _Waiting[Item, Result](item, now, deadline, context, asyncio.get_running_loop().create_future())
        waiting.expiry = self._clock.call_at(deadline, lambda: self._expire(waiting))
        self._queues[priority].append(waiting)
        return waiting

    def _give_up(self, waiting: _Waiting[Item, Result]) -> None:
        """The caller no longer waits for this item: its timer and its place in the queue go, an unseen failure too."""
        if waiting.expiry is not None:
            waiting.expiry.cancel()
        self._forget(waiting, DropReason.CANCELLED)
        if not waiting.result.cancel() and not waiting.result.cancelled():
            waiting.result.exception()

    def _expire(self, waiting: _Waiting[Item, Result]) -> None:
        if waiting.result.done():
            return
        was_queued = self._forget(waiting, DropReason.EXPIRED)
        where = "while it waited for the model" if was_queued else "while the model ran"
        waiting.result.set_exception(DeadlineExceededError(f"the request's time was up {where}"))

    def _forget(self, waiting: _Waiting[Item, Result], reason: DropReason) -> bool:
        """Remove an item that is still queued; whether it was."""
        for queue in self._queues.values():
            if waiting in queue:
                queue.remove(waiting)
                self._observer.request_dropped(self._model, reason)
                self._watch_oldest()
                return True
        return False

    # Leaving the queue

    def _release(self) -> None:
        """Send off every batch whose time has come, and set the timer for the next one."""
        while (reason := self._reason_to_leave()) is not None:
            batch = self._take()
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._observer.batch_released(self._model, len(batch), reason)
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

    # Running

    async def _run_batch(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        started = self._clock.time()
        requests = {id(each.context): (each.context, started - each.since) for each in batch}
        try:
            with self._observer.batch(self._model, list(requests.values()), len(batch)):
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
            if not waiting.result.done():
                waiting.result.set_result((result, started - waiting.since, ran))

    def _fail(self, batch: Sequence[_Waiting[Item, Result]], error: ServiceError) -> None:
        for waiting in batch:
            if not waiting.result.done():
                waiting.result.set_exception(error)

    def _batch_done(self, task: "asyncio.Task[None]") -> None:
        self._running.pop(task, None)
        self._release()

    def _learn(self, items: int, seconds: float) -> None:
        """A full batch counts in full, a small one less: under load, when the estimate matters, batches are full.

        At first it is the mean over the items seen, so that one slow batch, such as the first after a start, which may
        have waited for another model to load, does not have everybody refused for a while.
        """
        self._items_seen += items
        weight = max(_SMOOTHING * items / self._policy.max_batch_size, items / self._items_seen)
        self._seconds_per_item += weight * (seconds / items - self._seconds_per_item)


class ModelQueues:
    """The queues of all models that a backend runs, each made when its model is first asked.

    Items are crops' pixels, uint8 RGB [H, W, 3]; results what the model makes of one, float32.

    Args:
        backend: runs the batches.
        policy, clock, observer: as for each `ModelQueue`.
    """

    def __init__(self, backend: Backend, *, policy: BatchingPolicy, clock: Clock, observer: Observer) -> None:
        self._backend = backend
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._queues: dict[tuple[str, int], ModelQueue[NDArray[np.uint8], NDArray[np.float32]]] = {}

    def of(self, model: AnyModel) -> ModelQueue[NDArray[np.uint8], NDArray[np.float32]]:
        """The queue of this version of this model."""
        key = (model.name, model.version)
        if key not in self._queues:
            self._queues[key] = ModelQueue(
                model, partial(self._run, model), policy=self._policy, clock=self._clock, observer=self._observer
            )
        return self._queues[key]

    async def close(self) -> None:
        """As `ModelQueue.close`, for all of them."""
        await asyncio.gather(*(queue.close() for queue in self._queues.values()))

    async def _run(
        self, model: AnyModel, crops: Sequence[NDArray[np.uint8]], deadline: float
    ) -> Sequence[NDArray[np.float32]]:
        answer = await self._backend.predict(model, crops, timeout_s=deadline - self._clock.time())
        if answer.shape != (expected := (len(crops), *model.output_shape)):
            raise InternalError(f"{model.name} answered with shape {answer.shape}, expected {expected}")
        return list(answer)


class Place(Generic[Item, Result]):
    """A request's place in a queue; see `ModelQueue.place`."""

    def __init__(self, queue: ModelQueue[Item, Result], deadline: float, priority: Priority) -> None:
        self._queue = queue
        self._deadline = deadline
        self._priority = priority

    async def run(self, items: Sequence[Item]) -> Answer[Result]:
        """Wait for the results of some of the request's items, in their order.

        They queue up together, so that they share a batch where there is room. At the first failure the others are
        given up.

        Raises:
            DeadlineExceededError: the deadline passed, before or while an item ran.
            ServiceError: whatever an item's batch failed with.
        """
        return await self._queue.submit(items, self._deadline, self._priority)
