"""Which version a label stands for: `python -m service models list | promote | rollback`, on TensorFlow Serving.

The truth about what should run is the model servers' configuration file, which they poll and which this command shares
with them: a change that only went over the wire would be undone at their next look. Every change is therefore written
there first, whole, and then handed to each server, so that nobody waits for the poll.

Promoting takes two steps, because a model server refuses to move a label to a version that is not loaded: load the
candidate beside the old version; check it on every server; move the label. The old version stays loaded under the label
"previous_<label>", so that rolling back is one step and takes no time.
"""

import argparse
import asyncio
import base64
import binascii
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.backends.tensorflow_serving.backend import MODEL_NAMES, TensorFlowServingBackend
from service.backends.tensorflow_serving.breaker import CircuitBreaker
from service.backends.tensorflow_serving.catalogue import CANARY_LABEL, DEFAULT_LABEL, PollPolicy
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.files import replace
from service.inference.batching import BatchingPolicy
from service.inference.errors import ServiceError
from service.inference.models import ModelReference, ServedModel
from service.inference.ports import DropReason, ReleaseReason, Stage
from service.inference.predictor import EstimateRequest, Limits, Predictor
from service.inference.routing import Router
from service.pose.keypoints import KEYPOINT_COUNT

Report = Callable[[str], None]

_CALL_S: Final = 30.0
_POLL: Final = PollPolicy(every_s=0.2, timeout_s=2.0)


class ManagementError(Exception):
    """What was asked for was not done; one line for the operator, who finds everything as it was."""


@dataclass(frozen=True, slots=True)
class Servers:
    """The model servers and what they share with this command.

    Attributes:
        addresses: "host:port" of every single server.
        config_file: their --model_config_file, as seen from here.
        repository: their models, as seen from here.
        patience_s: how long loading a version may take.
    """

    addresses: tuple[str, ...]
    config_file: Path
    repository: Path
    patience_s: float = 300.0


# The commands


async def list_versions(servers: Servers) -> list[dict[str, str]]:
    """Each version of each model on each server, with its state and labels.

    Raises:
        ManagementError: if a server does not answer.
    """
    labels = {model.name: model.version_labels for model in read_config(servers.config_file).model_config_list.config}
    rows = []
    for address in servers.addresses:
        async with _endpoint(address) as endpoint:
            for name in MODEL_NAMES.values():
                states = await _states(endpoint, name)
                loaded = set(states)
                states |= dict.fromkeys(_on_disk(servers.repository / name) - loaded, "on disk")
                rows += [
                    {
                        "server": address,
                        "model": name,
                        "version": str(version),
                        "state": state,
                        "labels": ", ".join(sorted(key for key, at in labels.get(name, {}).items() if at == version)),
                    }
                    for version, state in sorted(states.items())
                ]
    return rows


async def promote(
    servers: Servers, target: ModelReference, label: str, *, check: bool = True, report: Report = lambda _: None
) -> None:
    """Make a label stand for a version: load it, check it, move the label.

    Raises:
        ManagementError: if that cannot be, or the version's answers are not what its card says. The configuration is
            then what it was before.
    """
    version = target.version
    if version is None:
        raise ManagementError(f"name the version to promote: {target.variant}@3")
    name = MODEL_NAMES[target.variant]
    folder = servers.repository / name / str(version)
    if not folder.is_dir():
        raise ManagementError(f"there is no {folder}")
    golden = _golden_of(folder) if check else None
    before = read_config(servers.config_file)
    old = _model(before, name).version_labels.get(label)
    if old == version:
        raise ManagementError(f"{label} of {target.variant} is version {version} already")

    loaded = _copy(before)
    _set_versions(_model(loaded, name), await _versions_now(servers, _model(before, name)) | {version})
    try:
        report(f"loading {name} version {version}")
        await _apply(servers, loaded)
        for address in servers.addresses:
            await _check(servers, address, ModelReference(target.variant, version=version), golden, report)
        report(f"moving {label} to version {version}")
        await _apply(servers, _moved(loaded, name, label, version))
    except BaseException:
        report("putting the configuration back")
        await _apply(servers, before)
        raise
    was = f", before that version {old}, which stays loaded" if old is not None else ""
    report(f"{label} of {target.variant} is version {version}{was}")


async def roll_back(servers: Servers, target: ModelReference, label: str, *, report: Report = lambda _: None) -> None:
    """Make a label stand for the version that it stood for before.

    Raises:
        ManagementError: if there is none.
    """
    model = _model(read_config(servers.config_file), MODEL_NAMES[target.variant])
    previous = model.version_labels.get(_previous(label))
    if previous is None:
        raise ManagementError(f"{label} of {target.variant} has no version before this one")
    await promote(servers, ModelReference(target.variant, version=previous), label, check=False, report=report)


# The configuration


def read_config(path: Path) -> wire.ModelServerConfig:
    """A model server's configuration file.

    Raises:
        ManagementError: if it cannot be read, or holds what would be lost when it is written again.
    """
    try:
        return text_format.Parse(path.read_text(), wire.ModelServerConfig())
    except OSError as error:
        raise ManagementError(f"{path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        # Something this command does not know would be lost when it writes the file.
        raise ManagementError(f"{path} is not a configuration that can be changed here: {error}") from error


def _model(config: wire.ModelServerConfig, name: str) -> wire.ModelConfig:
    for model in config.model_config_list.config:
        if model.name == name:
            return model
    raise ManagementError(f"the configuration has no model {name}")


def _copy(config: wire.ModelServerConfig) -> wire.ModelServerConfig:
    copy = wire.ModelServerConfig()
    copy.CopyFrom(config)
    return copy


def _set_versions(model: wire.ModelConfig, versions: set[int]) -> None:
    model.model_version_policy.specific.Clear()
    model.model_version_policy.specific.versions.extend(sorted(versions))


def _moved(config: wire.ModelServerConfig, name: str, label: str, version: int) -> wire.ModelServerConfig:
    """The label at its new place, what it left as the previous one, and what that one left unloaded."""
    moved = _copy(config)
    model = _model(moved, name)
    labels = model.version_labels
    dropped = labels.get(_previous(label))
    if label in labels:
        labels[_previous(label)] = labels[label]
    labels[label] = version
    if dropped is not None and dropped not in labels.values():
        _set_versions(model, set(model.model_version_policy.specific.versions) - {dropped})
    return moved


def _previous(label: str) -> str:
    return f"previous_{label}"


async def _versions_now(servers: Servers, model: wire.ModelConfig) -> set[int]:
    """The versions that a policy stands for now. Labels need one that names them."""
    if model.model_version_policy.WhichOneof("policy_choice") == "specific":
        return set(model.model_version_policy.specific.versions)
    async with _endpoint(servers.addresses[0]) as endpoint:
        states = await _states(endpoint, model.name)
    return {version for version, state in states.items() if state == "AVAILABLE"}


async def _apply(servers: Servers, config: wire.ModelServerConfig) -> None:
    replace(servers.config_file, text_format.MessageToString(config).encode())
    for address in servers.addresses:
        async with _endpoint(address) as endpoint:
            try:
                reply = await endpoint.reload(wire.ReloadConfigRequest(config=config), _CALL_S)
            except grpc.aio.AioRpcError as error:
                raise ManagementError(f"{address} refused the configuration: {error.details()}") from error
            if reply.status.error_code:
                raise ManagementError(f"{address} refused the configuration: {reply.status.error_message}")


# What a server says


@asynccontextmanager
async def _endpoint(address: str) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(address, max_message_bytes=1 << 20, breaker=CircuitBreaker())
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def _states(endpoint: Endpoint, name: str) -> dict[int, str]:
    request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=name))
    try:
        reply = await endpoint.status(request, _CALL_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return {}
        raise ManagementError(f"{endpoint.address} does not answer: {error.details()}") from error
    return {
        each.version: f"failed: {each.status.error_message}"
        if each.status.error_code
        else wire.ModelVersionStatus.State.Name(each.state)
        for each in reply.model_version_status
    }


def _on_disk(folder: Path) -> set[int]:
    return {int(each.name) for each in folder.glob("*/") if each.name.isascii() and each.name.isdecimal()}


# The check of a candidate


class _GoldenImage(BaseModel):
    model_config = ConfigDict(frozen=True)

    image: str
    """An image file, base64."""
    keypoints: list[tuple[float, float]] = Field(min_length=KEYPOINT_COUNT, max_length=KEYPOINT_COUNT)
    """(x, y) in pixels of the upright image."""


class Golden(BaseModel):
    """What a model card says that its version answers: `golden` in `model_card.json`."""

    model_config = ConfigDict(frozen=True)

    images: list[_GoldenImage] = Field(min_length=1)
    tolerance: float = Field(0.02, gt=0, le=1)
    """Largest distance of a keypoint from its place, over the image's longer side."""


def _golden_of(folder: Path) -> Golden:
    path = folder / "model_card.json"
    try:
        golden = json.loads(path.read_bytes()).get("golden")
    except (OSError, ValueError, AttributeError) as error:
        raise ManagementError(f"{path} cannot be read: {error}") from error
    if golden is None:
        raise ManagementError(f"{path} holds no golden answers to check against; --without-check promotes it unchecked")
    try:
        return Golden.model_validate(golden)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ManagementError(f"{path}: golden.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


async def _check(
    servers: Servers, address: str, candidate: ModelReference, golden: Golden | None, report: Report
) -> None:
    """Wait until the candidate answers on a server, and compare its answers with the card's."""
    backend = TensorFlowServingBackend(
        [address],
        repository=servers.repository,
        clock=asyncio.get_running_loop(),
        labels=(),
        poll=_POLL,
        names={candidate.variant: MODEL_NAMES[candidate.variant]},
    )
    async with backend:
        await _until_it_answers(backend, candidate, servers.patience_s, address)
        if golden is None:
            return
        report(f"checking {candidate} on {address} with {len(golden.images)} golden images")
        with ThreadPoolExecutor(1) as workers:
            predictor = Predictor(
                backend=backend,
                router=Router(candidate),
                observer=_NoObserver(),
                clock=asyncio.get_running_loop(),
                workers=workers,
                batching=BatchingPolicy(),
                limits=Limits(),
            )
            for number, expected in enumerate(golden.images, 1):
                distance = await _distance(predictor, expected)
                if not distance <= golden.tolerance:
                    raise ManagementError(
                        f"{candidate} on {address} is not what its card says: on golden image {number} a keypoint lies"
                        f" {distance:.3f} of the image's side from its place; {golden.tolerance:g} is allowed"
                    )


async def _until_it_answers(
    backend: TensorFlowServingBackend, candidate: ModelReference, patience_s: float, address: str
) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while True:
                reason = backend.refusal(candidate)
                if reason is not None:
                    raise ManagementError(f"{candidate} on {address} cannot be served: {reason}")
                try:
                    backend.resolve(candidate)
                except ServiceError:
                    await asyncio.sleep(_POLL.every_s)
                else:
                    return
    except TimeoutError as error:
        raise ManagementError(f"{candidate} was not loaded on {address} within {patience_s:g} s") from error


async def _distance(predictor: Predictor, expected: _GoldenImage) -> float:
    """The keypoint farthest from its place, over the image's longer side."""
    try:
        image = base64.b64decode(expected.image, validate=True)
        deadline = asyncio.get_running_loop().time() + _CALL_S
        estimate = await predictor.estimate(EstimateRequest(image, deadline))
    except binascii.Error as error:
        raise ManagementError(f"a golden image is not base64: {error}") from error
    except ServiceError as error:
        raise ManagementError(f"a golden image got no answer: {error.detail}") from error
    (hand,) = estimate.hands
    offsets = hand.keypoints_in_image - np.array(expected.keypoints)
    side = max(estimate.picture.width, estimate.picture.height)
    return float(np.linalg.norm(offsets, axis=-1).max() / side)


class _NoObserver:
    """Implements `service.inference.ports.Observer` by ignoring everything: the check is no traffic."""

    def stage_finished(self, model: ServedModel, stage: Stage, seconds: float) -> None: ...

    def batch_released(self, model: ServedModel, size: int, reason: ReleaseReason) -> None: ...

    def queue_changed(self, model: ServedModel, depth: int) -> None: ...

    def request_dropped(self, model: ServedModel, reason: DropReason) -> None: ...

    def request_rejected(self, model: ServedModel, reason: str) -> None: ...

    def hand_found(self, model: ServedModel, scores: NDArray[np.floating[Any]]) -> None: ...


# The command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m service models`."""
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="versions, states and labels on every model server")
    promoting = commands.add_parser("promote", help="load a version, check it, and move a label to it")
    promoting.add_argument("model", metavar="VARIANT@VERSION", help="for example lightweight@3")
    promoting.add_argument(
        "--without-check", action="store_true", help="do not compare its answers with its card's golden ones"
    )
    rolling = commands.add_parser("rollback", help="move a label back to the version it stood for before")
    rolling.add_argument("model", metavar="VARIANT", help="standard or lightweight")
    for command in (promoting, rolling):
        command.add_argument(
            "--label", default=DEFAULT_LABEL, help=f"{DEFAULT_LABEL} (default), {CANARY_LABEL} or another"
        )


def run(arguments: argparse.Namespace, servers: Servers) -> int:
    """`python -m service models …`; the exit code."""
    try:
        asyncio.run(_run(arguments, servers))
    except (ManagementError, ServiceError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _run(arguments: argparse.Namespace, servers: Servers) -> None:
    def report(line: str) -> None:
        print(line, flush=True)

    match arguments.command:
        case "list":
            report(_table(await list_versions(servers)))
        case "promote":
            reference = ModelReference.parse(arguments.model)
            await promote(servers, reference, arguments.label, check=not arguments.without_check, report=report)
        case "rollback":
            await roll_back(servers, ModelReference.parse(arguments.model), arguments.label, report=report)


def _table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return "the model servers have no models"
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
