"""Which version a label stands for: `python -m service models list | promote | rollback`, on TensorFlow Serving.

Promoting takes three steps. The candidate is loaded beside the old version, by a configuration that goes over the wire
only: what the servers read when they start never names a version that has not loaded yet. It is checked on every
server. Then the label moves, in the file and over the wire; a server refuses to move it to a version that is not
loaded. The old version stays loaded as "previous_<label>", so that rolling back takes no time.

The servers look at their file every few minutes and then undo what only went over the wire. So does a promotion that
was killed half-way; one that is under way sends its configuration again.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from service.backends.repository import ServableError
from service.backends.tensorflow_serving.backend import MODEL_NAMES, TensorFlowServingBackend
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.config_file import (
    ManagementError,
    model_in,
    previous,
    read_config,
    specific_versions,
    with_label,
    with_versions,
    write_config,
)
from service.backends.tensorflow_serving.failures import CallError, Meaning, one_line
from service.backends.tensorflow_serving.golden import Golden, check_golden, golden_of
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.files import FileError
from service.inference.errors import ServiceError
from service.inference.models import CANARY_LABEL, STABLE_LABEL, ModelReference, Variant

Versions = dict[int, wire.ModelVersionStatus]

_State = wire.ModelVersionStatus.State

_CALL_S: Final = 30.0
_POLL_S: Final = 0.2
# A little more than the pause between two looks of a server at its folders. A load that has failed is tried again only
# after a look at which the version was not wanted.
_FOLDERS_S: Final = 1.5
# How long a server may go on telling how an earlier load ended, after a configuration that names the version again.
_STALE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ManagedServers:
    """The model servers, and what they share with this command.

    Attributes:
        addresses: "host:port" of every single server.
        config_file: their --model_config_file, as seen from here.
        repository: their models, as seen from here.
        backend_on: a backend for one variant on one server.
        patience_s: how long loading a version may take.
    """

    addresses: tuple[str, ...]
    config_file: Path
    repository: Path
    backend_on: Callable[[str, Variant], TensorFlowServingBackend]
    patience_s: float = 300.0


# The commands


async def list_versions(servers: ManagedServers) -> list[dict[str, str]]:
    """Each version of each model on each server, with its state and labels.

    Raises:
        ManagementError: if a server does not answer.
    """
    labels = {model.name: model.version_labels for model in read_config(servers.config_file).model_config_list.config}
    rows = []
    for address, name in product(servers.addresses, MODEL_NAMES.values()):
        folders = (servers.repository / name).glob("*/")
        states = {int(each.name): "on disk" for each in folders if each.name.isascii() and each.name.isdecimal()}
        for version, each in (await _versions(address, name)).items():
            failure = f"failed: {one_line(each.status.error_message)}" if each.status.error_code else ""
            states[version] = failure or _State.Name(each.state)
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


async def promote(servers: ManagedServers, target: ModelReference, label: str, *, check: bool = True) -> None:
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
    old = model_in(before, name).version_labels.get(label)
    if old == version:
        raise ManagementError(f"{label} of {target.variant} is version {version} already")

    loaded = with_versions(before, name, await _versions_now(servers, model_in(before, name)) | {version})
    moved = with_label(loaded, name, label, version)
    try:
        _say(f"loading {name} version {version}")
        await _load_and_check(servers, loaded, target, golden)
        _say(f"moving {label} to version {version}")
        write_config(servers.config_file, moved)
        await _send(servers.addresses, moved)
    except BaseException:
        _say("putting the configuration back")
        write_config(servers.config_file, before)
        await _send(servers.addresses, before)
        raise
    was = f", before that version {old}, which stays loaded" if old is not None else ""
    _say(f"{label} of {target.variant} is version {version}{was}")


async def roll_back(servers: ManagedServers, target: ModelReference, label: str, *, in_file: bool = False) -> None:
    """Make a label stand for the version that it stood for before.

    Args:
        in_file: change the file only, and load the version that the label leaves no more: for servers that do not
            start.

    Raises:
        ManagementError: if there is no previous version.
    """
    name, config = MODEL_NAMES[target.variant], read_config(servers.config_file)
    labels = model_in(config, name).version_labels
    version, current = labels.get(previous(label)), labels.get(label, 0)
    if version is None:
        raise ManagementError(f"{label} of {target.variant} has no version before this one")
    if not in_file:
        await promote(servers, ModelReference(target.variant, version=version), label, check=False)
        return
    config = with_label(config, name, label, version)
    versions = specific_versions(model_in(config, name)) or set()
    write_config(servers.config_file, with_versions(config, name, versions - {current}))
    _say(f"{label} of {target.variant} is version {version} for the model servers' next start")


# What the servers are told, and what they say


async def _load_and_check(
    servers: ManagedServers, config: wire.ModelServerConfig, target: ModelReference, golden: Golden | None
) -> None:
    """Have every server load a version, by a configuration that goes over the wire only, and check its answers."""
    name, version = MODEL_NAMES[target.variant], target.version or 0
    statuses = {address: (await _versions(address, name)).get(version) for address in servers.addresses}
    if any(before is not None and before.status.error_code for before in statuses.values()):
        await asyncio.sleep(_FOLDERS_S)
    await _send(servers.addresses, config)
    for address, before in statuses.items():
        try:
            async with asyncio.timeout(servers.patience_s):
                await _until_loaded(address, config, name, version, before)
            async with servers.backend_on(address, target.variant) as backend:
                async with asyncio.timeout(servers.patience_s):
                    await _until_served(address, backend, target)
                if golden is not None:
                    _say(f"checking {target} on {address} with {len(golden.images)} golden images")
                    await check_golden(backend, target, golden)
        except TimeoutError as error:
            raise ManagementError(
                f"{name} version {version} did not answer on {address} within {servers.patience_s:g} s"
            ) from error


async def _until_loaded(
    address: str,
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
        now = (await _versions(address, name)).get(version)
        if now is not None and now.state == _State.AVAILABLE:
            return
        if now is not None and now.state == _State.END and (began or now != before or clock.time() > stale_until):
            if now.status.error_code:
                reason = one_line(now.status.error_message)
                raise ManagementError(f"{name} version {version} on {address} could not be loaded: {reason}")
            # The server has looked at its file, which does not name the version yet.
            await _send([address], config)
            before, began, stale_until = now, False, clock.time() + _STALE_S
        began = began or (now is not None and now.state in {_State.START, _State.LOADING})
        await asyncio.sleep(_POLL_S)


async def _until_served(address: str, backend: TensorFlowServingBackend, candidate: ModelReference) -> None:
    """Return when the gateway's own check has passed; raise ManagementError when it has failed."""
    while candidate.version not in {model.version for model in backend.models()}:
        if (reason := backend.refusal(candidate)) is not None:
            raise ManagementError(f"{candidate} on {address} cannot be served: {reason}")
        await asyncio.sleep(_POLL_S)


async def _versions_now(servers: ManagedServers, model: wire.ModelConfig) -> set[int]:
    """The versions that a policy stands for now. Labels need one that names them."""
    if (named := specific_versions(model)) is not None:
        return named
    statuses = await _versions(servers.addresses[0], model.name)
    return {version for version, status in statuses.items() if status.state == _State.AVAILABLE}


async def _send(addresses: Sequence[str], config: wire.ModelServerConfig) -> None:
    for address in addresses:
        async with aclosing(Endpoint(address)) as endpoint:
            try:
                status = (await endpoint.reload(wire.ReloadConfigRequest(config=config), _CALL_S)).status
            except CallError as error:
                raise ManagementError(f"{address} refused the configuration: {error}") from error
        if status.error_code:
            raise ManagementError(f"{address} refused the configuration: {one_line(status.error_message)}")


async def _versions(address: str, name: str) -> Versions:
    """The status of each version of a model; while the server is busy, this waits."""
    async with aclosing(Endpoint(address)) as endpoint:
        while True:
            try:
                return await endpoint.version_statuses(name, _CALL_S)
            except CallError as error:
                if error.meaning is not Meaning.THREADS_BUSY:
                    raise ManagementError(f"{address} does not answer: {error}") from error
            await asyncio.sleep(_POLL_S)


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
    except (ManagementError, ServableError, FileError, ServiceError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _run(arguments: argparse.Namespace, servers: ManagedServers) -> None:
    if arguments.command == "list":
        _say(_table(await list_versions(servers)))
        return
    target, label = ModelReference.parse(arguments.model), arguments.label
    if arguments.command == "promote":
        await promote(servers, target, label, check=not arguments.without_check)
    else:
        await roll_back(servers, target, label, in_file=arguments.in_file)


def _say(line: str) -> None:
    print(line, flush=True)


def _table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return "the model servers have no models"
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
