"""Runs the SavedModels of a model repository in this process.

Knows versions, labels, threads and time-outs; how one SavedModel runs is `service.backends.savedmodel`, which is handed
in, so that this module does not import TensorFlow.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.backends.repository import Servable, as_served, detector_among, resolve, variants_among
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.models import DETECTOR_NAME, AnyModel, ModelReference, ServedDetector, ServedModel

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Key = tuple[str, int]

_RETRY_WHILE_LOADING_S: Final = 2.0

logger = logging.getLogger(__name__)


class EmbeddedBackend:
    """Implements `service.inference.ports.Backend` with models in this process.

    Until `load` has finished for the first time, the models that are there already answer, and `not_ready` tells what
    is being done. `load` may be called again, with other versions, while requests are being answered.

    Args:
        open_servable: loads a servable; what it returns maps crops uint8 [N, H, W, 3] to what `Backend.predict`
            answers, blocking, and raises ServiceErrors only.
        inference: the threads that models run in, one for each batch that may run at the same time.
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
        warm_up_sizes: Sequence[int] = (1,),
        loading: Executor | None = None,
        linger_s: float = 10.0,
    ) -> None:
        self._open_servable = open_servable
        self._inference = inference
        self._warm_up_sizes = warm_up_sizes
        self._loading = loading or inference
        self._linger_s = linger_s
        self._runs: dict[Key, Run] = {}
        self._models: tuple[AnyModel, ...] = ()
        self._state: str | None = "no model has been loaded yet"

    async def load(self, servables: Sequence[Servable]) -> None:
        """Open and warm up servables, one after the other; on return these, and no others, are served.

        What is loaded already is not loaded again. What is not among the servables is let go once all of them answer.

        Raises:
            ServableError: if one of them cannot be served. What was served before still is.
        """
        first_time = self._state is not None
        loop, models, runs = asyncio.get_running_loop(), as_served(servables), dict[Key, Run]()
        for servable, model in zip(servables, models, strict=True):
            run = self._runs.get(_key(model))
            if run is None:
                if first_time:
                    self._state = f"loading {servable}"
                threads = self._inference if first_time else self._loading
                run = await loop.run_in_executor(threads, self._open_and_warm_up, servable)
            runs[_key(model)] = run
            if first_time:
                self._runs[_key(model)] = run
                self._models = (*self._models, model)
        for key in {_key(model) for model in self._models} - runs.keys():
            logger.info("%s version %d is no longer served", *key)
            loop.call_later(self._linger_s, self._let_go_of, key)
        self._runs |= runs
        self._models = models
        self._state = None

    def models(self) -> Sequence[ServedModel]:
        return variants_among(self._models)

    def resolve(self, reference: ModelReference) -> ServedModel:
        try:
            return resolve(self.models(), reference)
        except UnknownModelError as error:
            if self._state is None:
                raise
            raise _loading(f"the model {reference}") from error

    def detector(self) -> ServedDetector:
        try:
            return detector_among(self._models)
        except UnavailableError as error:
            if self._state is None:
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
        if self._state is None and not any(isinstance(each, ServedDetector) for each in self._models):
            return f"there is no {DETECTOR_NAME} to look for hands with; export it with: make models"
        return self._state

    def _let_go_of(self, key: Key) -> None:
        if key not in map(_key, self._models):  # it may have come back
            self._runs.pop(key, None)

    def _open_and_warm_up(self, servable: Servable) -> Run:
        logger.info("loading %s and warming it up", servable)
        started, side = time.monotonic(), servable.card.input_size
        run = self._open_servable(servable)
        for size in self._warm_up_sizes:
            run(np.full((size, side, side, 3), 128, np.uint8))
        logger.info("%s is ready after %.1f s", servable, time.monotonic() - started)
        return run


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


def _key(model: AnyModel) -> Key:
    return model.name, model.version
