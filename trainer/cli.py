"""The trainer's command line: `python -m trainer COMMAND`.

A command is a row of `COMMANDS` and a module with `add_arguments(parser)` and `run(arguments) -> exit code`. Only the
chosen command's module is imported; one that imports Keras and TensorFlow inside `run` answers help and wrong arguments
at once. Exit codes: 0 done, 1 failed, 2 refused (wrong arguments, a file that is missing, a version that exists),
3 time was up before the end, the same command goes on; 128 and a signal's number (130 is Ctrl-C): told to stop.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from trainer.errors import TrainerError
from trainer.native_stderr import native_stderr_held_back


@dataclass(frozen=True)
class Command:
    """A sub-command: its name, what it does in one line, the module that does it, and the extra that this needs."""

    name: str
    summary: str
    module: str
    extra: str = "trainer"


class CommandModule(Protocol):
    """What a command's module has to offer."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Does the work; returns the exit code, raises TrainerError to fail with one line."""


COMMANDS = (
    Command("synth", "render labelled synthetic hands", "trainer.data.synthetic.synth", "synth"),
    Command("preview", "draw a contact sheet of a set of labelled hands", "trainer.data.synthetic.preview", "synth"),
    Command("pack", "pack data sets into one small folder to train from elsewhere", "trainer.pack"),
    Command("train", "train a network from a configuration, or go on with a run", "trainer.train"),
    Command("finish", "turn a run into weights for serving, measured on held-out pictures", "trainer.finish"),
    Command("evaluate", "measure a network on labelled hands", "trainer.evaluate"),
    Command("card", "write the document of a trained network from its weights and its run", "trainer.card_markdown"),
    Command("reproduce", "go the whole path from nothing to measured weights", "trainer.reproduce"),
    Command("profile", "count both networks' parameters and operations beside the paper's", "trainer.profile"),
    Command("export", "write SavedModels for serving from trained weights", "trainer.export"),
)


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Runs one command; `argv` defaults to the process's arguments. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Renders training data; trains, measures and exports the hand-pose networks.",
        epilog="KERAS_BACKEND chooses Keras's backend (tensorflow, torch, jax); export needs tensorflow.",
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen: CommandModule | None = None
    extra = ""
    try:
        for command in commands:
            subparser = subparsers.add_parser(
                command.name, help=command.summary, description=f"{command.summary[0].upper()}{command.summary[1:]}."
            )
            if argv and argv[0] == command.name:
                extra = command.extra
                with native_stderr_held_back():
                    chosen = cast(CommandModule, importlib.import_module(command.module))
                chosen.add_arguments(subparser)
        arguments = parser.parse_args(argv)
        assert chosen is not None  # parse_args has exited unless the first argument is a command
        return chosen.run(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "service", "trainer"):  # a defect of ours
            raise
        print(
            f"error: this needs the package {package!r}, which is not installed: `make install` in a clone installs all"
            f' that there is, `pip install ".[{extra}]"` what this command needs',
            file=sys.stderr,
        )
        return 2
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # A full disk or a folder that must not be written is the user's to mend, not a defect to trace.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
