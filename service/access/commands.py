"""`python -m service keys`: make, list and revoke API keys. The service follows the file within a second."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.access.key_file import add_key, read_keys, remove_key
from service.files import FileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the subcommands."""
    commands = parser.add_subparsers(dest="action", required=True)
    new = commands.add_parser("new", help="make a key, print it once, and append its SHA-256 to the file")
    new.add_argument("--name", required=True, help="who uses it: for people and for the log")
    new.add_argument(
        "--expires-in-days", type=_positive, metavar="DAYS", help="how long it is good (default: for ever)"
    )
    new.add_argument(
        "--images-per-second",
        type=float,
        metavar="N",
        help="its own rate; 0: no limit (default: the service's setting)",
    )
    new.add_argument("--burst", type=float, metavar="N", help="images at once (default: two seconds' worth)")
    revoke = commands.add_parser("revoke", help="remove a key's entry from the file")
    revoke.add_argument("--name", required=True)
    listing = commands.add_parser("list", help="names, expiry and rates of the keys in the file")
    for each in (new, revoke, listing):
        each.add_argument("--file", type=Path, help="the file of keys (default: HANDPOSE_API_KEYS_FILE)")


def run(arguments: argparse.Namespace, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int:
    """Do what was asked; returns the exit code."""
    try:
        match arguments.action:
            case "new":
                _new(arguments, path, now())
            case "revoke":
                remove_key(path, arguments.name)
                print(f"{arguments.name} is no key any more", file=sys.stderr)
            case _:
                _list(path, now())
    except FileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _new(arguments: argparse.Namespace, path: Path, now: datetime) -> None:
    days = arguments.expires_in_days
    key = add_key(
        path,
        arguments.name,
        now=now,
        expires=None if days is None else (now + timedelta(days=days)).replace(microsecond=0),
        images_per_second=arguments.images_per_second,
        burst=arguments.burst,
    )
    print(
        f"a key for {arguments.name}, in {path} as its SHA-256. This is the only time that it is shown:",
        file=sys.stderr,
    )
    print(key)


def _list(path: Path, now: datetime) -> None:
    for key in read_keys(path):
        until = "for ever" if key.expires is None else f"until {key.expires.isoformat()}"
        expired = " (expired)" if key.expires is not None and key.expires <= now else ""
        rate = ""
        if key.allowance is not None:
            rate = f", {key.allowance.images_per_second:g} images a second, {key.allowance.burst:g} at once"
        print(f"{key.name}: {until}{expired}{rate}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 36_500:
        raise argparse.ArgumentTypeError("must be above 0 and at most 36500")
    return value
