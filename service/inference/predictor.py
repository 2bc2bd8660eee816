"""The use case: where are the 21 keypoints of each hand in this image?

`Predictor.estimate` is the one core behind every protocol. It decodes the image, crops each hand to the model's input,
waits for a micro-batch, and maps the keypoints back to the image. It knows no protocol, no model server and no metrics
library; it speaks to `service.inference.ports` and calls the pure functions of `service.pose`.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.inference.decoding import ImageDecoder
from service.inference.errors import InternalError, ServiceError, TooLargeError, UnavailableError, UnknownModelError
from service.inference.estimates import Estimate, EstimateRequest, Hand, Timings
from service.inference.model_queue import Answer, BatchingPolicy, ModelQueue, Place
from service.inference.models import ModelReference, ServedModel
from service.inference.ports import Backend, Clock, Observer, Phase
from service.inference.regions import Region, longest_side_needed, regions_to_show
from service.inference.routing import Route, Router
from service.inference.shadow import Shadow
from service.pose.heatmaps import STRIDE, decode
from service.pose.images import DecodedImage
from service.pose.keypoints import CHANNEL_COUNT
from service.pose.preprocessing import Crop, crop
from service.pose.second_look import ENOUGH, LEAST_SHARE, region_to_look_closer

BeliefMaps = NDArray[np.float32]
Queue = ModelQueue[Crop, BeliefMaps]


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
        second_look: whether a hand found in a whole picture is looked at again in a crop of its own.
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
        second_look: bool = False,
    ) -> None:
        self._backend = backend
        self._router = router
        self._decoder = decoder
        self._observer = observer
        self._clock = clock
        self._batching = batching
        self._max_rois = max_rois
        self._shadow = shadow
        self._second_look = second_look
        self._queues: dict[tuple[str, int], Queue] = {}
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
            with stopwatch.phase(Phase.DECODE):
                async with self._decoder.open(
                    request.image, deadline=request.deadline, longest_side=partial(self._longest_side, request, model)
                ) as image:
                    regions = regions_to_show(request.rois, image.size)
                    crops = await image.crops(regions, model.input_size)
                    overview = await image.small_copy(_overview_side(model)) if self._looks_again(request) else None
            answer = await place.run(crops)  # the photo is gone by now
            with stopwatch.phase(Phase.POSTPROCESS):
                hands = hands_in_image(crops, answer.results, regions)
            stopwatch.ran(answer)
            if overview is not None:
                hands = await self._look_closer(overview, hands, place, request, model, stopwatch)
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
        await asyncio.gather(*(queue.close() for queue in self._queues.values()))

    def _admit(self, request: EstimateRequest) -> None:
        if self._draining:
            raise UnavailableError("the service is shutting down; send the request again", retry_after_s=1.0)
        if len(request.rois) > self._max_rois:
            raise TooLargeError(
                f"{len(request.rois)} rois were given; at most {self._max_rois} are allowed", code="too_many_rois"
            )

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

    def _place_for(
        self, request: EstimateRequest, model: ServedModel
    ) -> AbstractContextManager[Place[Crop, BeliefMaps]]:
        key = (model.name, model.version)
        if key not in self._queues:
            self._queues[key] = ModelQueue(
                model,
                partial(self._run_batch, model),
                policy=self._batching,
                clock=self._clock,
                observer=self._observer,
            )
        return self._queues[key].place(
            items=max(1, len(request.rois)), deadline=request.deadline, priority=request.priority
        )

    async def _run_batch(self, model: ServedModel, crops: Sequence[Crop], deadline: float) -> Sequence[BeliefMaps]:
        maps = await self._backend.predict(
            model, [each.pixels for each in crops], timeout_s=deadline - self._clock.time()
        )
        width, height = model.input_size
        expected = (len(crops), height // STRIDE, width // STRIDE, CHANNEL_COUNT)
        if maps.shape != expected:
            raise InternalError(f"{model.name} returned belief maps of shape {maps.shape}, expected {expected}")
        return list(maps)

    # A second look at a hand that was found in a whole picture

    def _looks_again(self, request: EstimateRequest) -> bool:
        return self._second_look and not request.rois

    def _longest_side(self, request: EstimateRequest, model: ServedModel, image_size: tuple[int, int]) -> int:
        """How many pixels the picture's longer side needs. Raises InvalidInputError before the picture is decoded."""
        if self._looks_again(request):
            return _overview_side(model)
        return longest_side_needed(regions_to_show(request.rois, image_size), image_size, model.input_size)

    async def _look_closer(
        self,
        overview: DecodedImage,
        first: tuple[Hand, ...],
        place: Place[Crop, BeliefMaps],
        request: EstimateRequest,
        model: ServedModel,
        stopwatch: "Stopwatch",
    ) -> tuple[Hand, ...]:
        """The hand as a crop of its own shows it, where that is surer; the first look where it is not, or fails.

        Under load, when there may not be as much time again, the first look stands.
        """
        size = overview.width, overview.height
        region = region_to_look_closer(first[0].keypoints_in_image, first[0].scores, size)
        if region is None or request.deadline - self._clock.time() <= 2 * stopwatch.elapsed_s:
            return first
        with suppress(ServiceError), self._observer.part("second_look"):
            shown = await self._decoder.run(crop, overview, region, model.input_size)
            answer = await place.run([shown])
            hands = hands_in_image([shown], answer.results, [Region(first[0].box_in_image, region)])
            if hands[0].score >= LEAST_SHARE * first[0].score:
                stopwatch.ran(answer)
                return hands
        return first


class Stopwatch:
    """Measures where a request's time goes, and tells the observer of each phase as it runs."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._started = clock.time()
        self._seconds = dict.fromkeys(Phase, 0.0)

    @property
    def elapsed_s(self) -> float:
        return self._clock.time() - self._started

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The block is this phase."""
        started = self._clock.time()
        with self._observer.part(phase.value):
            yield
        self._seconds[phase] += self._clock.time() - started

    def ran(self, answer: Answer[BeliefMaps]) -> None:
        """Count the time in the queue and in the model."""
        self._seconds[Phase.QUEUE] += answer.queued_s
        self._seconds[Phase.INFERENCE] += answer.ran_s

    def timings(self) -> Timings:
        return Timings(**{phase.value: seconds for phase, seconds in self._seconds.items()}, total=self.elapsed_s)


@contextmanager
def failures_of(model: ServedModel | ModelReference) -> Iterator[None]:
    """Errors that leave the block say which model the request had been routed to."""
    version = model.version if isinstance(model, ServedModel) else None
    try:
        yield
    except ServiceError as error:
        error.routed_to = (model.variant, version)
        raise


def hands_in_image(
    crops: Sequence[Crop], belief_maps: Sequence[BeliefMaps], regions: Sequence[Region]
) -> tuple[Hand, ...]:
    """The hand in each crop, its keypoints mapped back to the image.

    Args:
        crops: N crops.
        belief_maps: for each crop float32 [H / 8, W / 8, 22].
        regions: for each crop, what it shows.
    """
    found = decode(np.stack(belief_maps))
    return tuple(
        Hand(
            box_in_image=region.box_in_image,
            keypoints_in_image=shown.to_image(found.in_input[index]),
            scores=found.scores[index],
            sigmas=found.sigmas[index].astype(np.float64) * (STRIDE * shown.image_pixels_per_input_pixel),
        )
        for index, (shown, region) in enumerate(zip(crops, regions, strict=True))
    )


def _overview_side(model: ServedModel) -> int:
    """How many pixels the longer side of a whole picture needs to be looked at twice."""
    return math.ceil(max(model.input_size) * ENOUGH)
