"""`handpose`: reads the command line and calls the subcommand. What a subcommand needs is imported when it is called.

Exit codes: 0 done; 1 something failed (a file, the service, a model); 2 the command line is wrong; 130 interrupted.
"""

import argparse
import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import shtab

from service.cli.errors import CommandError
from service.pose.geometry import Box

FAILED: Final = 1
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["trainer"]:  # every word after it is the trainer's
        return subprocess.call([sys.executable, "-m", "trainer", *given[1:]])
    try:
        return _run(_parser().parse_args(given))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CommandError, OSError) as error:
        print(f"handpose: {error}", file=sys.stderr)
        return FAILED


def _run(parsed: argparse.Namespace) -> int:
    match parsed.command:
        case "serve":
            return _serve(parsed)
        case "estimate":
            from service.cli.estimate import estimate

            return asyncio.run(estimate(parsed))
        case "models":
            from service.cli.models import models

            return asyncio.run(models(parsed))
        case _:
            from service.cli.bench import bench

            return asyncio.run(bench(parsed))


def _serve(parsed: argparse.Namespace) -> int:
    from service.__main__ import main as run_service

    settings = {
        "HANDPOSE_REST_HOST": parsed.host,
        "HANDPOSE_GRPC_HOST": parsed.host,
        "HANDPOSE_REST_PORT": parsed.port,
        "HANDPOSE_GRPC_PORT": parsed.grpc_port,
        "HANDPOSE_MODEL_REPO": parsed.model_repo,
    }
    os.environ.update({name: str(value) for name, value in settings.items() if value is not None})
    return run_service([])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="handpose",
        description="Finds the 21 keypoints of hands in pictures and videos.",
        epilog="exit codes: 0 done, 1 something failed, 2 wrong command line. "
        'Tab completion: eval "$(handpose --print-completion bash)" (or zsh, tcsh).',
    )
    shtab.add_argument_to(parser, ["--print-completion"])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the service (REST and gRPC)"))
    _add_estimate(commands.add_parser("estimate", help="find the hands of pictures, folders and videos"))
    _add_models(commands.add_parser("models", help="list the models that can be asked"))
    _add_bench(commands.add_parser("bench", help="measure how fast a service answers"))
    commands.add_parser("trainer", help="train, evaluate, export: as python -m trainer", add_help=False)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs the service. More is set by HANDPOSE_ variables: see python -m service --help."
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of REST (default 8000)")
    parser.add_argument("--grpc-port", type=int, help="port of gRPC (default: the one after REST's)")
    parser.add_argument("--model-repo", type=Path, metavar="DIR", help="folder of servables (default model_repo)")


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Finds the hands of pictures; in a video, follows them from frame to frame."
    files = parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a picture, folder or video")
    _add_connection(parser)
    where = parser.add_mutually_exclusive_group()
    roi_help = "a box around a hand in pixels (repeatable, one picture only); without it hands are looked for"
    where.add_argument("--roi", action="append", default=[], type=_box, metavar="X,Y,WIDTH,HEIGHT", help=roi_help)
    where.add_argument("--whole", action="store_true", help="the whole picture, or frame, shows one hand")
    hands_help = "hands to look for, 1 to 16 (default 4)"
    parser.add_argument("--max-hands", type=int, choices=range(1, 17), metavar="N", help=hands_help)
    score_help = "leave out hands that are looked for and score less, 0 to 1 (default: the service's)"
    parser.add_argument("--min-score", type=_score, metavar="S", help=score_help)
    save_help = "draw the hands, and write into a folder or, for a single picture or video, a file"
    save = parser.add_argument("--save", type=Path, metavar="PATH", help=save_help)
    for argument in (files, save):
        argument.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture or frame, one a line")
    video = parser.add_argument_group("videos")
    video.add_argument("--no-tracking", action="store_true", help="look for hands in every frame anew")
    video.add_argument("--smooth", action="store_true", help="steady the keypoints with a one-euro filter")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.description = "Lists the models of a service, or of the model repository."
    _add_connection(parser, variant=False)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = "Asks about one picture again and again (closed loop) and prints how long the answers took."
    parser.add_argument("file", nargs="?", type=Path, help="the picture (default: an example)")
    _add_connection(parser)
    parser.add_argument("--seconds", type=_positive, default=5.0, help="how long (default 5)")
    parser.add_argument("--concurrency", type=_count, default=4, metavar="N", help="requests at a time (default 4)")
    parser.add_argument("--stream", action="store_true", help="one stream of frames instead of single requests")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_connection(parser: argparse.ArgumentParser, *, variant: bool = True) -> None:
    parser.add_argument("--url", help="http(s):// or grpc(s)://host:port; without it the model runs in this process")
    key_file_help = "file that holds the service's key, if it asks for one (default: the key in HANDPOSE_API_KEY)"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=key_file_help)
    parser.add_argument("--api-key", metavar="KEY", help="the key itself; others on this machine can see it meanwhile")
    parser.add_argument("--ca-file", type=Path, metavar="PEM", help="authorities to trust instead of the system's")
    parser.add_argument("--cert-file", type=Path, metavar="PEM", help="certificate to show to the service")
    parser.add_argument("--cert-key-file", type=Path, metavar="PEM", help="its private key (default: in --cert-file)")
    parser.add_argument("--model-repo", type=Path, metavar="DIR", help="folder of servables, without --url")
    if variant:
        parser.add_argument(
            "--variant", metavar="NAME", help="standard or lightweight, perhaps with @version or @label"
        )


def _box(text: str) -> Box:
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"four numbers X,Y,WIDTH,HEIGHT are needed, got {text!r}") from error
    return Box(x, y, width, height)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a whole number from 1 is needed, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return value


def _score(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


if __name__ == "__main__":
    sys.exit(main())
