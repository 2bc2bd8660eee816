"""Whatever arrives, is cancelled, fails or expires, in whatever batches: every caller gets its own answer."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.inference.estimates import Estimate, EstimateRequest, Priority
from service.inference.model_queue import BatchingPolicy
from service.inference.models import AnyModel, Variant
from service.pose.geometry import Box
from tests.support.backend import Crops, FakeBackend, Maps, hand_where_crop_is_marked
from tests.support.clock import ManualClock, settle
from tests.support.images import image_bytes, marked_picture
from tests.support.models import INPUT_SIZE
from tests.support.predictor import make_predictor

MARKS = [(x, y) for x in (24, 44, 64, 84, 104) for y in (24, 44, 64, 84, 104)]


class StepByStep(FakeBackend):
    """Batches wait until the test has them answered or has them fail, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[AnyModel, Crops, asyncio.Future[Maps]]] = []

    async def predict(self, model: AnyModel, crops: Crops, *, timeout_s: float) -> Maps:
        answer: asyncio.Future[Maps] = asyncio.get_running_loop().create_future()
        self.open.append((model, crops, answer))
        return await answer

    def finish(self, number: int, failure: Exception | None = None) -> None:
        if not self.open:
            return
        _, crops, answer = self.open.pop(number % len(self.open))
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(hand_where_crop_is_marked(crops))


@lru_cache(maxsize=len(MARKS))
def picture_with(mark: int) -> bytes:
    x, y = MARKS[mark]
    return image_bytes(marked_picture(INPUT_SIZE, INPUT_SIZE, (x - 6, y - 6, x + 6, y + 6)), "PNG")


def belongs(estimate: Estimate, variant: Variant, marks: Sequence[int]) -> bool:
    """Whether an answer is that of a picture with this mark, from this variant, for each of its hands."""
    found = [hand.keypoints_in_image for hand in estimate.hands]
    return estimate.model.variant == variant and all(
        np.abs(points - MARKS[mark]).max() < 1.0 for points, mark in zip(found, marks, strict=True)
    )


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.integers(0, len(MARKS) - 1),
            st.sampled_from(["standard", "lightweight"]),
            st.integers(1, 3),
            st.sampled_from([0.05, 0.5, 1000.0]),
            st.sampled_from(Priority),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        st.tuples(st.just("finish"), st.integers(0, 5)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("break"), st.integers(0, 5)),
        st.tuples(st.just("advance"), st.sampled_from([0.001, 0.02, 0.2])),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(events, st.integers(1, 5), st.integers(1, 3), st.integers(1, 30))
def test_every_caller_gets_its_own_answer(
    story: list[tuple[Any, ...]], max_batch_size: int, max_running: int, max_queue: int
) -> None:
    asyncio.run(live_through(story, BatchingPolicy(max_batch_size, 0.005, max_queue, max_running)))


ENDS: dict[str, Exception | None] = {
    "finish": None,
    "fail": UnavailableError("away"),
    "break": ZeroDivisionError("a bug"),
}


async def live_through(story: list[tuple[Any, ...]], policy: BatchingPolicy) -> None:
    backend, clock = StepByStep(), ManualClock()
    predictor = make_predictor(backend, clock=clock, batching=policy)
    asked: list[tuple[asyncio.Task[Estimate], Variant, list[int]]] = []
    for event, *details in story:
        if event == "ask":
            mark, variant, hands, seconds, priority = details
            rois = tuple(Box(0, 0, INPUT_SIZE, INPUT_SIZE) for _ in range(hands)) if hands > 1 else ()
            request = EstimateRequest(
                picture_with(mark),
                clock.time() + seconds,
                rois=rois,
                whole=not rois,
                asked_for=variant,
                priority=priority,
            )
            asked.append((asyncio.ensure_future(predictor.estimate(request)), variant, [mark] * hands))
        elif event == "cancel" and asked:
            asked[details[0] % len(asked)][0].cancel()
        elif event in ENDS:
            backend.finish(details[0], ENDS[event])
        elif event == "advance":
            clock.advance(details[0])
        await settle()

    for _ in range(200):  # everything that is still open gets its answer
        while backend.open:
            backend.finish(0)
            await settle()
        clock.advance(0.01)
        await settle()

    definite = (UnavailableError, InternalError, OverloadedError, DeadlineExceededError)
    for task, variant, marks in asked:
        assert task.done()
        if task.cancelled():
            continue
        error = task.exception()
        if error is None:
            assert belongs(task.result(), variant, marks)
        else:
            assert isinstance(error, ServiceError)
            assert isinstance(error, definite)


async def test_answers_of_marked_pictures_would_be_told_apart() -> None:
    backend = FakeBackend(answer=hand_where_crop_is_marked)
    predictor = make_predictor(backend)
    estimate = await predictor.estimate(
        EstimateRequest(picture_with(3), float("inf"), whole=True, asked_for="standard")
    )

    assert belongs(estimate, "standard", [3])
    assert not belongs(estimate, "lightweight", [3])
    assert not any(belongs(estimate, "standard", [mark]) for mark in range(len(MARKS)) if mark != 3)
