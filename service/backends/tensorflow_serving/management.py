"""Which version a label stands for: `python -m service models list | promote | rollback`, on TensorFlow Serving.

Promoting takes three steps. The candidate is loaded beside the old version, by a configuration that at first goes over
the wire only: what the servers read when they start never names a version that has not loaded yet. It is checked on
every server. Then the label moves, in the file and over the wire; a server refuses to move it to a version that is not
loaded. The old version stays loaded as "previous_<label>", so that rolling back takes no time.

The servers look at their file every few minutes and then unload what only went over the wire. A promotion that is under
way notices and sends its configuration again.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from service.backends.tensorflow_serving.backend import MODEL_NAMES, TensorFlowServingBackend
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.config_file import (
    ManagementError,
    model_in,
    previous,
    read_config,
    specific_versions,
    with_label,
    with_model,
    with_versions,
    write_config,
)
from service.backends.tensorflow_serving.failures import CallError, Meaning, one_line
from service.backends.tensorflow_serving.golden import Golden, check_golden, golden_of
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.files import FileError
from service.inference.errors import ServiceError
from service.inference.models import CANARY_LABEL, DETECTOR, STABLE_LABEL, Kind, ModelReference

Report = Callable[[str], None]
Versions = dict[int, wire.ModelVersionStatus]

_State = wire.ModelVersionStatus.State
_AVAILABLE: Final = _State.AVAILABLE

_CALL_S: Final = 30.0
_POLL_S: Final = 0.2
_FOLDERS_S: Final = 1.5
"""A little more than the pause between two looks of a server at its folders. A load that has failed is tried again only
after a look at which the version was not wanted."""
_STALE_S: Final = 5.0
"""How long a server may go on telling how an earlier load ended, after a configuration that names the version again."""


@dataclass(frozen=True, slots=True)
class ManagedServers:
    """The model servers, and what they share with this command.

    Attributes:
        addresses: "host:port" of every single server.
        config_file: their --model_config_file, as seen from here.
        repository: their models, as seen from here.
        backend_on: a backend for one model on one server.
        patience_s: how long loading a version may take.
    """

    addresses: tuple[str, ...]
    config_file: Path
    repository: Path
    backend_on: Callable[[str, Kind], TensorFlowServingBackend]
    patience_s: float = 300.0


# The commands


async def list_versions(servers: ManagedServers) -> list[dict[str, str]]:
    """Each version of each model on each server, with its state and labels.

    Raises:
        ManagementError: if a server does not answer.
    """
    labels = {model.name: model.version_labels for model in read_config(servers.config_file).model_config_list.config}
    rows = []
    async with _connected(servers) as endpoints:
        for endpoint, name in product(endpoints, MODEL_NAMES.values()):
            folders = (servers.repository / name).glob("*/")
            states = {int(each.name): "on disk" for each in folders if each.name.isascii() and each.name.isdecimal()}
            states |= {version: _in_words(each) for version, each in (await _versions(endpoint, name)).items()}
            rows += [
                {
                    "server": endpoint.address,
                    "model": name,
                    "version": str(version),
                    "state": state,
                    "labels": ", ".join(sorted(key for key, at in labels.get(name, {}).items() if at == version)),
                }
                for version, state in sorted(states.items())
            ]
    return rows


async def promote(
    servers: ManagedServers, target: ModelReference, label: str, *, check: bool = True, report: Report = lambda _: None
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
    golden = golden_of(folder) if check else None
    before = read_config(servers.config_file)
    known = with_model(before, name)
    old = model_in(known, name).version_labels.get(label)
    if old == version:
        raise ManagementError(f"{label} of {target.variant} is version {version} already")

    async with _connected(servers) as endpoints:
        versions = specific_versions(model_in(known, name))
        if versions is None:  # labels need a policy that names versions
            versions = {each for each, at in (await _versions(endpoints[0], name)).items() if at.state == _AVAILABLE}
        loaded = with_versions(known, name, versions | {version})
        moved = with_label(loaded, name, label, version)
        try:
            report(f"loading {name} version {version}")
            await _load(endpoints, loaded, name, version, servers.patience_s)
            write_config(servers.config_file, loaded)
            await _send(endpoints, loaded)  # one server may have looked at its file while another one was loading
            for endpoint in endpoints:
                await _check(servers, endpoint.address, target, golden, report)
            report(f"moving {label} to version {version}")
            write_config(servers.config_file, moved)
            await _send(endpoints, moved)
        except BaseException:
            report("putting the configuration back")
            write_config(servers.config_file, before)
            try:
                await _send(endpoints, before)
            except ManagementError as error:
                report(f"{error}; the servers take it from their file instead")
            raise
    was = f", before that version {old}, which stays loaded" if old is not None else ""
    report(f"{label} of {target.variant} is version {version}{was}")


async def roll_back(
    servers: ManagedServers, target: ModelReference, label: str, *, report: Report = lambda _: None
) -> None:
    """Make a label stand for the version that it stood for before.

    Raises:
        ManagementError: if there is none.
    """
    version = _previous_version(read_config(servers.config_file), target, label)
    await promote(servers, ModelReference(target.variant, version=version), label, check=False, report=report)


def roll_back_in_file(
    servers: ManagedServers, target: ModelReference, label: str, *, report: Report = lambda _: None
) -> None:
    """Roll back in the file only, and load the version that the label leaves no more: for servers that do not start.

    Raises:
        ManagementError: if there is no previous version.
    """
    name, config = MODEL_NAMES[target.variant], read_config(servers.config_file)
    current = model_in(config, name).version_labels.get(label, 0)
    version = _previous_version(config, target, label)
    config = with_label(config, name, label, version)
    versions = specific_versions(model_in(config, name)) or set()
    write_config(servers.config_file, with_versions(config, name, versions - {current}))
    report(f"{label} of {target.variant} is version {version} for the model servers' next start")


def _previous_version(config: wire.ModelServerConfig, target: ModelReference, label: str) -> int:
    version = model_in(config, MODEL_NAMES[target.variant]).version_labels.get(previous(label))
    if version is None:
        raise ManagementError(f"{label} of {target.variant} has no version before this one")
    return version


# What the servers are told, and what they say


async def _load(
    endpoints: Sequence[Endpoint], config: wire.ModelServerConfig, name: str, version: int, patience_s: float
) -> None:
    """Have every server load a version, by a configuration that goes over the wire only."""
    statuses = [(await _versions(endpoint, name)).get(version) for endpoint in endpoints]
    if any(before is not None and before.status.error_code for before in statuses):
        await asyncio.sleep(_FOLDERS_S)
    await _send(endpoints, config)
    for endpoint, before in zip(endpoints, statuses, strict=True):
        try:
            async with asyncio.timeout(patience_s):
                await _until_loaded(endpoint, config, name, version, before)
        except TimeoutError as error:
            raise ManagementError(
                f"{name} version {version} was not loaded on {endpoint.address} within {patience_s:g} s"
            ) from error


async def _until_loaded(
    endpoint: Endpoint,
    config: wire.ModelServerConfig,
    name: str,
    version: int,
    before: wire.ModelVersionStatus | None,
) -> None:
    """Return when a version is AVAILABLE; raise ManagementError when loading it has failed.

    Args:
        before: the version's status before the configuration was sent. For a moment it still is, and says nothing.
    """
    clock = asyncio.get_running_loop()
    stale_until = clock.time() + _STALE_S
    began = False
    while True:
        now = (await _versions(endpoint, name)).get(version)
        if now is not None and now.state == _AVAILABLE:
            return
        if now is not None and now.state == _State.END and (began or now != before or clock.time() > stale_until):
            if now.status.error_code:
                reason = one_line(now.status.error_message)
                raise ManagementError(f"{name} version {version} on {endpoint.address} could not be loaded: {reason}")
            # The server has looked at its file, which does not name the version yet.
            await _send([endpoint], config)
            before, began, stale_until = now, False, clock.time() + _STALE_S
        began = began or (now is not None and now.state in {_State.START, _State.LOADING})
        await asyncio.sleep(_POLL_S)


async def _check(
    servers: ManagedServers, address: str, candidate: ModelReference, golden: Golden | None, report: Report
) -> None:
    """Wait until the gateway's own check of a candidate has passed, and compare its answers with the card's."""
    async with servers.backend_on(address, candidate.variant) as backend:
        try:
            async with asyncio.timeout(servers.patience_s):
                while candidate.version not in backend.versions():
                    if (reason := backend.refusal(candidate)) is not None:
                        raise ManagementError(f"{candidate} on {address} cannot be served: {reason}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise ManagementError(f"{candidate} did not answer on {address} within {servers.patience_s:g} s") from error
        if golden is not None:
            report(f"checking {candidate} on {address} with {len(golden.images)} golden images")
            await check_golden(backend, candidate, golden)


async def _send(endpoints: Sequence[Endpoint], config: wire.ModelServerConfig) -> None:
    for endpoint in endpoints:
        try:
            status = (await endpoint.reload(wire.ReloadConfigRequest(config=config), _CALL_S)).status
        except CallError as error:
            raise ManagementError(f"{endpoint.address} did not take the configuration: {error}") from error
        if status.error_code:
            reason = one_line(status.error_message)
            raise ManagementError(f"{endpoint.address} did not take the configuration: {reason}")


@asynccontextmanager
async def _connected(servers: ManagedServers) -> AsyncIterator[list[Endpoint]]:
    endpoints = [Endpoint(address) for address in servers.addresses]
    try:
        yield endpoints
    finally:
        for endpoint in endpoints:
            await endpoint.aclose()


async def _versions(endpoint: Endpoint, name: str) -> Versions:
    """The status of each version of a model; while the server is busy, this waits."""
    request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=name))
    while True:
        try:
            reply = await endpoint.status(request, _CALL_S)
        except CallError as error:
            if error.meaning is Meaning.UNKNOWN_VERSION:
                return {}
            if error.meaning is not Meaning.THREADS_BUSY:
                raise ManagementError(f"{endpoint.address} does not answer: {error}") from error
            await asyncio.sleep(_POLL_S)
        else:
            return {each.version: each for each in reply.model_version_status}


def _in_words(status: wire.ModelVersionStatus) -> str:
    if status.status.error_code:
        return f"failed: {one_line(status.status.error_message)}"
    return _State.Name(status.state)


# The command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m service models`."""
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="versions, states and labels on every model server")
    promoting = commands.add_parser("promote", help="load a version, check it, and move a label to it")
    promoting.add_argument("model", metavar="MODEL@VERSION", help="for example lightweight@3, or detector@2")
    promoting.add_argument(
        "--without-check", action="store_true", help="do not compare its answers with its card's golden ones"
    )
    rolling = commands.add_parser("rollback", help="move a label back to the version it stood for before")
    rolling.add_argument("model", metavar="MODEL", help="standard, lightweight or detector")
    rolling.add_argument(
        "--in-file",
        action="store_true",
        help="change only what the model servers read when they start: for servers that do not start",
    )
    for command in (promoting, rolling):
        command.add_argument(
            "--label", default=STABLE_LABEL, help=f"{STABLE_LABEL} (default), {CANARY_LABEL} or another"
        )


def run(arguments: argparse.Namespace, servers: ManagedServers) -> int:
    """`python -m service models …`; the exit code."""
    try:
        asyncio.run(_run(arguments, servers))
    except (ManagementError, ServiceError, FileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _run(arguments: argparse.Namespace, servers: ManagedServers) -> None:
    def report(line: str) -> None:
        print(line, flush=True)

    match arguments.command:
        case "list":
            report(_table(await list_versions(servers)))
        case "promote":
            reference = _named(arguments.model)
            await promote(servers, reference, arguments.label, check=not arguments.without_check, report=report)
        case "rollback" if arguments.in_file:
            roll_back_in_file(servers, _named(arguments.model), arguments.label, report=report)
        case "rollback":
            await roll_back(servers, _named(arguments.model), arguments.label, report=report)


def _named(text: str) -> ModelReference:
    """What an operator names: as in requests, or the detector with a version."""
    name, _, version = text.strip().partition("@")
    if name != DETECTOR:
        return ModelReference.parse(text)
    if not version:
        return ModelReference(DETECTOR)
    if not (version.isascii() and version.isdigit()):
        raise ManagementError(f"name the version to promote: {DETECTOR}@3")
    return ModelReference(DETECTOR, version=int(version))


def _table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return "the model servers have no models"
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
