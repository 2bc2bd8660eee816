"""Which versions and labels the model servers really have, asked for again and again.

A model server is the only one that knows: a version folder may be loading, a label may point at something unloaded, a
server may have been restarted with another configuration. A version counts as there once one server calls it AVAILABLE,
its signature and its model card are what this gateway can serve, and it has answered a first inference, which also
warms it up. That may take a minute, so every version of every server is checked in a task of its own: what runs already
goes on being served meanwhile. Requests read what was found last and never wait for anything here.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int64Value
from numpy.typing import NDArray
from pydantic import ValidationError

from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.failures import UNKNOWN_LABEL
from service.backends.tensorflow_serving.tensors import from_tensor, to_tensor
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.errors import UnavailableError, UnknownModelError
from service.inference.models import (
    INPUT_NAME,
    OUTPUT_NAME,
    SIGNATURE_NAME,
    ModelCard,
    ModelReference,
    ServedModel,
    Variant,
)
from service.inference.ports import Clock
from service.pose.heatmaps import STRIDE
from service.pose.keypoints import CHANNEL_COUNT
from service.pose.preprocessing import PADDING_GREY

_log = logging.getLogger(__name__)

DEFAULT_LABEL: Final = "stable"
"""The label that a request without a version means, where a model server has it; otherwise the newest version."""

CANARY_LABEL: Final = "canary"

_State = wire.ModelVersionStatus.State
_COMING: Final = (_State.START, _State.LOADING)


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """How often and how patiently the servers are asked.

    Attributes:
        every_s: pause between two polls.
        timeout_s: how long one question of a poll may take.
        warm_up_timeout_s: how long a version's first inference may take.
        stale_after_s: after how long without an answer a server's state counts as unknown.
        first_pause_s: pause before a version that failed its check is checked again; doubled each time.
        longest_pause_s: longest such pause.
    """

    every_s: float = 0.3
    timeout_s: float = 1.0
    warm_up_timeout_s: float = 60.0
    stale_after_s: float = 5.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0


@dataclass
class _Sight:
    """What one server said of one model at the last poll."""

    states: Mapping[int, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    checked: dict[int, ModelCard] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    """Versions that cannot be served, though loading them has come to an end, and why."""
    checks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    """What checks the available versions that are not in `checked`."""

    def ready(self) -> list[int]:
        return [version for version in self.checked if self.states.get(version) == _State.AVAILABLE]

    def is_coming(self, version: int) -> bool:
        """Whether it is being loaded, or checked for the first time."""
        return self.states.get(version) in _COMING or (version in self.checks and version not in self.refused)

    def forget(self, version: int) -> None:
        if (check := self.checks.pop(version, None)) is not None:
            check.cancel()
        self.checked.pop(version, None)
        self.refused.pop(version, None)


@dataclass
class _Seen:
    """What one server said at the last poll that it answered."""

    models: dict[Variant, _Sight]
    answered_at: float | None = None
    trouble: str | None = "has not answered yet"


class NotServableError(Exception):
    """A version that runs but does not fit this gateway; says why, for the operator."""


class Catalogue:
    """Keeps the picture of all model servers up to date; see the module.

    Args:
        endpoints: the model servers.
        names: the name under which the servers know each variant.
        repository: the folder with the servables, mounted here too, for their model cards.
        labels: the version labels to ask for.
        clock: time.
        policy: how often and how patiently.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        names: Mapping[Variant, str],
        repository: Path,
        labels: Sequence[str],
        clock: Clock,
        policy: PollPolicy,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._names = dict(names)
        self._repository = repository
        self._labels = tuple(labels)
        self._clock = clock
        self._policy = policy
        self._seen = {endpoint: _Seen({variant: _Sight() for variant in names}) for endpoint in endpoints}
        self._look_now = asyncio.Event()
        self._news = asyncio.Event()
        self._models: tuple[ServedModel, ...] = ()

    # What requests read

    def models(self) -> Sequence[ServedModel]:
        return self._models

    def resolve(self, reference: ModelReference) -> ServedModel:
        """The version that a request means.

        Raises:
            UnknownModelError: the servers answer and do not have it.
            UnavailableError: it is being loaded, or no server has answered for a while.
        """
        if not any(map(self._is_fresh, self._seen.values())):
            raise UnavailableError("no model server can be reached at the moment", retry_after_s=1.0)
        if (model := self._chosen(reference)) is not None:
            return model
        candidates = self._candidates(reference.variant)
        if not candidates or self._is_coming(reference):
            raise UnavailableError(f"{reference} is not loaded yet", retry_after_s=1.0)
        raise UnknownModelError(
            f"there is no {reference}; {_what_there_is(reference.variant, candidates)}",
            code="unknown_label" if reference.label is not None else "unknown_version",
        )

    def holders(self, model: ServedModel) -> list[Endpoint]:
        """The servers on which this version can run, by what they last said."""
        return [
            endpoint
            for endpoint, seen in self._seen.items()
            if self._is_fresh(seen) and model.version in seen.models[model.variant].ready()
        ]

    def refusal(self, reference: ModelReference) -> str | None:
        """Why some server's version is not served although loading it has come to an end; None if nothing is wrong."""
        sights = [seen.models[reference.variant] for seen in self._seen.values()]
        reasons = (sight.refused.get(reference.version or 0) for sight in sights)
        return next((reason for reason in reasons if reason is not None), None)

    def not_ready(self) -> str | None:
        """Why requests would fail now; None when every variant has a version to run."""
        troubles = {endpoint: self._trouble(seen) for endpoint, seen in self._seen.items()}
        if all(troubles.values()):
            return "; ".join(f"{endpoint.address} {trouble}" for endpoint, trouble in troubles.items())
        missing = [variant for variant in self._names if not self._can_be_asked(variant)]
        if not missing:
            return None
        reasons = [
            f"{endpoint.address} {troubles[endpoint] or f'has {self._names[variant]} {_why_not(seen.models[variant])}'}"
            for variant in missing
            for endpoint, seen in self._seen.items()
        ]
        return f"no version of {', '.join(missing)} can be asked: {'; '.join(reasons)}"

    # Polling

    def look_now(self) -> None:
        """Ask the servers at once rather than at the next turn."""
        self._look_now.set()

    async def watch(self) -> None:
        """Poll until cancelled; then `close`."""
        while True:
            self._look_now.clear()
            try:
                await self.poll()
            except Exception:  # noqa: BLE001 -- whatever a server sent, the next poll must come
                _log.exception("a poll of the model servers failed")
            try:
                async with asyncio.timeout(self._policy.every_s):
                    await self._look_now.wait()
                await asyncio.sleep(self._policy.every_s / 10)  # many failing calls make one question
            except TimeoutError:
                pass

    async def poll(self) -> None:
        """Ask every server once. Checks of versions that are new begin here and go on afterwards."""
        await asyncio.gather(*(self._poll(endpoint, seen) for endpoint, seen in self._seen.items()))
        self._publish()

    async def news(self) -> None:
        """Return after the next poll or check."""
        await self._news.wait()

    async def close(self) -> None:
        """Stop checking versions."""
        checks = [
            check for seen in self._seen.values() for sight in seen.models.values() for check in sight.checks.values()
        ]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    async def _poll(self, endpoint: Endpoint, seen: _Seen) -> None:
        try:
            await asyncio.gather(*(self._look_at(endpoint, variant, seen.models[variant]) for variant in self._names))
            seen.answered_at = self._clock.time()
            await asyncio.gather(
                *(self._look_up_labels(endpoint, variant, seen.models[variant]) for variant in self._names)
            )
        except grpc.aio.AioRpcError as error:
            self._could_not_look(endpoint, seen, error)
            return
        if seen.trouble is not None:
            _log.info("model server %s answers", endpoint.address)
        seen.trouble = None
        endpoint.breaker.probe_succeeded()

    def _could_not_look(self, endpoint: Endpoint, seen: _Seen, error: grpc.aio.AioRpcError) -> None:
        trouble = f"does not answer ({error.code().name})"
        if seen.trouble != trouble:
            _log.warning("model server %s %s: %s", endpoint.address, trouble, error.details())
        seen.trouble = trouble
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # It is gone, and whatever comes back in its place may be another.
            endpoint.breaker.probe_failed()
            seen.answered_at = None
            for sight in seen.models.values():
                for version in tuple(sight.checks):
                    sight.forget(version)
            seen.models = {variant: _Sight() for variant in self._names}

    async def _look_at(self, endpoint: Endpoint, variant: Variant, sight: _Sight) -> None:
        statuses = await self._statuses(endpoint, self._names[variant])
        states = {each.version: each.state for each in statuses}
        gone = {version for version in sight.states if states.get(version) != _State.AVAILABLE}
        sight.states = states
        for version in gone:
            sight.forget(version)
        for status in statuses:
            if status.state == _State.END and status.status.error_code:
                sight.refused[status.version] = f"it could not be loaded: {status.status.error_message}"
        for version, state in states.items():
            if state == _State.AVAILABLE and version not in sight.checked and version not in sight.checks:
                check = self._take_in(endpoint, variant, version, sight)
                sight.checks[version] = asyncio.create_task(check, name=f"check of {variant}@{version}")

    async def _look_up_labels(self, endpoint: Endpoint, variant: Variant, sight: _Sight) -> None:
        labels = await self._labels_of(endpoint, self._names[variant])
        for label, version in labels.items():
            before = sight.labels.get(label)
            if before in sight.ready() and sight.is_coming(version):
                labels[label] = before  # which goes on serving until the new one is warm
        sight.labels = labels

    async def _statuses(self, endpoint: Endpoint, name: str) -> Sequence[wire.ModelVersionStatus]:
        request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=name))
        try:
            reply = await endpoint.status(request, self._policy.timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ()
            raise
        return reply.model_version_status

    async def _labels_of(self, endpoint: Endpoint, name: str) -> dict[str, int]:
        versions = await asyncio.gather(*(self._version_of(endpoint, name, label) for label in self._labels))
        return {label: version for label, version in zip(self._labels, versions, strict=True) if version is not None}

    async def _version_of(self, endpoint: Endpoint, name: str, label: str) -> int | None:
        """What a label stands for. No call lists labels; the metadata's answer names the version that it is of."""
        spec = wire.ModelSpec(name=name, version_label=label)
        request = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        try:
            reply = await endpoint.metadata(request, self._policy.timeout_s)
        except grpc.aio.AioRpcError as error:
            unknown = UNKNOWN_LABEL in (error.details() or "").lower()
            if unknown or error.code() is grpc.StatusCode.NOT_FOUND:  # not found: it points at no running version
                return None
            raise
        return reply.model_spec.version.value

    # Checking a new version

    async def _take_in(self, endpoint: Endpoint, variant: Variant, version: int, sight: _Sight) -> None:
        """Check a version until it can be served: its card may lag behind, its server be out of memory or time."""
        name, pause_s = self._names[variant], self._policy.first_pause_s
        while True:
            try:
                sight.checked[version] = await self._checked(endpoint, variant, version)
            except grpc.aio.AioRpcError as error:  # the server is going; the poll will say so
                _log.debug("version %d of %s on %s: %s", version, name, endpoint.address, error)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it may pass, and must be seen until then
                reason = str(error) if isinstance(error, NotServableError) else f"checking it failed: {error!r}"
                if sight.refused.get(version) != reason:
                    _log.error("version %d of %s on %s cannot be served: %s", version, name, endpoint.address, reason)
                sight.refused[version] = reason
            else:
                _log.info("version %d of %s on %s is ready", version, name, endpoint.address)
                sight.refused.pop(version, None)
                del sight.checks[version]
                self._publish()
                return
            self._publish()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._policy.longest_pause_s)

    async def _checked(self, endpoint: Endpoint, variant: Variant, version: int) -> ModelCard:
        name = self._names[variant]
        card = await asyncio.to_thread(read_card, self._repository, name, variant, version)
        await self._check_signature(endpoint, name, version)
        await self._warm(endpoint, card)
        return card

    async def _check_signature(self, endpoint: Endpoint, name: str, version: int) -> None:
        request = wire.GetModelMetadataRequest(model_spec=_exactly(name, version), metadata_field=["signature_def"])
        try:
            reply = await endpoint.metadata(request, self._policy.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _unless_gone(error, "its signatures cannot be asked for") from error
        try:
            signatures = wire.SignatureDefMap.FromString(reply.metadata["signature_def"].value).signature_def
        except DecodeError as error:
            raise NotServableError(f"its signatures cannot be read: {error}") from error
        check_signature(signatures)

    async def _warm(self, endpoint: Endpoint, card: ModelCard) -> None:
        """The first inference: shows that the version really answers, and pays for what only the first one costs."""
        image = np.full((card.input_size, card.input_size, 3), PADDING_GREY, np.uint8)
        try:
            reply = await endpoint.predict(predict_request(card, [image]), self._policy.warm_up_timeout_s, ())
            maps = from_tensor(reply.outputs[OUTPUT_NAME])
        except grpc.aio.AioRpcError as error:
            raise _unless_gone(error, "its first inference failed") from error
        except ValueError as error:
            raise NotServableError(f"its first answer cannot be read: {error}") from error
        expected = (1, card.input_size // STRIDE, card.input_size // STRIDE, CHANNEL_COUNT)
        if maps.shape != expected:
            raise NotServableError(f"its first answer has shape {maps.shape}, expected {expected}")

    # The picture as a whole

    def _publish(self) -> None:
        """Every version that some server has ready, with the labels on which the servers that have it agree."""
        waiting, self._news = self._news, asyncio.Event()
        waiting.set()
        models = []
        for variant in self._names:
            sights = [seen.models[variant] for seen in self._seen.values() if self._is_fresh(seen)]
            cards = {version: sight.checked[version] for sight in sights for version in sight.ready()}
            for version, card in sorted(cards.items()):
                # While a change of labels goes round, a label stands for what the first server says.
                labels = tuple(
                    label
                    for label in self._labels
                    if next((s.labels[label] for s in sights if label in s.labels), None) == version
                )
                models.append(ServedModel(version, labels, card))
        if tuple(models) != self._models:
            _log.info("models that can be asked: %s", ", ".join(map(_described, models)) or "none")
        self._models = tuple(models)

    def _is_fresh(self, seen: _Seen) -> bool:
        if seen.answered_at is None:
            return False
        return self._clock.time() - seen.answered_at <= self._policy.stale_after_s

    def _trouble(self, seen: _Seen) -> str | None:
        if seen.trouble is None and not self._is_fresh(seen):
            return f"has not answered for more than {self._policy.stale_after_s:g} s"
        return seen.trouble

    def _can_be_asked(self, variant: Variant) -> bool:
        model = self._chosen(ModelReference(variant))
        return model is not None and bool(self.holders(model))

    def _candidates(self, variant: Variant) -> list[ServedModel]:
        return [model for model in self._models if model.variant == variant]

    def _chosen(self, reference: ModelReference) -> ServedModel | None:
        candidates = self._candidates(reference.variant)
        if reference.version is not None:
            return next((model for model in candidates if model.version == reference.version), None)
        labelled = [model for model in candidates if (reference.label or DEFAULT_LABEL) in model.labels]
        # While the labelled version is being checked, the newest one is not what was meant.
        if labelled or reference.label is not None or self._is_coming(reference):
            return labelled[0] if labelled else None
        return max(candidates, key=lambda model: model.version, default=None)

    def _is_coming(self, reference: ModelReference) -> bool:
        sights = [seen.models[reference.variant] for seen in self._seen.values() if reference.variant in seen.models]
        label = reference.label or DEFAULT_LABEL
        return any(sight.is_coming(reference.version or sight.labels.get(label, 0)) for sight in sights)


def predict_request(card: ModelCard, crops: Sequence[NDArray[np.uint8]]) -> wire.PredictRequest:
    """The request for belief maps of a batch from exactly the version that the card describes."""
    return wire.PredictRequest(
        model_spec=_exactly(card.name, card.version),
        inputs={INPUT_NAME: to_tensor(crops)},
        output_filter=[OUTPUT_NAME],
    )


def read_card(repository: Path, name: str, variant: Variant, version: int) -> ModelCard:
    """A version's model card. Raises NotServableError if it is missing or describes something else."""
    path = repository / name / str(version) / "model_card.json"
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NotServableError(f"its model card cannot be read: {error}") from error
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'card'}: {each['msg']}" for each in error.errors())
        raise NotServableError(f"its model card {path} does not fit this gateway: {reasons}") from error
    if (card.name, card.variant, card.version) != (name, variant, version):
        raise NotServableError(f"its model card {path} is that of {card.name}, {card.variant}, version {card.version}")
    return card


def check_signature(signatures: Mapping[str, wire.SignatureDef]) -> None:
    """Raise NotServableError unless images go in and belief maps come out as this gateway knows them."""
    if SIGNATURE_NAME not in signatures:
        raise NotServableError(f"it has no signature {SIGNATURE_NAME}, but {', '.join(sorted(signatures)) or 'none'}")
    signature = signatures[SIGNATURE_NAME]
    _check_tensor("input", signature.inputs, INPUT_NAME, wire.DT_UINT8, 3)
    _check_tensor("output", signature.outputs, OUTPUT_NAME, wire.DT_FLOAT, CHANNEL_COUNT)


def _check_tensor(
    kind: str, tensors: Mapping[str, wire.TensorInfo], name: str, dtype: wire.DataType, channels: int
) -> None:
    if name not in tensors:
        raise NotServableError(f"it has no {kind} {name}, but {', '.join(sorted(tensors)) or 'none'}")
    tensor = tensors[name]
    if tensor.dtype != dtype:
        raise NotServableError(f"its {kind} {name} is of type {tensor.dtype}, expected {dtype}")
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    # A rank or a length that is not known may still be right; the first inference shows it.
    if not tensor.tensor_shape.unknown_rank and (len(sizes) != 4 or sizes[-1] not in (-1, channels)):
        raise NotServableError(f"its {kind} {name} has shape {sizes}, expected [N, height, width, {channels}]")


def _exactly(name: str, version: int) -> wire.ModelSpec:
    return wire.ModelSpec(name=name, version=Int64Value(value=version), signature_name=SIGNATURE_NAME)


def _why_not(sight: _Sight) -> str:
    if not sight.states:
        return "not at all"
    return ", ".join(
        f"version {version}: {sight.refused.get(version) or _State.Name(state)}"
        f"{', being checked' if sight.is_coming(version) and state == _State.AVAILABLE else ''}"
        for version, state in sorted(sight.states.items())
    )


def _unless_gone(error: grpc.aio.AioRpcError, what: str) -> Exception:
    """The error itself if its server cannot be reached; else what it says of the version."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return error
    return NotServableError(f"{what}: {error.code().name}: {error.details()}")


def _what_there_is(variant: Variant, candidates: Sequence[ServedModel]) -> str:
    known = [text for model in candidates for text in (str(model.version), *model.labels)]
    return f"of {variant} there is {', '.join(known)}"


def _described(model: ServedModel) -> str:
    labels = f" ({', '.join(model.labels)})" if model.labels else ""
    return f"{model.name} version {model.version}{labels}"
