"""A backend without models: it answers what the test says, when the test says so."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.errors import ServiceError, UnavailableError, UnknownModelError
from service.inference.models import AnyModel, ModelReference, ServedDetector, ServedModel
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from service.pose.heatmaps import STRIDE, encode
from service.pose.keypoints import KEYPOINT_COUNT
from service.pose.preprocessing import CROP_PADDING
from tests.support.models import DETECTOR_SIZE, served_detector, served_model

Crops = Sequence[NDArray[np.uint8]]
Maps = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Call:
    """One batch as the backend got it."""

    model: AnyModel
    crops: Crops
    timeout_s: float


class FakeBackend:
    """Implements `service.inference.ports.Backend`.

    Without further orders its detector sees one upright hand in every picture, of a size that has the model see all of
    the picture, and its models find the same hand, `spread_keypoints`, in every crop. What it can be told:

    * `detections` are the rows that the detector answers for every picture (`detection` makes one);

    * `answer` computes the belief maps of a batch in another way;
    * `failure` is raised instead of an answer: a ServiceError as the port promises, or anything else as a broken
      backend would;
    * `hold()` keeps every batch from answering until `release()`; `await arrived(n)` waits for the n-th batch;
    * `trouble` is what `not_ready` says.

    Attributes:
        calls: the batches of crops that came, in order.
        searches: the batches of whole pictures that came, in order.
    """

    def __init__(self, *models: ServedModel, answer: Callable[[Crops], Maps] | None = None) -> None:
        self._models = list(models or (served_model("standard"), served_model("lightweight")))
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._arrival = asyncio.Condition()
        self.answer = answer or same_hand_everywhere
        self.failure: Exception | None = None
        self.trouble: str | None = None
        self.calls: list[Call] = []
        self.searches: list[Call] = []
        self.detections: Sequence[Sequence[float]] = (detection(),)
        self.without_detector = False

    def models(self) -> Sequence[ServedModel]:
        return tuple(self._models)

    def resolve(self, reference: ModelReference) -> ServedModel:
        candidates = [each for each in self._models if each.variant == reference.variant]
        if reference.version is not None:
            candidates = [each for each in candidates if each.version == reference.version]
        if reference.label is not None:
            candidates = [each for each in candidates if reference.label in each.labels]
        if not candidates:
            raise UnknownModelError(f"there is no model {reference}", code="unknown_version")
        return max(candidates, key=lambda each: each.version)

    def detector(self) -> ServedDetector:
        if self.without_detector:
            raise UnavailableError("there is no hand detector", code="no_detector")
        return served_detector()

    async def predict(self, model: AnyModel, crops: Crops, *, timeout_s: float) -> Maps:
        if isinstance(model, ServedDetector):
            self.searches.append(Call(model, crops, timeout_s))
            return rows_of(len(crops), self.detections)
        self.calls.append(Call(model, crops, timeout_s))
        async with self._arrival:
            self._arrival.notify_all()
        await self._may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return self.answer(crops)

    async def not_ready(self) -> str | None:
        return self.trouble

    def hold(self) -> None:
        """Keep batches from answering."""
        self._may_answer.clear()

    def release(self) -> None:
        """Let the batches that are held, and all later ones, answer."""
        self._may_answer.set()

    async def arrived(self, batches: int = 1) -> None:
        """Return once this many batches have come in all."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: len(self.calls) >= batches)


def rows_of(pictures: int, detections: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """The same detections for each of so many pictures, as the detector answers them."""
    rows = np.zeros((pictures, DETECTIONS, len(DETECTION_COLUMNS)), np.float32)
    if detections:
        rows[:, : len(detections)] = detections
    return rows


def detection(
    x: float = 0.5,
    y: float = 0.5,
    size: float = 1 / CROP_PADDING,
    *,
    score: float = 1.0,
    degrees: float = 0.0,
    right: float = 1.0,
) -> tuple[float, ...]:
    """A row of the detector: a hand at this share of its input's width and height, this large, turned clockwise."""
    radians = math.radians(degrees - 90)
    side = DETECTOR_SIZE
    return score, x * side, y * side, size * side, math.cos(radians), math.sin(radians), right


def failing_backend(failure: ServiceError) -> FakeBackend:
    """A backend whose every batch fails like this."""
    backend = FakeBackend()
    backend.failure = failure
    return backend


def spread_keypoints(input_size: int) -> NDArray[np.float32]:
    """21 keypoints well inside a square input of this side: float32 [21, 2], (x, y) in input pixels.

    No two share an x or a y, so that a swapped axis or a wrong order shows.
    """
    steps = np.arange(KEYPOINT_COUNT, dtype=np.float32) / (KEYPOINT_COUNT - 1)
    order = (np.arange(KEYPOINT_COUNT) * 8) % KEYPOINT_COUNT
    margin, span = 0.25 * input_size, 0.5 * input_size
    return np.stack((margin + span * steps, margin + span * steps[order]), axis=-1)


def maps_of(keypoints_in_input: NDArray[np.floating], input_size: int) -> Maps:
    """Perfect belief maps [N, size / 8, size / 8, 22] of keypoints [N, 21, 2] (x, y) in input pixels."""
    cells = input_size // STRIDE
    labelled = np.ones(keypoints_in_input.shape[:-1], np.bool_)
    return encode(keypoints_in_input / STRIDE, labelled, (cells, cells))


def same_hand_everywhere(crops: Crops) -> Maps:
    """Belief maps of `spread_keypoints`, for each crop."""
    size = crops[0].shape[0]
    return maps_of(np.repeat(spread_keypoints(size)[None], len(crops), axis=0), size)


def hand_where_crop_is_marked(crops: Crops) -> Maps:
    """Belief maps with all keypoints at the centre of gravity of each crop's red: tells whose answer an answer is."""
    size = crops[0].shape[0]
    centres = np.arange(size) + 0.5
    points = []
    for crop in crops:
        red = crop[..., 0].astype(np.float64) * (crop[..., 1] < 64)
        total = max(red.sum(), 1e-9)
        points.append(((red.sum(axis=0) * centres).sum() / total, (red.sum(axis=1) * centres).sum() / total))
    return maps_of(np.repeat(np.array(points, np.float32)[:, None], KEYPOINT_COUNT, axis=1), size)
