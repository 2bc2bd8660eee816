"""From samples to training batches: decode, crop, vary, encode targets, in processes that stay ahead of the trainer.

Batch number k depends on the seed and on k only, never on what was built before it. So a resumed training sees exactly
the batches that an uninterrupted one would have seen, and any number of workers gives the same batches.

Everything is NumPy and Pillow; any Keras backend can be fed from it. Crops stay bytes until they are on the device: a
quarter of what has to be moved between processes and to a GPU.
"""

import copy
import math
import multiprocessing
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine
from service.pose.heatmaps import STRIDE, encode
from service.pose.images import DecodedImage, ImageError, decode_image
from service.pose.preprocessing import hand_box_to_crop, show
from trainer.data import worker_process
from trainer.data.augment import NO_AUGMENTATION, AugmentConfig, draw, handedness_after, photometric
from trainer.data.label_trust import FULL_TRUST, LabelTrust
from trainer.data.sample import BadSampleError, Handedness, OnBad, Sample, refuse_bad
from trainer.data.sources import WeightedSamples
from trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's worth of training data.

    Attributes:
        crops: uint8 RGB [N, H, W, 3].
        targets: float32 [N, H/8, W/8, 22], beliefs in [0, 1].
        weights: float32 [N, 22], how much each map counts in the loss; 0 where it is unknown.
    """

    crops: NDArray[np.uint8]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]


def to_model_input(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 RGB in [0, 255] to the float32 in [-0.5, 0.5] that the networks expect; any shape."""
    return crops.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)


_SPARE = 1.5  # pixels kept across a crop for one of the input, so that keeping less than all blurs nothing


def reductions(samples: Sequence[Sample], input_size: int) -> dict[Path, float]:
    """How far pictures may be scaled down, by path, so that each hand's crop stays sharp at this input size (pixels).

    Factors are below 1; pictures that are needed as they are have none.
    """
    sides: dict[Path, float] = {}
    for sample in samples:
        side = hand_box_to_crop(sample.box_in_image).width
        sides[sample.image_path] = min(side, sides.get(sample.image_path, math.inf))
    enough = _SPARE * input_size
    return {path: enough / side for path, side in sides.items() if side > enough}


class ImageStore:
    """Decoded pictures, perhaps reduced to what training needs, kept in memory up to a limit. Safe across threads."""

    def __init__(self, reduced: Mapping[Path, float] | None = None, *, memory_bytes: int = 2 * 1024**3) -> None:
        """
        Args:
            reduced: the factors, below 1, by which pictures are scaled down (`reductions`); others stay as they are.
            memory_bytes: pictures beyond this much are decoded each time instead of kept.
        """
        self._factors = dict(reduced or {})
        self._memory_bytes = memory_bytes
        self._memory_left = memory_bytes
        self._kept: dict[Path, DecodedImage] = {}
        self._lock = threading.Lock()

    def share(self, parts: int) -> "ImageStore":
        """An empty store with this one's settings and one of so many equal parts of its memory."""
        return ImageStore(self._factors, memory_bytes=self._memory_bytes // parts)

    def __reduce__(self) -> tuple[Callable[[], "ImageStore"], tuple[()]]:
        # Sent to another process, it arrives empty.
        return partial(ImageStore, self._factors, memory_bytes=self._memory_bytes), ()

    def get(self, path: Path) -> DecodedImage:
        """The upright picture. BadSampleError names the file if it is missing or broken."""
        with self._lock:
            kept = self._kept.get(path)
        if kept is not None:
            return kept
        picture = _scaled(_decoded(path), self._factors.get(path, 1.0))
        size = 3 * picture.pixels.width * picture.pixels.height
        with self._lock:
            if path not in self._kept and size <= self._memory_left:
                self._memory_left -= size
                self._kept[path] = picture
        return picture


def _scaled(picture: DecodedImage, factor: float) -> DecodedImage:
    if factor >= 1.0:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.pixels.size)
    return DecodedImage(
        picture.pixels.resize((width, height), reducing_gap=2.0),
        picture.width,
        picture.height,
        Affine.scaling(width / picture.width, height / picture.height),
    )


def _decoded(path: Path) -> DecodedImage:
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise BadSampleError(f"{path}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise BadSampleError(f"{path}: {error}") from error


def readable(data: WeightedSamples, store: ImageStore, on_bad: OnBad = refuse_bad) -> WeightedSamples:
    """The samples whose picture can be decoded; `on_bad` is called for the others. Fills the store."""
    good: list[tuple[Sample, float]] = []
    for sample, weight in zip(data.samples, data.weights, strict=True):
        try:
            store.get(sample.image_path)
        except BadSampleError as error:
            on_bad(error)
        else:
            good.append((sample, weight))
    return WeightedSamples(tuple(sample for sample, _ in good), tuple(weight for _, weight in good))


@dataclass(frozen=True, slots=True)
class Crop:
    """A sample as the model sees it.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        keypoints_in_input: float64 [21, 2], continuous pixels of the crop; 0 where not labelled.
        image_to_input: the map between the two frames.
        handedness: which hand the crop shows: the other one where the picture was mirrored.
    """

    pixels: NDArray[np.uint8]
    keypoints_in_input: NDArray[np.float64]
    image_to_input: Affine
    handedness: Handedness | None


def make_crop(
    sample: Sample,
    store: ImageStore,
    input_size: int,
    rng: np.random.Generator,
    config: AugmentConfig = NO_AUGMENTATION,
) -> Crop:
    """Cuts one sample out of its picture with the variation that `rng` draws; none by default."""
    picture = store.get(sample.image_path)
    size = (input_size, input_size)
    augmentation = draw(rng, sample, size, config)
    pixels = photometric(show(picture, augmentation.image_to_input, size), rng, config)
    keypoints = augmentation.image_to_input.apply(sample.keypoints_in_image)
    return Crop(
        pixels,
        np.where(sample.labelled[:, None], keypoints, 0.0),
        augmentation.image_to_input,
        handedness_after(sample.handedness, augmentation.mirrored),
    )


def target_maps(
    keypoints_in_input: NDArray[np.float64], labelled: NDArray[np.bool_], input_size: int
) -> NDArray[np.float32]:
    """Target belief maps [N, S/8, S/8, 22] of keypoints [N, 21, 2] in input pixels; labelled: [N, 21]."""
    cells = input_size // STRIDE
    return encode(keypoints_in_input / STRIDE, labelled, (cells, cells))


class TrainingBatches:
    """Random batches of a weighted set of samples, by number."""

    def __init__(
        self,
        data: WeightedSamples,
        store: ImageStore,
        *,
        batch_size: int,
        seed: int,
        config: AugmentConfig,
        trust: LabelTrust = FULL_TRUST,
    ) -> None:
        self._trust = trust
        self._samples = data.samples
        self._cumulative = np.cumsum(np.asarray(data.weights, np.float64))
        self._store = store
        self._batch_size = batch_size
        self._seed = seed
        self._config = config

    def in_parts(self, parts: int) -> "TrainingBatches":
        """The same batches for one of so many processes: with a part of the memory for pictures."""
        twin = copy.copy(self)
        twin._store = self._store.share(parts)
        return twin

    def build(self, number: int, input_size: int) -> Batch:
        """Batch `number` at this input size (pixels, a multiple of 8)."""
        rng = np.random.default_rng((self._seed, number))
        # One draw from each of N equal slices of the weights: a batch is spread over the whole set.
        places = (np.arange(self._batch_size) + rng.random(self._batch_size)) / self._batch_size
        chosen = np.searchsorted(self._cumulative, places * self._cumulative[-1], side="right")
        samples = [self._samples[min(index, len(self._samples) - 1)] for index in chosen.tolist()]
        crops = [
            make_crop(sample, self._store, input_size, child, self._config)
            for sample, child in zip(samples, rng.spawn(len(samples)), strict=True)
        ]
        return Batch(
            crops=np.stack([crop.pixels for crop in crops]),
            targets=target_maps(
                np.stack([crop.keypoints_in_input for crop in crops]),
                np.stack([sample.labelled for sample in samples]),
                input_size,
            ),
            weights=np.stack([self._trust.weights(sample) for sample in samples]),
        )


class WorkerKilledError(TrainerError):
    """A process that makes batches was killed."""


B_co = TypeVar("B_co", covariant=True)


class Batches(Protocol[B_co]):
    """Batches by number, each of which depends on its number and input size only; can be pickled."""

    def in_parts(self, parts: int) -> "Batches[B_co]":
        """The same batches for one of so many processes."""

    def build(self, number: int, input_size: int) -> B_co:
        """Batch `number` at this input size in pixels."""


class Prefetcher(Generic[B_co]):
    """Builds the coming batches while the trainer works on the present one.

    A context manager; leaving it lets what is being built be finished, and ends the workers.
    """

    def __init__(self, batches: Batches[B_co], *, workers: int = 0, ahead: int | None = None) -> None:
        """
        Args:
            batches: where batches come from.
            workers: processes that build them; 0 builds them in one thread of this process.
            ahead: batches held ready or being built, which bounds the memory used; by default two more than workers.
        """
        self._ahead = workers + 2 if ahead is None else ahead
        self._pending: deque[tuple[tuple[int, int], Future[B_co]]] = deque()
        self._build: Callable[[int, int], B_co]
        self._pool: Executor
        if workers == 0:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
            self._build = batches.build
            return
        # Pickled once and not once for each worker: a large set takes seconds.
        plan = pickle.dumps(batches.in_parts(workers))
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker, (plan,))
        self._build = _build_in_worker
        with worker_process.one_thread_each():
            for _ in range(workers):  # a process begins with a task that finds none idle
                self._pool.submit(_ready)

    def __enter__(self) -> "Prefetcher[B_co]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, number: int, input_size: int) -> B_co:
        """Batch `number`; those after it are begun. Asking in order is fast, any order is right.

        Raises what building the batch raised, BadSampleError included, and WorkerKilledError.
        """
        while self._pending and self._pending[0][0] != (number, input_size):
            self._pending.popleft()[1].cancel()
        first = self._pending[-1][0][0] + 1 if self._pending else number
        try:
            for coming in range(first, number + self._ahead + 1):
                future = self._pool.submit(self._build, coming, input_size)
                self._pending.append(((coming, input_size), future))
            return self._pending.popleft()[1].result()
        except BrokenProcessPool as error:
            raise WorkerKilledError(
                "a process that makes batches was killed, perhaps for want of memory; fewer --workers need less"
            ) from error


_batches: Batches[Any] | None = None


def _begin_worker(plan: bytes) -> None:
    global _batches  # noqa: PLW0603 -- a worker process has no other place for its state
    worker_process.begin()
    _batches = pickle.loads(plan)  # our own: from the process that started this one


def _ready() -> None:
    """Nothing: a task to start a process with."""


def _build_in_worker(number: int, input_size: int) -> Any:
    assert _batches is not None
    return _batches.build(number, input_size)


def evaluation_crops(
    samples: Sequence[Sample],
    store: ImageStore,
    input_size: int,
    batch_size: int,
    config: AugmentConfig = NO_AUGMENTATION,
) -> Iterator[tuple[Sequence[Sample], list[Crop]]]:
    """Serving's crops of samples, in order, in groups of at most `batch_size`; upright ones if `config` is UPRIGHT."""
    unused = np.random.default_rng(0)
    for start in range(0, len(samples), batch_size):
        group = samples[start : start + batch_size]
        yield group, [make_crop(sample, store, input_size, unused, config) for sample in group]
