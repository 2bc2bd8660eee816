"""Copies to another model: what they report, and that nothing about them ever reaches the answer."""

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from service.inference.errors import InternalError, OverloadedError, UnavailableError
from service.inference.estimates import Estimate, EstimateRequest
from service.inference.models import AnyModel, ModelReference, ServedModel
from service.inference.routing import Router, RoutingRules, ShadowRule
from service.inference.shadow import Shadow
from tests.support.backend import Crops, FakeBackend, Maps, maps_of, spread_keypoints
from tests.support.clock import ManualClock, settle
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE, served_model
from tests.support.predictor import make_predictor
from tests.support.waiting import until

FAR = math.inf
LIGHTWEIGHT = ModelReference("lightweight")
STANDARD = ModelReference("standard")
SIDE = 2 * INPUT_SIZE


@dataclass
class ShadowNotes:
    """Implements `ShadowObserver` by writing down."""

    compared: list[tuple[ServedModel, ServedModel, float, float, float]] = field(default_factory=list)
    failed: list[tuple[ModelReference, str]] = field(default_factory=list)

    def shadow_compared(
        self, answered: ServedModel, shadow: ServedModel, distance: float, answered_s: float, shadow_s: float
    ) -> None:
        self.compared.append((answered, shadow, distance, answered_s, shadow_s))

    def shadow_failed(self, target: ModelReference, reason: str) -> None:
        self.failed.append((target, reason))


class TwoMinds(FakeBackend):
    """The standard model sees the hand this many input pixels further right, or fails, or does not answer."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift
        self.standard_fails: Exception | None = None
        self.standard_may_answer = asyncio.Event()
        self.standard_may_answer.set()

    async def predict(self, model: AnyModel, crops: Crops, *, timeout_s: float) -> Maps:
        if model.kind != "standard":
            return await super().predict(model, crops, timeout_s=timeout_s)
        await self.standard_may_answer.wait()
        if self.standard_fails is not None:
            raise self.standard_fails
        hand = spread_keypoints(INPUT_SIZE) + np.array((self.shift, 0.0), np.float32)
        return maps_of(np.repeat(hand[None], len(crops), axis=0), INPUT_SIZE)


class Lab:
    def __init__(self, workers: ThreadPoolExecutor, backend: TwoMinds, *, share: float = 1.0) -> None:
        self.backend = backend
        self.notes = ShadowNotes()
        self.clock = ManualClock()
        self.shadow = Shadow(self.notes, self.clock, max_running=3, delay_s=0.5, timeout_s=10.0)
        self.predictor = make_predictor(
            backend,
            workers=workers,
            clock=self.clock,
            router=Router(LIGHTWEIGHT, RoutingRules(shadow=(ShadowRule("lightweight", STANDARD, share),))),
            shadow=self.shadow,
        )

    async def ask(self, asked_for: str | None = None) -> Estimate:
        return await self.predictor.estimate(
            EstimateRequest(image_bytes(picture(SIDE, SIDE)), FAR, whole=True, asked_for=asked_for)
        )

    async def copies_are_through(self, how_many: int) -> None:
        await until(lambda: len(self.notes.compared) + len(self.notes.failed) >= how_many)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_a_copy_reports_how_far_the_answers_lie_apart(workers: ThreadPoolExecutor) -> None:
    lab = Lab(workers, TwoMinds(shift=12.8))
    estimate = await lab.ask()
    lab.clock.advance(0.5)
    await lab.copies_are_through(1)

    ((answered, shadow, distance, answered_s, shadow_s),) = lab.notes.compared
    assert (answered, shadow) == (served_model("lightweight"), served_model("standard"))
    assert distance == pytest.approx(0.1, abs=0.002)  # of the box's side: 12.8 of 128 input pixels
    assert (answered_s, shadow_s) == (estimate.timings.total, 0.0)
    assert estimate.model.variant == "lightweight"


async def test_the_copy_starts_only_after_the_answer_is_given(workers: ThreadPoolExecutor) -> None:
    lab = Lab(workers, TwoMinds())
    await lab.ask()
    await settle()
    assert [call.model.variant for call in lab.backend.calls] == ["lightweight"]
    assert lab.notes.compared == []

    lab.clock.advance(0.5)
    await lab.copies_are_through(1)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (UnavailableError("away"), "unavailable"),
        (OverloadedError("full", retry_after_s=1.0), "overloaded"),
        (InternalError("broken"), "internal"),
        (ZeroDivisionError("a bug"), "internal"),
    ],
)
async def test_a_failing_shadow_never_touches_an_answer(
    workers: ThreadPoolExecutor, failure: Exception, reason: str
) -> None:
    plain = await Lab(workers, TwoMinds(), share=0.0).ask()
    backend = TwoMinds()
    backend.standard_fails = failure
    lab = Lab(workers, backend)

    for number in range(1, 6):
        estimate = await lab.ask()
        np.testing.assert_array_equal(estimate.hands[0].keypoints_in_image, plain.hands[0].keypoints_in_image)
        lab.clock.advance(0.5)
        await lab.copies_are_through(number)

    assert lab.notes.failed == [(STANDARD, reason)] * 5


async def test_a_shadow_that_does_not_exist_is_only_counted(workers: ThreadPoolExecutor) -> None:
    lab = Lab(workers, TwoMinds())
    nowhere = ModelReference("standard", label="canary")
    lab.predictor = make_predictor(
        lab.backend,
        workers=workers,
        clock=lab.clock,
        router=Router(LIGHTWEIGHT, RoutingRules(shadow=(ShadowRule(None, nowhere, 1.0),))),
        shadow=lab.shadow,
    )
    await lab.ask()
    lab.clock.advance(0.5)
    await lab.copies_are_through(1)

    assert lab.notes.failed == [(nowhere, "unknown_model")]


async def test_a_shadow_that_hangs_keeps_nobody_waiting_and_has_a_bound(workers: ThreadPoolExecutor) -> None:
    backend = TwoMinds()
    backend.standard_may_answer.clear()
    lab = Lab(workers, backend)

    for _ in range(8):
        assert (await lab.ask()).hands
        lab.clock.advance(0.5)

    assert lab.notes.failed == [(STANDARD, "skipped")] * 5  # three at a time

    lab.clock.advance(10.0)  # their time is up
    await lab.copies_are_through(8)
    assert lab.notes.failed[5:] == [(STANDARD, "deadline_exceeded")] * 3
    backend.standard_may_answer.set()


async def test_a_copy_is_not_copied_again(workers: ThreadPoolExecutor) -> None:
    lab = Lab(workers, TwoMinds())
    lab.predictor = make_predictor(
        lab.backend,
        workers=workers,
        clock=lab.clock,
        router=Router(LIGHTWEIGHT, RoutingRules(shadow=(ShadowRule(None, STANDARD, 1.0),))),
        shadow=lab.shadow,
    )
    await lab.ask()
    lab.clock.advance(0.5)
    await lab.copies_are_through(1)
    for _ in range(5):  # whatever a second copy would need: its delay, the only worker, turns of the loop
        lab.clock.advance(0.5)
        await asyncio.get_running_loop().run_in_executor(workers, int)
        await settle()

    assert len(lab.notes.compared) == 1


async def test_shutting_down_gives_up_copies_and_waits_for_no_one(workers: ThreadPoolExecutor) -> None:
    backend = TwoMinds()
    backend.standard_may_answer.clear()
    lab = Lab(workers, backend)
    await lab.ask()
    lab.clock.advance(0.5)
    await lab.ask()

    await lab.shadow.stop()

    lab.clock.advance(5.0)
    await settle()
    assert lab.notes.compared == []
    backend.standard_may_answer.set()
    await lab.predictor.drain()


async def test_where_there_is_no_canary_its_share_is_answered_by_the_stable_version(
    workers: ThreadPoolExecutor,
) -> None:
    lab = Lab(workers, TwoMinds())
    predictor = make_predictor(
        FakeBackend(served_model("lightweight")),
        workers=workers,
        clock=lab.clock,
        router=Router(LIGHTWEIGHT, RoutingRules(canary={"lightweight": 1.0})),
    )

    estimate = await predictor.estimate(EstimateRequest(image_bytes(), FAR))

    assert (estimate.model.version, estimate.routed_by) == (1, "default")


async def test_the_canarys_share_is_answered_by_the_canary(workers: ThreadPoolExecutor) -> None:
    lab = Lab(workers, TwoMinds())
    predictor = make_predictor(
        FakeBackend(served_model("lightweight"), served_model("lightweight", version=2, labels=("canary",))),
        workers=workers,
        clock=lab.clock,
        router=Router(LIGHTWEIGHT, RoutingRules(canary={"lightweight": 1.0})),
    )

    estimate = await predictor.estimate(EstimateRequest(image_bytes(), FAR))

    assert (estimate.model.version, estimate.routed_by) == (2, "canary")
