"""The `Backend` port on TensorFlow Serving. What a request needs is decided here; how it travels, in `client`."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from service.backends.repository import variants_among
from service.backends.tensorflow_serving.catalogue import Catalogue, PollPolicy
from service.backends.tensorflow_serving.client import Endpoint, RetryPolicy
from service.backends.tensorflow_serving.config_file import (
    ManagementError,
    model_in,
    read_config,
    specific_versions,
)
from service.backends.tensorflow_serving.failures import CallError, Meaning, translate
from service.backends.tensorflow_serving.tensors import from_tensor, predict_request
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.errors import DeadlineExceededError, InternalError, UnavailableError
from service.inference.models import (
    CANARY_LABEL,
    DETECTOR,
    DETECTOR_NAME,
    STABLE_LABEL,
    VARIANTS,
    AnyModel,
    Kind,
    ModelReference,
    ServedDetector,
    ServedModel,
)
from service.inference.ports import Clock

# The names of the servables, as `python -m trainer export` gives them.
MODEL_NAMES: Final[Mapping[Kind, str]] = {
    **{variant: f"cpm_{variant}" for variant in VARIANTS},
    DETECTOR: DETECTOR_NAME,
}

_LOOK_EVERY_S: Final = 0.05

_log = logging.getLogger(__name__)


class TensorFlowServingBackend:
    """Implements `service.inference.ports.Backend` with one or more model servers.

    It polls them from `start` to `stop` (or within `async with`).

    Args:
        addresses: "host:port" of the model servers' gRPC ports. A name may stand for many servers.
        repository: the folder with the servables, as the model servers see it, for the model cards.
        clock: time.
        names: the variants to serve, and what the model servers call them.
        labels: version labels that requests may name.
        poll: how often and how patiently the servers' state is asked for.
        retry: what happens to a call that found no server.
        traceparent: the trace that a call belongs to, as W3C's header has it; None: to none.
        config_file: the model servers' configuration, to know which versions they should have; None: not known.
        on_batch_too_large: called when a server refuses a batch as larger than it takes.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        repository: Path,
        clock: Clock,
        names: Mapping[Kind, str] = MODEL_NAMES,
        labels: Sequence[str] = (STABLE_LABEL, CANARY_LABEL),
        poll: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        traceparent: Callable[[], str | None] = lambda: None,
        config_file: Path | None = None,
        on_batch_too_large: Callable[[], None] = lambda: None,
    ) -> None:
        if not addresses:
            raise ValueError("at least one model server's address is needed")
        self._names = names
        self._clock = clock
        self._traceparent = traceparent
        self._config_file = config_file
        self._on_batch_too_large = on_batch_too_large
        self._largest_batch: int | None = None  # that the servers take, once one was too large
        self._endpoints = [Endpoint(address) for address in addresses]
        self._catalogue = Catalogue(
            self._endpoints,
            names=names,
            repository=repository,
            labels=labels,
            clock=clock,
            policy=poll or PollPolicy(),
        )
        self._retry = retry or RetryPolicy()
        self._calls = 0
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow the model servers; returns at once, whether or not any of them answers yet."""
        self._polling = asyncio.get_running_loop().create_task(self._catalogue.watch(), name="model servers' state")

    async def wait_until_ready(self) -> None:
        """Return once every variant has a version to run."""
        while await self.not_ready() is not None:  # noqa: ASYNC110 -- a poll sets no event
            await asyncio.sleep(_LOOK_EVERY_S)

    async def stop(self) -> None:
        """Stop following the servers and close the connections. Calls that are under way fail."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        await self._catalogue.close()
        await asyncio.gather(*(endpoint.aclose() for endpoint in self._endpoints))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def models(self) -> Sequence[ServedModel]:
        return variants_among(self._catalogue.models())

    def resolve(self, reference: ModelReference) -> ServedModel:
        model = self.model(reference)
        assert isinstance(model, ServedModel)
        return model

    def detector(self) -> ServedDetector:
        return self._catalogue.detector()

    def model(self, reference: ModelReference) -> AnyModel:
        """Whatever a reference means; otherwise as `resolve`."""
        return self._catalogue.resolve(reference)

    def versions(self) -> set[int]:
        """The versions, of any model, that can be asked now."""
        return {model.version for model in self._catalogue.models()}

    def refusal(self, reference: ModelReference) -> str | None:
        """Why a version that a model server has loaded, or has failed to load, is not served; None if nothing is."""
        return self._catalogue.refusal(reference)

    async def not_ready(self) -> str | None:
        return self._catalogue.not_ready()

    async def unavailable(self) -> set[tuple[Kind, int | None, str]]:
        """The versions that a server should have, and that cannot be asked there; see `Catalogue.unavailable`."""
        return self._catalogue.unavailable(await asyncio.to_thread(self._configured))

    def _configured(self) -> dict[Kind, set[int]]:
        if self._config_file is None:
            return {}
        try:
            config = read_config(self._config_file)
            models = {variant: model_in(config, name) for variant, name in self._names.items()}
            return {variant: specific_versions(model) or set() for variant, model in models.items()}
        except ManagementError:  # nothing is known, then
            return {}

    async def predict(
        self, model: AnyModel, crops: Sequence[NDArray[np.uint8]], *, timeout_s: float
    ) -> NDArray[np.float32]:
        deadline = self._clock.time() + timeout_s
        size = self._largest_batch or len(crops)
        parts = [crops[start : start + size] for start in range(0, len(crops), size)]
        try:
            maps = [await self._predict(model, part, deadline) for part in parts]
        except _BatchTooLargeError as error:
            # The gateway's setting and the servers' contradict each other; no request should suffer from that.
            self._largest_batch = min(self._largest_batch or size, max(1, size // 2))
            _log.warning("batches have %d crops at the most from now on: %s", self._largest_batch, error)
            self._on_batch_too_large()
            return await self.predict(model, crops, timeout_s=deadline - self._clock.time())
        return maps[0] if len(maps) == 1 else np.concatenate(maps)

    async def _predict(
        self, model: AnyModel, crops: Sequence[NDArray[np.uint8]], deadline: float
    ) -> NDArray[np.float32]:
        """The answer to a batch, sent as one. Raises _BatchTooLargeError if a smaller one may be taken."""
        if self._clock.time() >= deadline:
            raise DeadlineExceededError("the request's time was up before it could be sent to the model server")
        name = f"{model.name} version {model.version}"
        try:
            request = predict_request(model, crops)
            reply = await self._send(model, request, deadline)
        except CallError as error:
            if error.meaning is Meaning.BATCH_TOO_LARGE and len(crops) > 1:
                raise _BatchTooLargeError(str(error)) from error
            if error.meaning is Meaning.UNKNOWN_VERSION:
                # It was there when the request was routed. What a label or no version at all stands for has changed
                # since, so that the same request has an answer; one for this very version is then told so.
                self._catalogue.poll_now()
                raise UnavailableError(f"{name} has just been unloaded", retry_after_s=0.5) from error
            raise translate(error, name) from error
        if model.output_name not in reply.outputs:
            raise InternalError(f"{name} returned no {model.output_name}")
        if reply.model_spec.version.value != model.version:
            raise InternalError(f"{name} was asked, but version {reply.model_spec.version.value} answered")
        try:
            return from_tensor(reply.outputs[model.output_name])
        except ValueError as error:
            raise InternalError(f"{name} returned {model.output_name} that cannot be read: {error}") from error

    async def _send(self, model: AnyModel, request: wire.PredictRequest, deadline: float) -> wire.PredictResponse:
        """The reply of a server that has the version. If it is unreachable or busy, the next one is asked after a wait.

        Raises:
            CallError: the last attempt's failure.
            UnavailableError: no server is known to have the version.
        """
        traceparent = self._traceparent()
        metadata = (("traceparent", traceparent),) if traceparent is not None else ()
        attempt = 0
        while endpoints := self._catalogue.holders(model):
            attempt += 1
            self._calls += 1
            endpoint = endpoints[self._calls % len(endpoints)]
            try:
                return await endpoint.predict(request, max(deadline - self._clock.time(), 0.001), metadata)
            except CallError as error:
                if error.meaning is Meaning.UNREACHABLE:
                    self._catalogue.poll_now()
                wait_s = self._retry.wait_after(attempt, random.random())
                out_of_time = attempt >= self._retry.attempts or self._clock.time() + wait_s >= deadline
                if not error.worth_another_try or out_of_time:
                    raise
            await asyncio.sleep(wait_s)
        self._catalogue.poll_now()
        raise UnavailableError("no model server can be reached at the moment", retry_after_s=1.0)


class _BatchTooLargeError(Exception):
    """The model server takes smaller batches only; says how large."""
