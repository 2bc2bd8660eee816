"""The client of a subcommand: for a service at an address, or for the models in this process."""

import argparse
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.cli.errors import CommandError
from service.client import AsyncHandPoseClient, HandPoseError, Tls

API_KEY_VARIABLE = "HANDPOSE_API_KEY"

_TIMEOUT_S = 60.0


@asynccontextmanager
async def connected(parsed: argparse.Namespace) -> AsyncIterator[AsyncHandPoseClient]:
    """A client as the options --url, --variant, --model-repo and those of keys and certificates say.

    Raises:
        CommandError: the address makes no sense, the model cannot be loaded, or (from within the block) the service
            cannot be reached.
    """
    variant = getattr(parsed, "variant", None)
    try:
        async with _remote(parsed, variant) if parsed.url is not None else _local(parsed, variant) as client:
            yield client
    except HandPoseError as error:
        raise CommandError(f"{parsed.url or 'the model'}: {error}") from error


def _remote(parsed: argparse.Namespace, variant: str | None) -> AsyncHandPoseClient:
    try:
        tls = Tls(parsed.ca_file, parsed.cert_file, parsed.cert_key_file)
        key = _api_key(parsed)
        return AsyncHandPoseClient(parsed.url, variant=variant, api_key=key, timeout_s=_TIMEOUT_S, tls=tls)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _api_key(parsed: argparse.Namespace) -> str | None:
    """The key given, the one in the file given, or the one in the environment; None if there is none."""
    if parsed.api_key is not None or parsed.api_key_file is None:
        return parsed.api_key or os.environ.get(API_KEY_VARIABLE, "").strip() or None
    try:
        return str(parsed.api_key_file.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeError) as error:
        raise CommandError(f"{parsed.api_key_file}: no key can be read from it") from error


@asynccontextmanager
async def _local(parsed: argparse.Namespace, variant: str | None) -> AsyncIterator[AsyncHandPoseClient]:
    environment = dict(os.environ)
    if parsed.model_repo is not None:
        environment["HANDPOSE_MODEL_REPO"] = str(parsed.model_repo)
    try:
        from service.bootstrap import StartError, local_service
        from service.cli.local import LocalTransport
        from service.settings import Settings, SettingsError

        print("loading the models ...", file=sys.stderr, flush=True)
        async with local_service(Settings.from_environment(environment)) as service:
            yield AsyncHandPoseClient(variant=variant, timeout_s=_TIMEOUT_S, transport=LocalTransport(service))
    except ImportError as error:
        raise CommandError(
            f"without --url the model runs in this process, which needs more packages ({error.name} is missing):"
            " pip install '.[service,embedded]' in a checkout of the project"
        ) from error
    except (StartError, SettingsError) as error:
        raise CommandError(str(error)) from error
