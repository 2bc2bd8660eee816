"""The use case: where are the 21 keypoints of each hand in this image?

`Predictor.estimate` is the one core behind every protocol. It decodes the image, looks for hands, crops each to the
model's input, waits for a micro-batch, and maps the keypoints back to the image. It knows no protocol, no model server
and no metrics library; it speaks to `service.inference.ports` and calls the pure functions of `service.pose`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.inference.decoding import ImageDecoder
from service.inference.detection import ModelPlace, Search, longest_side, regions_of
from service.inference.errors import (
    FieldError,
    InvalidInputError,
    ServiceError,
    TooLargeError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.estimates import MOST_HANDS, Estimate, EstimateRequest, Timings
from service.inference.hands import hands_found, hands_in_image
from service.inference.model_queue import Answer, BatchingPolicy, ModelQueues
from service.inference.models import AnyModel, ModelReference, ServedModel
from service.inference.ports import Backend, Clock, Observer, Phase
from service.inference.routing import Route, Router
from service.inference.shadow import Shadow


class Predictor:
    """Answers requests with a backend's models, in micro-batches.

    Args:
        backend: runs the models.
        router: chooses one for each request.
        decoder: decodes and crops images off the event loop.
        observer: is told what happens.
        clock: time and timers; request deadlines are in its time.
        batching: sizes and waits of every model's queue.
        max_rois: regions of interest in one image.
        shadow: sends copies of requests where the router says so; None sends none.

    Attributes:
        queues: of the models.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        router: Router,
        decoder: ImageDecoder,
        observer: Observer,
        clock: Clock,
        batching: BatchingPolicy,
        max_rois: int = 16,
        shadow: Shadow | None = None,
    ) -> None:
        self._backend = backend
        self._router = router
        self._decoder = decoder
        self._observer = observer
        self._clock = clock
        self.queues = ModelQueues(backend, policy=batching, clock=clock, observer=observer)
        self._max_rois = max_rois
        self._shadow = shadow
        self._draining = False

    async def estimate(self, request: EstimateRequest) -> Estimate:
        """Find the hands of one image.

        Raises:
            ServiceError: one of the tree in `service.inference.errors`, and nothing else.
        """
        self._admit(request)
        route, model = self._choose_model(request)
        stopwatch = Stopwatch(self._clock, self._observer)
        with failures_of(model), self._place_for(request, model) as place:
            with self._search_for(request) as search, stopwatch.phase(Phase.DECODE):
                async with self._decoder.open(
                    request.image,
                    deadline=request.deadline,
                    longest_side=partial(longest_side, request, model, search),
                ) as image:
                    with stopwatch.phase(Phase.DETECTION) if search else nullcontext():
                        regions = await regions_of(image, request, search)
                    crops = await image.crops(regions, model.input_size)
            answer = await place.run([crop.pixels for crop in crops])  # the photo is gone by now
            with stopwatch.phase(Phase.POSTPROCESS):
                hands = hands_in_image(crops, answer.results, regions)
                if request.searches:
                    hands = hands_found(hands, request.min_score)
            stopwatch.ran(answer)
        estimate = Estimate(model, route.routed_by, image.size, hands, stopwatch.timings())
        self._observer.estimated(estimate)
        if route.shadow is not None and self._shadow is not None:
            self._shadow.send(route.shadow, request, estimate, self.estimate)
        return estimate

    async def drain(self) -> None:
        """Refuse new requests, and return when every accepted one has its answer."""
        self._draining = True
        if self._shadow is not None:
            await self._shadow.stop()
        await self.queues.close()

    def _admit(self, request: EstimateRequest) -> None:
        if self._draining:
            raise UnavailableError("the service is shutting down; send the request again", retry_after_s=1.0)
        if len(request.rois) > self._max_rois:
            raise TooLargeError(
                f"{len(request.rois)} rois were given; at most {self._max_rois} are allowed", code="too_many_rois"
            )
        wrong = []
        if not 1 <= request.max_hands <= MOST_HANDS:
            wrong.append(FieldError("max_hands", f"must be from 1 to {MOST_HANDS}, got {request.max_hands}"))
        if not 0 <= request.min_score <= 1:
            wrong.append(FieldError("min_score", f"must be from 0 to 1, got {request.min_score}"))
        if request.whole and request.rois:
            wrong.append(FieldError("whole", "says that the whole image is one hand: give it or rois, not both"))
        if wrong:
            raise InvalidInputError(f"{wrong[0].field}: {wrong[0].message}", code="invalid_option", errors=wrong)

    def _choose_model(self, request: EstimateRequest) -> tuple[Route, ServedModel]:
        if request.copy_to is not None:
            return Route(request.copy_to, "default"), self._backend.resolve(request.copy_to)
        route = self._router.route(request.asked_for, request.client_id)
        with failures_of(route.reference):
            try:
                return route, self._backend.resolve(route.reference)
            except (UnknownModelError, UnavailableError):
                if route.otherwise is None:
                    raise
                return route.otherwise, self._backend.resolve(route.otherwise.reference)

    def _place_for(self, request: EstimateRequest, model: AnyModel) -> AbstractContextManager[ModelPlace]:
        items = request.hands_named if isinstance(model, ServedModel) else 1
        return self.queues.of(model).place(items=items, deadline=request.deadline, priority=request.priority)

    @contextmanager
    def _search_for(self, request: EstimateRequest) -> Iterator[Search | None]:
        """A place in the detector's queue, for a request whose hands have to be looked for."""
        if not request.searches:
            yield None
            return
        detector = self._backend.detector()
        with self._place_for(request, detector) as place:
            yield Search(detector, place)


class Stopwatch:
    """Measures where a request's time goes, and tells the observer of each phase as it runs."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._started = clock.time()
        self._seconds = dict.fromkeys(Phase, 0.0)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The block is this phase, but for the phases inside it."""
        started, before = self._clock.time(), sum(self._seconds.values())
        with self._observer.part(phase.value):
            yield
        inside = sum(self._seconds.values()) - before
        self._seconds[phase] += self._clock.time() - started - inside

    def ran(self, answer: Answer[NDArray[np.float32]]) -> None:
        """Count the time in the queue and in the model."""
        self._seconds[Phase.QUEUE] += answer.queued_s
        self._seconds[Phase.INFERENCE] += answer.ran_s

    def timings(self) -> Timings:
        """Where the time went, up to now."""
        seconds = {phase.value: seconds for phase, seconds in self._seconds.items()}
        return Timings(**seconds, total=self._clock.time() - self._started)


@contextmanager
def failures_of(model: ServedModel | ModelReference) -> Iterator[None]:
    """Errors that leave the block say which model the request had been routed to."""
    version = model.version if isinstance(model, ServedModel) else None
    try:
        yield
    except ServiceError as error:
        error.routed_to = (model.variant, version)
        raise
