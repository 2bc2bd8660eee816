"""Runs the SavedModels of a model repository in this process.

Knows versions, labels, threads and time-outs; how one SavedModel runs is `service.backends.savedmodel`, which is handed
in, so that this module does not import TensorFlow.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.backends.repository import Servable, as_served
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.models import ModelReference, ServedModel

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Key = tuple[str, int]

_RETRY_WHILE_LOADING_S: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: ServedModel
    run: Run


class EmbeddedBackend:
    """Implements `service.inference.ports.Backend` with models in this process.

    Until `load` has finished for the first time, the models that are there already answer, and `not_ready` tells what
    is being done. `load` may be called again, with other versions, while requests are being answered.

    Args:
        open_servable: loads a servable; what it returns maps crops uint8 [N, H, W, 3] to belief maps float32
            [N, H / 8, W / 8, 22], blocking, and raises ServiceErrors only.
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
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._loading = loading or inference
        self._linger_s = linger_s
        self._loaded: dict[Key, _Loaded] = {}
        self._retired: dict[Key, _Loaded] = {}
        self._state: str | None = "no model has been loaded yet"

    async def load(self, servables: Sequence[Servable]) -> None:
        """Open and warm up servables, one after the other; on return these, and no others, are served.

        What is loaded already is not loaded again. What is not among the servables is let go once all of them answer.

        Raises:
            ServableError: if one of them cannot be served. What was served before still is.
        """
        first_time = self._state is not None
        wanted: dict[Key, _Loaded] = {}
        for servable, model in zip(servables, as_served(tuple(servables)), strict=True):
            key = model.name, model.version
            found = self._loaded.get(key) or self._retired.get(key)
            if found is None:
                if first_time:
                    self._state = f"loading {servable}"
                threads = self._inference if first_time else self._loading
                run = await asyncio.get_running_loop().run_in_executor(threads, self._open_and_warm_up, servable)
                found = _Loaded(model, run)
            wanted[key] = replace(found, model=model)  # its labels may be others now
            if first_time:
                self._loaded[key] = wanted[key]
        outgoing = self._loaded.keys() - wanted.keys()
        for key in outgoing:
            self._retired[key] = self._loaded[key]
            logger.info("%s version %d is no longer served", *key)
        if outgoing:
            asyncio.get_running_loop().call_later(self._linger_s, self._let_go_of, outgoing)
        self._loaded = wanted
        self._state = None

    def models(self) -> Sequence[ServedModel]:
        return tuple(each.model for each in self._loaded.values())

    def resolve(self, reference: ModelReference) -> ServedModel:
        of_variant = [each for each in self.models() if each.variant == reference.variant]
        fitting = [each for each in of_variant if _fits(each, reference)]
        if fitting:
            return max(fitting, key=lambda each: each.version)
        if self._state is not None:
            raise UnavailableError(
                f"the model {reference} is not there yet: the service is starting",
                code="loading",
                retry_after_s=_RETRY_WHILE_LOADING_S,
            )
        raise UnknownModelError(
            f"there is no model {reference}; there is {_names(self.models())}",
            code="unknown_version" if of_variant else "unknown_variant",
        )

    async def predict(
        self, model: ServedModel, crops: Sequence[NDArray[np.uint8]], *, timeout_s: float
    ) -> NDArray[np.float32]:
        key = model.name, model.version
        loaded = self._loaded.get(key) or self._retired.get(key)
        if loaded is None:
            # It was when the request was routed: the same request will be routed elsewhere.
            raise UnavailableError(f"{model.name} version {model.version} is no longer served", retry_after_s=0.1)
        try:
            # A batch that has begun runs to its end; its thread cannot be stopped, only no longer be waited for.
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._inference, _run, loaded.run, crops)
        except TimeoutError as error:
            raise DeadlineExceededError("the request's time was up while the model ran") from error

    async def not_ready(self) -> str | None:
        return self._state

    def _let_go_of(self, outgoing: Set[Key]) -> None:
        for key in outgoing:
            self._retired.pop(key, None)

    def _open_and_warm_up(self, servable: Servable) -> Run:
        started = time.monotonic()
        logger.info("loading %s", servable)
        run = self._open_servable(servable)
        side = servable.card.input_size
        sizes = ", ".join(map(str, self._warm_up_sizes))
        logger.info("warming up %s with batches of %s", servable, sizes)
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


def _fits(model: ServedModel, reference: ModelReference) -> bool:
    version_fits = reference.version is None or reference.version == model.version
    label_fits = reference.label is None or reference.label in model.labels
    return version_fits and label_fits


def _names(models: Sequence[ServedModel]) -> str:
    """What can be asked for, as a client would write it."""
    return ", ".join(
        f"{each.variant}@{each.version}" + "".join(f" = {each.variant}@{label}" for label in each.labels)
        for each in models
    )
