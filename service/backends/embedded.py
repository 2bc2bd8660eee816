"""Runs the SavedModels of a model repository in this process.

Knows versions, labels, threads and time-outs; how one SavedModel runs is `service.backends.savedmodel`, which is handed
in, so that this module does not import TensorFlow.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.backends.repository import (
    Servable,
    ServableError,
    as_served,
    detector_among,
    read_servable,
    resolve,
    variants_among,
)
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.models import (
    DETECTOR_NAME,
    AnyCard,
    AnyModel,
    ModelReference,
    ServedDetector,
    ServedModel,
    served,
)

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Key = tuple[str, int]

_RETRY_WHILE_LOADING_S: Final = 2.0

logger = logging.getLogger(__name__)


class EmbeddedBackend:
    """Implements `service.inference.ports.Backend` with models in this process.

    Until `load` has finished for the first time, the models that are there already answer, and `not_ready` tells what
    is being done. `load` may be called again, with other versions, while requests are being answered.

    Args:
        open_servable: loads a servable; what it returns maps images uint8 [N, H, W, 3] to belief maps float32
            [N, H / 8, W / 8, 22], or to the detector's rows, blocking, and raises ServiceErrors only.
        inference: the threads that models run in, one for each batch that may run at the same time.
        versions: how many versions of each model are served.
        warm_up_sizes: batch sizes that are run once before a model counts as loaded, because the first run of a size
            is slower.
        loading: the thread that later versions are opened in, so that requests do not wait for it; None: `inference`.
        linger_s: how long a version that is no longer served stays in memory, for requests that were routed to it.
    """

    def __init__(
        self,
        *,
        open_servable: Callable[[Servable], Run],
        inference: Executor,
        versions: int = 1,
        warm_up_sizes: Sequence[int] = (1,),
        loading: Executor | None = None,
        linger_s: float = 10.0,
    ) -> None:
        self._open_servable = open_servable
        self._inference = inference
        self._versions = versions
        self._warm_up_sizes = warm_up_sizes
        self._loading = loading or inference
        self._linger_s = linger_s
        self._runs: dict[Key, Run] = {}
        self._servables: tuple[Servable, ...] = ()
        self._models: tuple[AnyModel, ...] = ()
        self._refusals: dict[Path, _Refusal] = {}
        self._starting = True
        self._trouble: str | None = "no model has been loaded yet"

    async def load(self, folders: Mapping[str, Sequence[Path]]) -> bool:
        """Open and warm up the newest versions of every model that can be served; on return these, and no others, are.

        What is loaded already is not loaded again. What is no longer wanted is let go once all that is answers. A
        version that cannot be served is logged, and the one before it takes its place; it is tried again once its
        folder has changed. Of a model that has no version which can be served, what was served before still is.

        Args:
            folders: the versions' folders of each model, newest first.

        Returns:
            Whether something else is served than before.

        Raises:
            ServableError: at the first time, if no version of any keypoint model can be served.
        """
        wanted: list[Servable] = []
        for name, newest_first in folders.items():
            of_model: list[Servable] = []
            for folder in newest_first:
                if len(of_model) < self._versions and (servable := await self._loaded(folder)) is not None:
                    of_model.append(servable)
                    if self._starting:
                        self._serve((*wanted, *of_model))
            wanted += of_model or [each for each in self._servables if each.card.name == name]
        on_disk = {folder for each in folders.values() for folder in each}
        self._refusals = {folder: refusal for folder, refusal in self._refusals.items() if folder in on_disk}
        before = self._servables
        self._serve(wanted)
        if self._starting and not self.models():
            raise ServableError(next((each.reason for each in self._refusals.values()), "there is no keypoint model"))
        for key in {_key(each.card) for each in before} - {_key(each.card) for each in wanted}:
            logger.info("%s version %d is no longer served", *key)
            asyncio.get_running_loop().call_later(self._linger_s, self._let_go_of, key)
        trouble = self._missing(folders)
        if trouble is not None and trouble != self._trouble:
            logger.warning("not ready: %s", trouble)
        self._trouble = trouble
        self._starting = False
        return before != self._servables

    def models(self) -> Sequence[ServedModel]:
        return variants_among(self._models)

    def resolve(self, reference: ModelReference) -> ServedModel:
        try:
            return resolve(self.models(), reference)
        except UnknownModelError as error:
            if not self._starting:
                raise
            raise _loading(f"the model {reference}") from error

    def detector(self) -> ServedDetector:
        try:
            return detector_among(self._models)
        except UnavailableError as error:
            if not self._starting:
                raise
            raise _loading("the hand detector") from error

    async def predict(
        self, model: AnyModel, crops: Sequence[NDArray[np.uint8]], *, timeout_s: float
    ) -> NDArray[np.float32]:
        if (run := self._runs.get(_key(model))) is None:
            # It was when the request was routed: the same request will be routed elsewhere.
            raise UnavailableError(f"{model.name} version {model.version} is no longer served", retry_after_s=0.1)
        try:
            # A batch that has begun runs to its end; its thread cannot be stopped, only no longer be waited for.
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._inference, _run, run, crops)
        except TimeoutError as error:
            raise DeadlineExceededError("the request's time was up while the model ran") from error

    async def not_ready(self) -> str | None:
        return self._trouble

    def _serve(self, servables: Sequence[Servable]) -> None:
        self._servables = tuple(sorted(servables, key=lambda each: _key(each.card)))
        self._models = as_served(self._servables)

    def _missing(self, folders: Mapping[str, Sequence[Path]]) -> str | None:
        """The models of which nothing is served, and why."""
        there = {each.name for each in self._models}
        troubles = [
            f"no version of {name} can be served: {self._refusals[newest_first[0]].reason}"
            for name, newest_first in folders.items()
            if name not in there
        ]
        if DETECTOR_NAME not in {*there, *folders}:
            troubles.append(f"there is no {DETECTOR_NAME} to look for hands with; export it with: make models")
        return "; ".join(troubles) or None

    def _let_go_of(self, key: Key) -> None:
        if key not in {_key(each.card) for each in self._servables}:  # it may have come back
            self._runs.pop(key, None)

    async def _loaded(self, folder: Path) -> Servable | None:
        """The servable in a folder, once it can be asked; None if it cannot be served, which has been logged then."""
        loop = asyncio.get_running_loop()
        threads = self._inference if self._starting else self._loading
        name = f"{folder.parent.name} version {folder.name}"
        if self._starting:
            self._trouble = f"loading {name}"
        before, content = self._refusals.get(folder), None
        try:
            content = await loop.run_in_executor(threads, _content, folder)
            if before is not None and before.content == content:
                return None
            servable, run = await loop.run_in_executor(threads, self._open, folder)
        except Exception as error:  # whatever it is, the other models must be served
            # What else went wrong, such as too little memory, may pass: that is tried again.
            is_final = isinstance(error, ServableError)
            known = is_final or isinstance(error, ServiceError)
            refusal = _Refusal(str(error) if known else f"{name} failed: {error!r}", content if is_final else None)
            if before is None or before.reason != refusal.reason:
                logger.error("%s cannot be served: %s", name, refusal.reason, exc_info=None if known else error)
            self._refusals[folder] = refusal
            return None
        self._refusals.pop(folder, None)
        self._runs[_key(servable.card)] = run
        return servable

    def _open(self, folder: Path) -> tuple[Servable, Run]:
        servable = read_servable(folder)
        return servable, self._runs.get(_key(servable.card)) or self._open_and_warm_up(servable)

    def _open_and_warm_up(self, servable: Servable) -> Run:
        logger.info("loading %s and warming it up", servable)
        started, side = time.monotonic(), servable.card.input_size
        run = self._open_servable(servable)
        for size in self._warm_up_sizes:
            answer = run(np.full((size, side, side, 3), 128, np.uint8))
            expected = (size, *served(servable.card, ()).output_shape)
            if answer.shape != expected or answer.dtype != np.float32:
                raise ServableError(
                    f"{servable.folder}: answers with {answer.dtype} {answer.shape}, expected float32 {expected}"
                )
        logger.info("%s is ready after %.1f s", servable, time.monotonic() - started)
        return run


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a version is not served, and what its folder held then; None if it may be tried again as it is."""

    reason: str
    content: frozenset[tuple[str, int, int]] | None


def _content(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What a folder holds, as far as its entries tell: names, sizes and times."""
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*"))
    return frozenset((name, status.st_size, status.st_mtime_ns) for name, status in found)


def _run(run: Run, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    try:
        return run(crops[0][np.newaxis] if len(crops) == 1 else np.stack(crops))
    except ServiceError:
        raise
    except MemoryError as error:
        raise UnavailableError("the service is out of memory; try again", retry_after_s=1.0) from error
    except Exception as error:
        raise InternalError("the model failed to run") from error


def _loading(what: str) -> UnavailableError:
    return UnavailableError(
        f"{what} is not there yet: the service is starting", code="loading", retry_after_s=_RETRY_WHILE_LOADING_S
    )


def _key(model: AnyModel | AnyCard) -> Key:
    return model.name, model.version
