"""The use case: where are the 21 keypoints of each hand in this image?

`Predictor.estimate` is the one core behind every protocol. It decodes the image, crops each hand to the model's input,
waits for a micro-batch, and maps the keypoints back to the image. It knows no protocol, no model server and no metrics
library; it speaks to `service.inference.ports` and calls the pure functions of `service.pose`.
"""

import asyncio
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.inference.batching import Answer, BatchingPolicy, MicroBatcher, Priority
from service.inference.errors import (
    DeadlineExceededError,
    FieldError,
    InternalError,
    InvalidInputError,
    ServiceError,
    TooLargeError,
    UnavailableError,
    UndecodableImageError,
    UnknownModelError,
    UnsupportedTypeError,
)
from service.inference.memory import DECODING_BYTES, SMALL_IMAGE_BYTES, DecodingRoom, Hold
from service.inference.models import ModelReference, ServedModel
from service.inference.ports import Backend, Clock, DropReason, Observer, RejectReason, ReleaseReason, Stage
from service.inference.routing import Route, RoutedBy, Router
from service.inference.shadow import Shadow
from service.inference.tracing import SPAN, Span, entered, part
from service.pose.geometry import Affine, Box
from service.pose.heatmaps import STRIDE, DecodedKeypoints, decode
from service.pose.images import (
    DecodedImage,
    ImageError,
    ImageTooLargeError,
    OpenedImage,
    UnsupportedImageError,
    is_short_photo,
    open_image,
)
from service.pose.keypoints import CHANNEL_COUNT
from service.pose.preprocessing import crop, hand_box_to_crop
from service.pose.second_look import ENOUGH, LEAST_SHARE, region_to_look_closer, small_copy

T = TypeVar("T")

_DECODED_TOGETHER: Final = 4  # crops whose maps are decoded at once; more no longer fit the processor's cache

_IN_A_TURN: Final = 4  # small photos decoded in one turn of the event loop; with one, batches would stay small

_QUICK_CROP_PIXELS: Final = 4 * 128 * 128  # of all crops of a small photo together

_ROI_SLACK: Final = 1e-3  # pixels by which sums of fractions may reach over the edge


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_pixels: width x height of an image.
        max_rois: regions of interest in one image.
    """

    max_pixels: int = 50_000_000
    max_rois: int = 16


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    """One image and what is wanted of it.

    Attributes:
        image: the bytes of an image file.
        deadline: the clock's time after which the answer is of no use.
        rois: boxes in pixels of the upright image, one a hand; none means that the whole image shows one hand.
        asked_for: the model that the request names, such as "lightweight" or "standard@2".
        client_id: who sends it, if that is known; a client's requests all go the same way.
        priority: whether somebody waits for the answer.
        full_picture: whether `Estimate.picture` must hold the pixels, to be drawn on.
    """

    image: bytes
    deadline: float
    rois: tuple[Box, ...] = ()
    asked_for: str | None = None
    client_id: str | None = None
    priority: Priority = Priority.INTERACTIVE
    full_picture: bool = False


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand's keypoints in the upright image.

    Attributes:
        box_in_image: the region that was asked about: the roi, or the whole image.
        keypoints_in_image: float64 [21, 2], (x, y) in continuous pixels; may lie outside the image.
        scores: float32 [21] in [0, 1].
        sigmas: float64 [21], spread of the belief about each keypoint, in pixels of the image.
    """

    box_in_image: Box
    keypoints_in_image: NDArray[np.float64]
    scores: NDArray[np.float32]
    sigmas: NDArray[np.float64]

    @property
    def score(self) -> float:
        """Confidence in the hand as a whole: the mean over its keypoints."""
        return math.fsum(self.scores.tolist()) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; with several hands, the longest of each."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float


@dataclass(frozen=True, slots=True)
class Picture:
    """The upright picture that was asked about.

    Attributes:
        width: in pixels.
        height: in pixels.
        pixels: RGB, of this size; only where the request wanted them (`EstimateRequest.full_picture`).
    """

    width: int
    height: int
    pixels: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The answer: one `Hand` for each roi, in the order of the rois."""

    model: ServedModel
    routed_by: RoutedBy
    picture: Picture
    hands: tuple[Hand, ...]
    timings: Timings

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.timings.total

    def keypoints_over_box(self) -> list[NDArray[np.float64]]:
        """Each hand's keypoints [21, 2] in the image over the longer side of its box, to compare answers by."""
        return [hand.keypoints_in_image / max(hand.box_in_image.width, hand.box_in_image.height) for hand in self.hands]


@dataclass(frozen=True, slots=True)
class _Crop:
    """One hand, ready for the model: input uint8 [H, W, 3], where it came from, and the way back."""

    box_in_image: Box
    pixels: NDArray[np.uint8]
    image_to_input: Affine
    spans: "_Spans"


@dataclass(slots=True)
class _Spans:
    """What a request's crops take with them into a batch: the request's span, and that of its wait in the queue."""

    request: Span
    queue: Span


class _Maps:
    """Belief maps of crops that ran together, float32 [N, H / 8, W / 8, 22], decoded once when the first is asked for.

    Decoding several costs little more than decoding one, and the model's slot is free again by then.
    """

    def __init__(self, maps: NDArray[np.float32]) -> None:
        self._maps = maps

    @cached_property
    def decoded(self) -> DecodedKeypoints:
        return decode(self._maps)


# From a crop to the maps that it ran with, and its place in them.
Batcher = MicroBatcher[_Crop, tuple[_Maps, int]]


class Predictor:
    """Answers requests with a backend's models, batching them on the way.

    Args:
        backend: runs the models.
        router: chooses one for each request.
        observer: is told what happens.
        clock: time and timers; request deadlines are in its time.
        workers: threads for decoding and other work that must not block the event loop.
        batching: sizes and waits of every model's queue.
        limits: what one request may ask for.
        room: turns for decoding large images; None: as many bytes as by default, for one thread.
        shadow: sends copies of requests where the router says so; None sends none.
        second_look: whether a hand found in a whole picture is looked at again in a crop of its own.
        small_photos_here: whether small photos are decoded on the event loop, which costs the least; else in threads,
            which makes use of more cores.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        router: Router,
        observer: Observer,
        clock: Clock,
        workers: Executor,
        batching: BatchingPolicy,
        limits: Limits,
        room: DecodingRoom | None = None,
        shadow: Shadow | None = None,
        second_look: bool = False,
        small_photos_here: bool = True,
    ) -> None:
        self._backend = backend
        self._router = router
        self._observer = observer
        self._clock = clock
        self._workers = workers
        self._batching = batching
        self._limits = limits
        self._room = room or DecodingRoom(DECODING_BYTES, clock)
        self._shadow = shadow
        self._second_look = second_look
        self._small_photos_here = small_photos_here
        self._batchers: dict[tuple[str, int], Batcher] = {}
        self._turns = asyncio.Semaphore(_IN_A_TURN)
        self._draining = False

    async def estimate(self, request: EstimateRequest) -> Estimate:
        """Find the hands of one image.

        Raises:
            ServiceError: one of the tree in `service.inference.errors`, and nothing else.
        """
        self._refuse_while_draining()
        self._check_number_of_rois(request.rois)
        route, model = self._choose_model(request)
        SPAN.get().annotate(variant=model.variant, version=model.version, routed_by=route.routed_by)
        try:
            estimate = await self._estimate_with(model, request, route.routed_by)
        except ServiceError as error:
            error.routed_to = model
            raise
        if route.shadow is not None and self._shadow is not None:
            self._shadow.send(route.shadow, estimate, partial(self._repeat, request, route.shadow))
        return estimate

    async def drain(self) -> None:
        """Refuse new requests, and return when every accepted one has its answer."""
        self._draining = True
        if self._shadow is not None:
            await self._shadow.stop()
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    def _choose_model(self, request: EstimateRequest) -> tuple[Route, ServedModel]:
        route = self._router.route(request.asked_for, request.client_id)
        try:
            try:
                return route, self._backend.resolve(route.reference)
            except (UnknownModelError, UnavailableError):
                if route.otherwise is None:
                    raise
                return route.otherwise, self._backend.resolve(route.otherwise.reference)
        except ServiceError as error:
            error.routed_to = route.reference
            raise

    async def _repeat(self, request: EstimateRequest, reference: ModelReference, deadline: float) -> Estimate:
        """Answer a request that has been answered once more, with another model and behind everybody else."""
        self._refuse_while_draining()
        model = self._backend.resolve(reference)
        copy = replace(request, deadline=deadline, priority=Priority.BULK, full_picture=False)
        with part("shadow", variant=model.variant, version=model.version):
            return await self._estimate_with(model, copy, "default")

    async def _estimate_with(self, model: ServedModel, request: EstimateRequest, routed_by: RoutedBy) -> Estimate:
        started = self._clock.time()
        batcher = self._batcher_of(model)
        with batcher.reserve(max(1, len(request.rois)), deadline=request.deadline, priority=request.priority):
            spans = _Spans(SPAN.get(), SPAN.get())
            with part("decode", image_bytes=len(request.image), hands=max(1, len(request.rois))) as decoding:
                picture, crops, to_look_at_again = await self._decode_and_crop(request, model, spans)
                decoding.annotate(image_width=picture.width, image_height=picture.height)
            decode_s = self._clock.time() - started
            spans.queue = spans.request.child("queue")
            with entered(spans.queue):  # ends when the first of its crops leaves the queue, or here if none ever does
                answers = await batcher.submit_all(crops, deadline=request.deadline, priority=request.priority)
            answered = self._clock.time()
            with part("postprocess"):
                # A sixth of a millisecond a hand: in a thread it would wait behind images that are being decoded.
                hands = _find_hands(crops, [answer.result for answer in answers])
            postprocess_s = self._clock.time() - answered
            queue_s = max(answer.queued_s for answer in answers)
            inference_s = max(answer.ran_s for answer in answers)
            if to_look_at_again is not None and self._is_time_for_another(request, started):
                with part("second_look"):
                    closer = await self._look_closer(batcher, model, request, to_look_at_again, hands[0])
                if closer is not None:
                    hands, again = closer
                    queue_s, inference_s = queue_s + again.queued_s, inference_s + again.ran_s
        finished = self._clock.time()
        timings = Timings(
            decode=decode_s,
            queue=queue_s,
            inference=inference_s,
            postprocess=postprocess_s,
            total=finished - started,
        )
        self._report(model, hands, timings)
        return Estimate(model, routed_by, picture, hands, timings)

    def _is_time_for_another(self, request: EstimateRequest, started: float) -> bool:
        """Whether there is time for as long again as everything so far has taken. Under load there is not."""
        now = self._clock.time()
        return request.deadline - now > 2 * (now - started)

    async def _look_closer(
        self, batcher: Batcher, model: ServedModel, request: EstimateRequest, image: DecodedImage, first: Hand
    ) -> tuple[tuple[Hand, ...], Answer[tuple[_Maps, int]]] | None:
        """The hand as a crop of its own shows it; None where there is none to make, or it tells less than the whole.

        The place in the queue is the one that the whole picture had. If anything fails, the first look stands.
        """
        region = region_to_look_closer(first.keypoints_in_image, first.scores, (image.width, image.height))
        if region is None:
            return None
        spans = _Spans(SPAN.get(), SPAN.get().child("queue"))
        with suppress(ServiceError), entered(spans.queue):
            pixels, image_to_input = await self._in_turn(crop, image, region, model.input_size)
            shown = _Crop(first.box_in_image, pixels, image_to_input, spans)
            answer = await batcher.submit(shown, deadline=request.deadline, priority=request.priority)
            hands = _find_hands([shown], [answer.result])
            return (hands, answer) if hands[0].score >= LEAST_SHARE * first.score else None
        return None

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise UnavailableError("the service is shutting down; send the request again", retry_after_s=1.0)

    def _check_number_of_rois(self, rois: Sequence[Box]) -> None:
        if len(rois) > self._limits.max_rois:
            raise TooLargeError(
                f"{len(rois)} rois were given; at most {self._limits.max_rois} are allowed",
                code="too_many_rois",
            )

    def _batcher_of(self, model: ServedModel) -> Batcher:
        key = (model.name, model.version)
        if key not in self._batchers:

            async def run(crops: Sequence[_Crop], deadline: float) -> Sequence[tuple[_Maps, int]]:
                return await self._run_batch(model, crops, deadline)

            self._batchers[key] = MicroBatcher(
                run,
                policy=self._batching,
                clock=self._clock,
                observer=_ModelObserver(model, self._observer),
            )
        return self._batchers[key]

    async def _decode_and_crop(self, request: EstimateRequest, model: ServedModel, spans: _Spans) -> "_Cut":
        keep = request.full_picture
        if self._small_photos_here and not keep and is_short_photo(request.image):
            cut = await self._in_turn(self._cut_if_quick, request, model, spans)
            if cut is not None:
                return cut
        ready = await self._in_thread(self._open, request, model, spans)
        if not isinstance(ready, _Large):
            return ready
        async with self._room.turn(ready.image.bytes_needed, deadline=request.deadline, keep=keep) as hold:
            cut = await self._in_thread(_cut, ready, model, spans, keep=keep)
        if cut.picture.pixels is not None:
            _release_with(cut.picture.pixels, hold, asyncio.get_running_loop())
        return cut

    def _cut_if_quick(self, request: EstimateRequest, model: ServedModel, spans: _Spans) -> "_Cut | None":
        """Read the header, and decode and crop what takes a few milliseconds at the most."""
        opened = self._header_of(request, model)
        shown = len(opened.regions) * math.prod(model.input_size)
        return _cut(opened, model, spans) if opened.image.is_quick and shown <= _QUICK_CROP_PIXELS else None

    def _open(self, request: EstimateRequest, model: ServedModel, spans: _Spans) -> "_Cut | _Large":
        """Read the header. An image that takes little memory is decoded and cropped right away."""
        large = self._header_of(request, model)
        if large.image.bytes_needed <= SMALL_IMAGE_BYTES and not request.full_picture:
            return _cut(large, model, spans)
        large.image.set_aside()
        return large

    def _header_of(self, request: EstimateRequest, model: ServedModel) -> "_Large":
        if self._clock.time() >= request.deadline:
            raise DeadlineExceededError("the request's time was up before its image could be decoded")
        with _image_errors():
            image = open_image(request.image, max_pixels=self._limits.max_pixels)
        again = math.ceil(max(model.input_size) * ENOUGH) if self._second_look and not request.rois else None
        regions = _regions_to_show(request.rois, image)
        if not request.full_picture:
            # The smaller a region, the more of the picture's pixels its crop needs.
            least = min(max(region.width, region.height) for _, region in regions)
            image.shrink(again or math.ceil(max(model.input_size) * max(image.width, image.height) / least))
        return _Large(image, regions, again)

    async def _run_batch(
        self, model: ServedModel, crops: Sequence[_Crop], deadline: float
    ) -> Sequence[tuple[_Maps, int]]:
        pixels = [crop.pixels for crop in crops]
        with _inference_of(crops, model):
            maps = await self._backend.predict(model, pixels, timeout_s=deadline - self._clock.time())
        width, height = model.input_size
        expected = (len(crops), height // STRIDE, width // STRIDE, CHANNEL_COUNT)
        if maps.shape != expected:
            raise InternalError(f"{model.name} returned belief maps of shape {maps.shape}, expected {expected}")
        shares = [_Maps(maps[start : start + _DECODED_TOGETHER]) for start in range(0, len(maps), _DECODED_TOGETHER)]
        return [(shares[index // _DECODED_TOGETHER], index % _DECODED_TOGETHER) for index in range(len(maps))]

    async def _in_turn(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run what takes a few milliseconds at the most on the event loop, a few in one of its turns.

        A thread has to be woken and wakes the event loop, and in between both wait for the interpreter's lock: for a
        small photo that is a quarter of all the processor time that its request takes.
        """
        await self._turns.acquire()
        try:
            return function(*arguments, **named)
        finally:
            asyncio.get_running_loop().call_soon(self._turns.release)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run it in a worker thread. Who is cancelled meanwhile waits for its end: threads cannot be stopped.

        Thus whatever the caller holds for the work, turns and memory, stays held until the memory is free.
        """
        call = [partial(function, *arguments, **named)]

        def begin() -> T:
            return call.pop()()

        work = self._workers.submit(begin)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            await _ended(work)
            call.clear()  # what the pool has not begun it keeps until a thread comes to it
            raise
        finally:
            del work  # it holds what was raised, which holds this frame, which holds the image

    def _report(self, model: ServedModel, hands: Sequence[Hand], timings: Timings) -> None:
        for stage in Stage:
            self._observer.stage_finished(model, stage, getattr(timings, stage.value))
        for hand in hands:
            self._observer.hand_found(model, hand.scores)


@dataclass(frozen=True, slots=True)
class _ModelObserver:
    """A batcher's view of the observer: the model is always the same."""

    model: ServedModel
    observer: Observer

    def batch_released(self, size: int, reason: ReleaseReason) -> None:
        self.observer.batch_released(self.model, size, reason)

    def queue_changed(self, depth: int) -> None:
        self.observer.queue_changed(self.model, depth)

    def request_dropped(self, reason: DropReason) -> None:
        self.observer.request_dropped(self.model, reason)

    def request_rejected(self, reason: RejectReason) -> None:
        self.observer.request_rejected(self.model, reason)


class _inference_of:  # noqa: N801 -- used like a function
    """The block runs this batch: the end of the wait, and a span, for each request that has crops in it."""

    __slots__ = ("_running", "_seen")

    def __init__(self, crops: Sequence[_Crop], model: ServedModel) -> None:
        self._running: list[Span] = []
        for spans in {id(each.spans): each.spans for each in crops}.values():
            spans.queue.end()
            self._running.append(
                spans.request.child("inference", variant=model.variant, version=model.version, batch_size=len(crops))
            )
        # The backend can pass one trace on only.
        self._seen = entered(next((span for span in self._running if span.traceparent is not None), self._running[0]))

    def __enter__(self) -> None:
        self._seen.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._seen.__exit__(kind, error, traceback)
        for span in self._running:
            span.end(error)


@dataclass(frozen=True, slots=True)
class _Large:
    """An image that waits for its turn to be decoded, and what is asked about.

    Attributes:
        image: its header has been read.
        regions: for each hand, the box that was asked about and the region to show.
        again: how long the longer side of a copy to look at again is, in pixels; None for no copy.
    """

    image: OpenedImage
    regions: list[tuple[Box, Box]]
    again: int | None


class _Cut(NamedTuple):
    """What an image becomes: crops for the model, and perhaps a small copy of it to look at again."""

    picture: Picture
    crops: list[_Crop]
    again: DecodedImage | None


def _cut(large: _Large, model: ServedModel, spans: _Spans, *, keep: bool = False) -> _Cut:
    with _image_errors():
        decoded = large.image.decode()
    crops = []
    for box, region in large.regions:
        pixels, image_to_input = crop(decoded, region, model.input_size)
        crops.append(_Crop(box, pixels, image_to_input, spans))
    # The pixels can be a hundred megabytes: they are let go before the wait, unless somebody draws on them.
    picture = Picture(decoded.width, decoded.height, decoded.pixels if keep else None)
    return _Cut(picture, crops, None if large.again is None else small_copy(decoded, large.again))


def _release_with(pixels: Image.Image, hold: Hold, loop: asyncio.AbstractEventLoop) -> None:
    """Give the hold back when the picture, which outlives the request here, is forgotten; in whatever thread."""

    def release() -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(hold.release)

    weakref.finalize(pixels, release).atexit = False


async def _ended(work: "Future[Any]") -> None:
    """Return when a thread is done with the work, however often this is cancelled; at once if it has not begun."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: "Future[Any]") -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    if work.cancel():
        return
    work.add_done_callback(tell)
    while not ended.is_set():
        with suppress(asyncio.CancelledError):
            await ended.wait()


@contextmanager
def _image_errors() -> Iterator[None]:
    """What is wrong with an image, in the words of the tree."""
    try:
        yield
    except UnsupportedImageError as error:
        raise UnsupportedTypeError(str(error), code="unsupported_image_format") from error
    except ImageTooLargeError as error:
        raise TooLargeError(str(error), code="too_many_pixels") from error
    except ImageError as error:
        raise UndecodableImageError(str(error)) from error


def _regions_to_show(rois: Sequence[Box], picture: OpenedImage) -> list[tuple[Box, Box]]:
    """For each hand, the box that was asked about and the region to show to the model, both in the image."""
    if not rois:
        whole = Box(0.0, 0.0, float(picture.width), float(picture.height))
        return [(whole, whole)]
    wrong = [
        FieldError(f"roi[{index}]", message)
        for index, roi in enumerate(rois)
        if (message := _whats_wrong_with(roi, picture)) is not None
    ]
    if wrong:
        raise InvalidInputError(f"{wrong[0].field}: {wrong[0].message}", code="invalid_roi", errors=wrong)
    return [(roi, hand_box_to_crop(roi)) for roi in rois]


def _whats_wrong_with(roi: Box, picture: OpenedImage) -> str | None:
    if not np.isfinite((roi.x, roi.y, roi.width, roi.height)).all():
        return "x, y, width and height must be finite numbers"
    if roi.width < 1 or roi.height < 1:
        return f"width and height must be at least 1 pixel, got {roi.width:g} x {roi.height:g}"
    beyond = max(-roi.x, -roi.y, roi.x + roi.width - picture.width, roi.y + roi.height - picture.height)
    if beyond > _ROI_SLACK:
        return (
            f"it must lie inside the image, which is {picture.width} x {picture.height} pixels;"
            f" got x={roi.x:g}, y={roi.y:g}, width={roi.width:g}, height={roi.height:g}"
        )
    return None


def _find_hands(crops: Sequence[_Crop], shares: Sequence[tuple[_Maps, int]]) -> tuple[Hand, ...]:
    """The hand in each crop, mapped back to the image."""
    hands = []
    for shown, (maps, index) in zip(crops, shares, strict=True):
        decoded, input_to_image = maps.decoded, shown.image_to_input.inverse()
        hands.append(
            Hand(
                box_in_image=shown.box_in_image,
                keypoints_in_image=input_to_image.apply(decoded.in_heatmap[index] * STRIDE),
                scores=decoded.scores[index],
                sigmas=decoded.sigmas[index].astype(np.float64) * (STRIDE * input_to_image.scale),
            )
        )
    return tuple(hands)
