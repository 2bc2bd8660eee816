"""`python -m service`: reads the settings, runs the service, and says in one line what went wrong if it cannot.

`python -m service models …` manages versions and labels on TensorFlow Serving instead, and `python -m service keys …`
the file of API keys.

Exit codes: 0 stopped or done as asked, 1 could not start or not be done, 2 a setting is wrong.
"""

import argparse
import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import uvloop
from prometheus_client import disable_created_metrics

from service.access import commands as key_commands
from service.backends.tensorflow_serving import management
from service.bootstrap import Addresses, StartError, managed_servers, serve
from service.observability.logs import configure_logging
from service.settings import PREFIX, Settings, SettingsError, unknown_names

logger = logging.getLogger("service")


def main(arguments: Sequence[str]) -> int:
    """Run the service; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if parsed.subcommand == "models":
        return _manage_models(parsed, settings)
    if parsed.subcommand == "keys":
        return _manage_keys(parsed, settings)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, of no use
    configure_logging(settings.log_level, settings.log_format)
    for name in unknown_names(os.environ):
        logger.warning("%s is no setting of the service and has no effect", name)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, on_ready=_say_ready))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    lines = [
        f"  {PREFIX}{name.upper():22} {field.description} (default {_shown(field.default)})"
        for name, field in Settings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves hand pose over REST and gRPC. Everything is set by environment variables.",
        epilog="settings:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(dest="subcommand", title="instead of serving")
    management.add_arguments(
        subcommands.add_parser("models", help="list, promote and roll back model versions on TensorFlow Serving")
    )
    key_commands.add_arguments(subcommands.add_parser("keys", help="make, list and revoke API keys"))
    return parser


def _shown(default: object) -> str:
    if default is None:
        return "none"
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _manage_models(arguments: argparse.Namespace, settings: Settings) -> int:
    if settings.tfs_config_file is None:
        print(f"{PREFIX}TFS_CONFIG_FILE must name the model servers' configuration file", file=sys.stderr)
        return 2
    servers = managed_servers(
        settings.tfs_addresses, config_file=settings.tfs_config_file, repository=settings.model_repo
    )
    return management.run(arguments, servers)


def _manage_keys(arguments: argparse.Namespace, settings: Settings) -> int:
    path = arguments.file or settings.api_keys_file
    if path is None:
        print(f"{PREFIX}API_KEYS_FILE or --file must name the file of keys", file=sys.stderr)
        return 2
    return key_commands.run(arguments, path)


def _say_ready(addresses: Addresses) -> None:
    """Print where the service is, and a command to try it."""
    s = "s" if addresses.tls else ""
    url, rpc_url = f"http{s}://{_reachable(*addresses.rest)}", f"grpc{s}://{_reachable(*addresses.grpc)}"
    admin = f"; admin: http://{_reachable(*addresses.admin)}" if addresses.admin is not None else ""
    command = _command_to_try(url, with_key=addresses.keys)
    print(f"\nHand pose is ready: {url}  (API: {url}/docs; gRPC: {rpc_url}{admin})\n\n  {command}\n", flush=True)


def _reachable(host: str, port: int) -> str:
    """An address that a client on this machine can use."""
    known = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return f"{known.get(host, f'[{host}]' if ':' in host else host)}:{port}"


def _command_to_try(url: str, *, with_key: bool) -> str:
    curl = 'curl -H "Authorization: Bearer $HANDPOSE_API_KEY"' if with_key else "curl"
    example = Path(str(files("service.rest").joinpath("static", "example.jpg")))
    if not example.is_file():
        return f"{curl} {url}/v1/models"
    here = Path.cwd()
    path = example.relative_to(here) if example.is_relative_to(here) else example
    return f"{curl} -H 'X-Model-Variant: lightweight' -F {shlex.quote(f'image=@{path}')} {url}/v1/hand-pose"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
