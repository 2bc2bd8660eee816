"""`python -m service`: reads the settings, runs the service, and says in one line what went wrong if it cannot.

Exit codes: 0 stopped as asked, 1 could not start, 2 a setting is wrong.
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

from service.bootstrap import StartError, serve
from service.observability.logs import configure_logging
from service.settings import PREFIX, Settings, SettingsError, unknown_names

logger = logging.getLogger("service")


def main(arguments: Sequence[str]) -> int:
    """Run the service; returns the exit code."""
    _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
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
        f"  {PREFIX}{name.upper():22} {field.description} (default {field.default})"
        for name, field in Settings.model_fields.items()
    ]
    return argparse.ArgumentParser(
        prog="python -m service",
        description="Serves hand pose over REST. Everything is set by environment variables.",
        epilog="settings:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _say_ready(host: str, port: int) -> None:
    """Tell whoever started the service where it is and how to try it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{reachable}:{port}"
    print(f"\nHand pose is ready: {url}  (API: {url}/docs)\n\n  {_command_to_try(url)}\n", flush=True)


def _command_to_try(url: str) -> str:
    example = Path(str(files("service.rest").joinpath("static", "example.jpg")))
    if not example.is_file():
        return f"curl {url}/v1/models"
    here = Path.cwd()
    path = example.relative_to(here) if example.is_relative_to(here) else example
    return f"curl -H 'X-Model-Variant: lightweight' -F {shlex.quote(f'image=@{path}')} {url}/v1/hand-pose"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
