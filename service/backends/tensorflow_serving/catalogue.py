"""Which versions and labels the model servers have, polled again and again.

A version can be asked for once one server calls it AVAILABLE and `version_check` has passed it. The check may take a
minute, so every version of every server has a task of its own, and what runs already goes on being served meanwhile.
Requests read what the last poll found and never wait for anything here.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.backends.repository import ServableError, detector_among
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.failures import CallError, Meaning, one_line
from service.backends.tensorflow_serving.version_check import check_version
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.errors import UnavailableError, UnknownModelError
from service.inference.models import (
    DETECTOR,
    STABLE_LABEL,
    AnyCard,
    AnyModel,
    Kind,
    ModelReference,
    ServedDetector,
    served,
)
from service.inference.ports import Clock

_log = logging.getLogger(__name__)

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
        recheck_s: pause before a version that failed its check is checked again.
    """

    every_s: float = 0.3
    timeout_s: float = 1.0
    warm_up_timeout_s: float = 60.0
    stale_after_s: float = 5.0
    recheck_s: float = 2.0


@dataclass
class ModelState:
    """What one server said of one model at the last poll, and what the checks of its versions gave.

    Attributes:
        states: each version's state, as the server gives it.
        labels: the version that each label stands for.
        cards: the versions that passed their check.
        refusals: why versions cannot be served: they did not load, or failed their check.
        checks: the checks that are under way.
    """

    states: Mapping[int, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    cards: dict[int, AnyCard] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    checks: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def ready(self) -> list[int]:
        """The versions that can be asked."""
        return [version for version in self.cards if self.states.get(version) == _State.AVAILABLE]

    def is_coming(self, version: int) -> bool:
        """Whether it is being loaded, or checked for the first time."""
        return self.states.get(version) in _COMING or (version in self.checks and version not in self.refusals)

    def forget(self, version: int) -> None:
        if (check := self.checks.pop(version, None)) is not None:
            check.cancel()
        self.cards.pop(version, None)
        self.refusals.pop(version, None)

    def __str__(self) -> str:
        described = []
        for version, state in sorted(self.states.items()):
            checking = ", being checked" if state == _State.AVAILABLE and self.is_coming(version) else ""
            described.append(f"version {version}: {self.refusals.get(version) or _State.Name(state)}{checking}")
        return ", ".join(described) or "not at all"


@dataclass
class ServerState:
    """What one server said at the last poll that it answered.

    Attributes:
        models: each model's state.
        answered_at: when that was; None if it is not known to be up.
        failed_polls: polls in a row that it did not answer.
        trouble: what is wrong with it, for the operator.
    """

    models: dict[Kind, ModelState]
    answered_at: float | None = None
    failed_polls: int = 0
    trouble: str | None = "has not answered yet"


class Catalogue:
    """The versions and labels of all model servers; see the module.

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
        names: Mapping[Kind, str],
        repository: Path,
        labels: Sequence[str],
        clock: Clock,
        policy: PollPolicy,
    ) -> None:
        self._names = dict(names)
        self._repository = repository
        self._labels = tuple(labels)
        self._clock = clock
        self._policy = policy
        self._servers = {endpoint: ServerState(self._nothing_known()) for endpoint in endpoints}
        self._poll_now = asyncio.Event()
        self._models: tuple[AnyModel, ...] = ()

    # What requests read

    def models(self) -> Sequence[AnyModel]:
        return self._models

    def resolve(self, reference: ModelReference) -> AnyModel:
        """The version that a request means.

        Raises:
            UnknownModelError: the servers answer and do not have it.
            UnavailableError: it is being loaded, or no server has answered for a while.
        """
        self._raise_if_nobody_answers()
        if (model := self._chosen(reference)) is not None:
            return model
        candidates = self._candidates(reference.variant)
        if not candidates or self._is_coming(reference):
            raise UnavailableError(f"{reference} is not loaded yet", retry_after_s=1.0)
        known = [text for model in candidates for text in (str(model.version), *model.labels)]
        raise UnknownModelError(
            f"there is no {reference}; of {reference.variant} there is {', '.join(known)}",
            code="unknown_label" if reference.label is not None else "unknown_version",
        )

    def detector(self) -> ServedDetector:
        """The hand detector's version that is labelled "stable", otherwise its newest.

        Raises:
            UnavailableError: it is being loaded, there is none, or no server has answered for a while.
        """
        self._raise_if_nobody_answers()
        model = self._chosen(ModelReference(DETECTOR))
        if isinstance(model, ServedDetector):
            return model
        states = [server.models[DETECTOR] for server in self._servers.values()]
        if any(state.is_coming(version) for state in states for version in state.states):
            raise UnavailableError("the hand detector is not loaded yet", code="loading", retry_after_s=1.0)
        return detector_among(())  # which says what is missing

    def holders(self, model: AnyModel) -> list[Endpoint]:
        """The servers on which this version can run, by what they last said."""
        return [
            endpoint
            for endpoint, server in self._servers.items()
            if self._is_fresh(server) and model.version in server.models[model.kind].ready()
        ]

    def refusal(self, reference: ModelReference) -> str | None:
        """Why some server's version cannot be served though it has been loaded or failed to; None if all is well."""
        models = (server.models[reference.variant] for server in self._servers.values())
        return next((why for model in models if (why := model.refusals.get(reference.version or 0)) is not None), None)

    def unavailable(self, configured: Mapping[Kind, Collection[int]]) -> set[tuple[Kind, int | None, str]]:
        """The versions that some server should have, and that cannot be asked there.

        Args:
            configured: the versions of each variant that every server should have, as far as is known.

        Returns:
            (variant, version, why). The version is None where nothing is known of any; why is "load_failed" or
            "not_available", which is normal while a version is being loaded and checked.
        """
        found: set[tuple[Kind, int | None, str]] = set()
        for variant in self._names:
            for server in self._servers.values():
                model = server.models[variant]
                failed = {version for version in model.refusals if model.states.get(version) == _State.END}
                coming = {each for each, state in model.states.items() if state in (*_COMING, _State.AVAILABLE)}
                missing = (coming | set(configured.get(variant, ()))) - failed - set(model.ready())
                found |= {(variant, version, "load_failed") for version in failed}
                found |= {(variant, version, "not_available") for version in missing}
                if not (failed or missing or model.ready()):
                    found.add((variant, None, "not_available"))
        return found

    def not_ready(self) -> str | None:
        """Why requests would fail now; None when every variant has a version to run."""
        troubles = {endpoint: self._trouble(server) for endpoint, server in self._servers.items()}
        if all(troubles.values()):
            return "; ".join(f"{endpoint.address} {trouble}" for endpoint, trouble in troubles.items())
        chosen = {variant: self._chosen(ModelReference(variant)) for variant in self._names}
        missing = [variant for variant, model in chosen.items() if model is None or not self.holders(model)]
        if not missing:
            return None
        reasons = [
            f"{endpoint.address} {troubles[endpoint] or f'has {self._names[variant]} {server.models[variant]}'}"
            for variant in missing
            for endpoint, server in self._servers.items()
        ]
        return f"no version of {', '.join(missing)} can be asked: {'; '.join(reasons)}"

    # Polling

    def poll_now(self) -> None:
        """Poll at once rather than at the next turn."""
        self._poll_now.set()

    async def watch(self) -> None:
        """Poll until cancelled; then `close`."""
        while True:
            self._poll_now.clear()
            try:
                await self.poll()
            except Exception:  # noqa: BLE001 -- whatever a server sent, the next poll must come
                _log.exception("a poll of the model servers failed")
            try:
                async with asyncio.timeout(self._policy.every_s):
                    await self._poll_now.wait()
                await asyncio.sleep(self._policy.every_s / 10)  # many failing calls make one question
            except TimeoutError:
                pass

    async def poll(self) -> None:
        """Ask every server once. Checks of new versions begin here and go on afterwards."""
        await asyncio.gather(*(self._poll(endpoint, server) for endpoint, server in self._servers.items()))
        self._publish()

    async def close(self) -> None:
        """Stop checking versions."""
        checks = [
            check
            for server in self._servers.values()
            for model in server.models.values()
            for check in model.checks.values()
        ]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    async def _poll(self, endpoint: Endpoint, server: ServerState) -> None:
        models = server.models.items()
        try:
            await asyncio.gather(*(self._ask_for_versions(endpoint, variant, model) for variant, model in models))
            server.answered_at = self._clock.time()
            await asyncio.gather(*(self._ask_for_labels(endpoint, variant, model) for variant, model in models))
        except CallError as error:
            if error.meaning is Meaning.THREADS_BUSY:  # it is up: what it said last still holds
                server.answered_at, server.failed_polls = self._clock.time(), 0
            else:
                self._poll_failed(endpoint, server, error)
            return
        if server.trouble is not None:
            _log.info("model server %s answers", endpoint.address)
        server.trouble, server.failed_polls = None, 0

    def _poll_failed(self, endpoint: Endpoint, server: ServerState, error: CallError) -> None:
        server.failed_polls += 1
        if server.failed_polls == 1:  # a lost connection, perhaps; the second failure in a row counts
            self.poll_now()
            return
        trouble = f"does not answer ({error.code.name})"
        if server.trouble != trouble:
            _log.warning("model server %s %s: %s", endpoint.address, trouble, error.details)
        server.trouble = trouble
        if error.meaning is Meaning.UNREACHABLE:
            # It is gone, and whatever comes back in its place may be another.
            server.answered_at = None
            for model in server.models.values():
                for version in tuple(model.checks):
                    model.forget(version)
            server.models = self._nothing_known()

    async def _ask_for_versions(self, endpoint: Endpoint, variant: Kind, model: ModelState) -> None:
        statuses = await endpoint.version_statuses(self._names[variant], self._policy.timeout_s)
        before, model.states = model.states, {version: each.state for version, each in statuses.items()}
        for version in before:
            if model.states.get(version) != _State.AVAILABLE:
                model.forget(version)
        for version, status in statuses.items():
            if status.state == _State.END and status.status.error_code:
                model.refusals[version] = f"it could not be loaded: {one_line(status.status.error_message)}"
            elif status.state == _State.AVAILABLE and version not in model.cards and version not in model.checks:
                check = self._check(endpoint, variant, version, model)
                model.checks[version] = asyncio.create_task(check, name=f"check of {variant}@{version}")

    async def _ask_for_labels(self, endpoint: Endpoint, variant: Kind, model: ModelState) -> None:
        name = self._names[variant]
        versions = await asyncio.gather(*(self._version_of(endpoint, name, label) for label in self._labels))
        labels = {label: at for label, at in zip(self._labels, versions, strict=True) if at is not None}
        for label, version in labels.items():
            before = model.labels.get(label)
            if before in model.ready() and model.is_coming(version):
                labels[label] = before  # which goes on serving until the new one is warm
        model.labels = labels

    async def _version_of(self, endpoint: Endpoint, name: str, label: str) -> int | None:
        """What a label stands for. No call lists labels; the metadata's answer names the version that it is of."""
        spec = wire.ModelSpec(name=name, version_label=label)
        request = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        try:
            return (await endpoint.metadata(request, self._policy.timeout_s)).model_spec.version.value
        except CallError as error:
            if error.meaning is Meaning.UNKNOWN_VERSION:  # it stands for no running version
                return None
            raise

    async def _check(self, endpoint: Endpoint, variant: Kind, version: int, model: ModelState) -> None:
        """Check a version until it can be served: its card may lag behind, its server be out of memory or time."""
        name = self._names[variant]
        folder = self._repository / name / str(version)
        while True:
            try:
                model.cards[version] = await check_version(
                    endpoint, folder, variant, timeout_s=self._policy.warm_up_timeout_s
                )
                break
            except CallError as error:  # the server is going, as the poll will say, or busy
                _log.debug("version %d of %s on %s: %s", version, name, endpoint.address, error)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it may pass, and must be seen until then
                reason = str(error) if isinstance(error, ServableError) else f"checking it failed: {error!r}"
                if model.refusals.get(version) != reason:
                    _log.error("version %d of %s on %s cannot be served: %s", version, name, endpoint.address, reason)
                model.refusals[version] = reason
                self._publish()
            await asyncio.sleep(self._policy.recheck_s)
        _log.info("version %d of %s on %s is ready", version, name, endpoint.address)
        model.refusals.pop(version, None)
        del model.checks[version]
        self._publish()

    # All servers together

    def _publish(self) -> None:
        """Every version that some server has ready, with its labels."""
        models = []
        for variant in self._names:
            states = [server.models[variant] for server in self._servers.values() if self._is_fresh(server)]
            cards = {version: state.cards[version] for state in states for version in state.ready()}
            # While a change of labels goes round, a label stands for what the first server says.
            labels = {label: at for state in reversed(states) for label, at in state.labels.items()}
            models += [
                served(card, tuple(each for each in self._labels if labels.get(each) == card.version))
                for _, card in sorted(cards.items())
            ]
        if tuple(models) != self._models:
            names = (f"{each.name} version {each.version} {' '.join(each.labels)}".rstrip() for each in models)
            _log.info("models that can be asked: %s", ", ".join(names) or "none")
        self._models = tuple(models)

    def _nothing_known(self) -> dict[Kind, ModelState]:
        return {variant: ModelState() for variant in self._names}

    def _is_fresh(self, server: ServerState) -> bool:
        at = server.answered_at
        return at is not None and self._clock.time() - at <= self._policy.stale_after_s

    def _trouble(self, server: ServerState) -> str | None:
        if server.trouble is None and not self._is_fresh(server):
            return f"has not answered for more than {self._policy.stale_after_s:g} s"
        return server.trouble

    def _raise_if_nobody_answers(self) -> None:
        if not any(map(self._is_fresh, self._servers.values())):
            raise UnavailableError("no model server can be reached at the moment", retry_after_s=1.0)

    def _candidates(self, variant: Kind) -> list[AnyModel]:
        return [model for model in self._models if model.kind == variant]

    def _chosen(self, reference: ModelReference) -> AnyModel | None:
        candidates = self._candidates(reference.variant)
        if reference.version is not None:
            return next((model for model in candidates if model.version == reference.version), None)
        label = reference.label or STABLE_LABEL
        labelled = next((model for model in candidates if label in model.labels), None)
        # While the labelled version is being checked, the newest one is not what was meant.
        if labelled is not None or reference.label is not None or self._is_coming(reference):
            return labelled
        return max(candidates, key=lambda model: model.version, default=None)

    def _is_coming(self, reference: ModelReference) -> bool:
        label = reference.label or STABLE_LABEL
        models = [each.models.get(reference.variant, ModelState()) for each in self._servers.values()]
        return any(model.is_coming(reference.version or model.labels.get(label, 0)) for model in models)
