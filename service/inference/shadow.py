"""Copies of requests to another model, after the answer is out, to see how far the two models' answers lie apart.

A shadow never touches an answer: it starts when the answer has been given, waits behind every interactive request,
its failures are only counted, and there is a bound on how many there are at a time; beyond it copies are left out.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from service.inference.errors import ServiceError
from service.inference.estimates import Estimate, EstimateRequest, Estimator, Hand, Priority
from service.inference.models import ModelReference, ServedModel
from service.inference.ports import Clock

_log = logging.getLogger(__name__)


class ShadowObserver(Protocol):
    """Is told what the copies show. Must be quick and must not raise."""

    def shadow_compared(
        self, answered: ServedModel, shadow: ServedModel, distance: float, answered_s: float, shadow_s: float
    ) -> None:
        """One hand's mean keypoint distance over its box's longer side, and how long each of the two took."""
        ...

    def shadow_failed(self, target: ModelReference, reason: str) -> None:
        """A copy got no answer; the reason is a kind of error, or "skipped" where there were too many copies."""
        ...


class Shadow:
    """Sends the copies.

    Args:
        observer: is told what they show.
        clock: time.
        max_running: copies at a time at the most, those that are about to start included.
        delay_s: how long a copy waits, so that the answer is on the wire before the copy takes a turn.
        timeout_s: time for a copy's answer.
    """

    def __init__(
        self,
        observer: ShadowObserver,
        clock: Clock,
        *,
        max_running: int = 4,
        delay_s: float = 0.02,
        timeout_s: float = 10.0,
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._max_running = max_running
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def send(self, target: ModelReference, request: EstimateRequest, answered: Estimate, ask: Estimator) -> None:
        """Have a copy of a request answered by the target.

        Args:
            target: the model that gets the copy.
            request: what was asked.
            answered: the answer that was given.
            ask: asks the target.
        """
        if self._stopped:
            return
        if len(self._timers) + len(self._tasks) >= self._max_running:
            self._observer.shadow_failed(target, "skipped")
            return

        def start() -> None:
            self._timers.discard(timer)
            task = asyncio.get_running_loop().create_task(self._compare(target, request, answered, ask))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = self._clock.call_at(self._clock.time() + self._delay_s, start)
        self._timers.add(timer)

    async def stop(self) -> None:
        """Give up what is under way, and send nothing any more."""
        self._stopped = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _compare(
        self, target: ModelReference, request: EstimateRequest, answered: Estimate, ask: Estimator
    ) -> None:
        deadline = self._clock.time() + self._timeout_s
        copy = replace(request, copy_to=target, deadline=deadline, priority=Priority.BULK)
        try:
            shadow = await ask(copy)
        except ServiceError as error:
            self._observer.shadow_failed(target, error.kind.value)
            return
        except Exception:  # noqa: BLE001 -- a copy's failure, whatever it is, is nobody's but the operator's
            _log.exception("a copy of a request to %s failed", target)
            self._observer.shadow_failed(target, "internal")
            return
        seconds = answered.timings.total, shadow.timings.total
        for ours, theirs in _pairs(answered, shadow, in_order=not request.searches):
            self._observer.shadow_compared(answered.model, shadow.model, _distance(ours, theirs), *seconds)


def _pairs(answered: Estimate, shadow: Estimate, *, in_order: bool) -> Iterator[tuple[Hand, Hand]]:
    """The hands that are compared: in their order where the request named them, else each with the nearest one.

    A hand that the other answer lacks is compared with none.
    """
    if in_order:
        yield from zip(answered.hands, shadow.hands, strict=True)
        return
    left = list(shadow.hands)
    for ours in answered.hands:
        if left:
            nearest = min(range(len(left)), key=lambda index: _distance(ours, left[index]))
            if _distance(ours, left[nearest]) < 1.0:
                yield ours, left.pop(nearest)


def _distance(ours: Hand, theirs: Hand) -> float:
    """The mean distance between two answers' keypoints, over the longer side of the box."""
    side = max(ours.box_in_image.width, ours.box_in_image.height)
    return float(np.linalg.norm(ours.keypoints_in_image - theirs.keypoints_in_image, axis=-1).mean()) / side
