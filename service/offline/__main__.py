"""`python -m service.offline INPUT --out DIR`: every picture of a folder or a bucket, on one machine or a Ray cluster.

The predictor's settings are the service's environment variables. Stopped or killed, the same command goes on where it
was.

Exit codes: 0 every picture has its record; 1 something is missing, or the job could not be done; 2 the command line or
a setting is wrong; 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from service.settings import PREFIX, Settings, SettingsError

_INTERRUPTED: Final = 130
# Settings that only a server has a use for: a job names its model, and nobody connects to it.
_OF_SERVERS: Final = ("ROUTING_FILE", "API_KEYS_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE")
_NOT_FOR_JOBS: Final = frozenset(PREFIX + name for name in _OF_SERVERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = settings_for(parsed, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        from service.offline.command import run
    except ImportError as error:
        print(
            f"{error.name} is missing: pip install '.[service,embedded,ray]' in a checkout of the project",
            file=sys.stderr,
        )
        return 1
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: Ray is taken down in order
    try:
        return run(parsed, settings)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return _INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def settings_for(parsed: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """The workers' settings: the environment's, as far as the command line and the kind of work do not say otherwise.

    Raises:
        SettingsError: if one has a value that is not allowed.
    """
    cores = str(parsed.cpus_per_worker)
    given = {f"{PREFIX}WORKER_THREADS": cores, f"{PREFIX}TENSORFLOW_THREADS": cores, f"{PREFIX}LOG_LEVEL": "warning"}
    given |= {name: value for name, value in environment.items() if value.strip() and name not in _NOT_FOR_JOBS}
    if parsed.model_repo is not None:
        given[f"{PREFIX}MODEL_REPO"] = str(parsed.model_repo)
    settings = Settings.from_environment(given)
    return settings.model_copy(update={"model_repo": settings.model_repo.absolute()})  # workers start elsewhere


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.offline",
        description="Finds the hands of all pictures of a folder, a pattern or a bucket, and writes a record for each."
        " Stopped or killed, the same command goes on where it was.",
        epilog="exit codes: 0 every picture has its record, 1 something is missing, 2 wrong command line, 130"
        " interrupted. Settings of the predictor: python -m service --help.",
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        help="folder, quoted pattern ('photos/**/*.jpg') or URL (s3://, gs://, hdfs://, file://)",
    )
    add("--out", required=True, metavar="DIR", help="folder or URL for the records; goes on where it was")
    add(
        "--variant",
        metavar="NAME",
        help="standard or lightweight, perhaps with @version or @label (default: as the service)",
    )
    add("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the records (default jsonl)")
    add("--shard-size", type=count, metavar="N", help="pictures in one file of the output (default 500)")
    ray = "where Ray is: local starts it on this machine (default); auto or host:port join a cluster from within"
    add("--address", default="local", type=_address, help=ray)
    add("--workers", type=count, metavar="N", help="models at work at the same time (default: all that fit)")
    cores = min(2, os.cpu_count() or 1)
    add(
        "--cpus-per-worker",
        type=count,
        default=cores,
        metavar="N",
        help="processor cores for each (default %(default)s)",
    )
    gpus = "graphics processors for each; a fraction shares one (default 0)"
    add("--gpus-per-worker", type=share, default=0.0, metavar="X", help=gpus)
    add("--model-repo", type=Path, metavar="DIR", help="folder of servables, the same on every machine")
    return parser


def _address(text: str) -> str:
    if text.startswith("ray://"):
        raise argparse.ArgumentTypeError(
            "Ray Data does not work over ray://; run the command on a machine of the cluster with --address auto, as"
            " ray job submit does"
        )
    return text


def count(text: str) -> int:
    """An option of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def share(text: str) -> float:
    """An option of at least 0."""
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
