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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from service.settings import PREFIX, Settings, SettingsError

_INTERRUPTED: Final = 130
_NOT_FOR_JOBS: Final = ("ROUTING_FILE", "API_KEYS_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE")
"""Settings of a server only: a job names its model, and accepts no connections."""

T = TypeVar("T", int, float)


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
    given |= {name: value for name, value in environment.items() if value.strip()}
    if parsed.model_repo is not None:
        given[f"{PREFIX}MODEL_REPO"] = str(parsed.model_repo)
    for name in _NOT_FOR_JOBS:
        given.pop(f"{PREFIX}{name}", None)
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
    add("--variant", metavar="NAME", help="standard or lightweight, perhaps with @version or @label")
    add("--max-hands", type=_number_from(int, 1, 16), metavar="N", help="hands to look for in a picture (default 4)")
    score_help = "leave out hands that score less, 0 to 1 (default: the predictor's)"
    add("--min-score", type=_number_from(float, 0.0, 1.0), metavar="S", help=score_help)
    whole_help = "each picture shows one hand as a whole; none is looked for"
    add("--whole", action="store_true", default=None, help=whole_help)
    add("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the records (default jsonl)")
    shard_help = "pictures in one file of the output (default 500)"
    add("--shard-size", type=_number_from(int, 1), metavar="N", help=shard_help)
    address_help = "local starts Ray on this machine (default); auto or host:port join a cluster from within"
    add("--address", default="local", type=_address, help=address_help)
    workers_help = "models at work at the same time (default: all that fit)"
    add("--workers", type=_number_from(int, 1), metavar="N", help=workers_help)
    cores, cores_help = min(2, os.cpu_count() or 1), "processor cores for each (default %(default)s)"
    add("--cpus-per-worker", type=_number_from(int, 1), default=cores, metavar="N", help=cores_help)
    gpus_help = "graphics processors for each; a fraction shares one (default 0)"
    add("--gpus-per-worker", type=_number_from(float, 0.0), default=0.0, metavar="X", help=gpus_help)
    add("--model-repo", type=Path, metavar="DIR", help="folder of servables, the same on every machine")
    return parser


def _address(text: str) -> str:
    if text.startswith("ray://"):
        raise argparse.ArgumentTypeError(
            "Ray Data does not work over ray://; run the command on a machine of the cluster with --address auto, as"
            " ray job submit does"
        )
    return text


def _number_from(kind: Callable[[str], T], least: T, most: float = sys.float_info.max) -> Callable[[str], T]:
    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}") from error
        if not least <= value <= most:
            up_to = f" and at most {most:g}" if most < sys.float_info.max else ""
            raise argparse.ArgumentTypeError(f"must be at least {least}{up_to}, got {text}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
