"""Whom a subcommand asks: a service at an address, or a model in this process."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from service.cli.main import API_KEY_VARIABLE
from service.client import HandPoseClient, HandPoseError, Tls

_PATIENCE_S = 60.0


class CommandError(Exception):
    """The command cannot do its work. One line for whoever typed it."""


@contextmanager
def connected(parsed: argparse.Namespace) -> Iterator[HandPoseClient]:
    """A client as the options --url, --variant, --model-repo and those of keys and certificates say.

    Raises:
        CommandError: the address makes no sense, the model cannot be loaded, or (from within the block) the service
            cannot be reached.
    """
    variant = getattr(parsed, "variant", None)
    try:
        if parsed.url is not None:
            client = HandPoseClient(
                parsed.url,
                variant=variant,
                api_key=_api_key(parsed),
                timeout_s=_PATIENCE_S,
                tls=Tls(parsed.ca_file, parsed.cert_file, parsed.cert_key_file),
            )
        else:
            client = _local(parsed, variant)
    except ValueError as error:
        raise CommandError(str(error)) from error
    with client:
        try:
            yield client
        except HandPoseError as error:
            where = parsed.url or "the model"
            raise CommandError(f"{where}: {error}") from error


def _api_key(parsed: argparse.Namespace) -> str | None:
    """The key given, the one in the file given, or the one in the environment; None if there is none."""
    if parsed.api_key is not None or parsed.api_key_file is None:
        return parsed.api_key or os.environ.get(API_KEY_VARIABLE, "").strip() or None
    try:
        return str(parsed.api_key_file.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeError) as error:
        raise CommandError(f"{parsed.api_key_file}: no key can be read from it") from error


def _local(parsed: argparse.Namespace, variant: str | None) -> HandPoseClient:
    try:
        from service.bootstrap import StartError
        from service.cli.local import LocalTransport
        from service.settings import Settings, SettingsError
    except ImportError as error:
        raise CommandError(
            f"without --url the model runs in this process, which needs more packages ({error.name} is missing):"
            " pip install 'handpose[service,embedded]'"
        ) from error
    environment = dict(os.environ)
    if parsed.model_repo is not None:
        environment["HANDPOSE_MODEL_REPO"] = str(parsed.model_repo)
    try:
        settings = Settings.from_environment(environment)
        print("loading the models ...", file=sys.stderr, flush=True)
        return HandPoseClient(variant=variant, timeout_s=_PATIENCE_S, transport=LocalTransport(settings))
    except (StartError, SettingsError) as error:
        raise CommandError(str(error)) from error
    except ImportError as error:
        raise CommandError(
            f"{error.name} is missing, which runs the models in this process: pip install 'handpose[service,embedded]'"
        ) from error
