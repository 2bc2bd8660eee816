"""`python -m trainer.data.synthetic synth|preview`: the two commands without the rest of the trainer."""

import argparse
import sys

from trainer.data.synthetic import cli
from trainer.errors import TrainerError


def main() -> int:
    """Runs one command; 2 for what is refused, with the reason on one line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.data.synthetic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cli.add_synth_arguments(commands.add_parser("synth", help="render a set of hands"))
    cli.add_preview_arguments(commands.add_parser("preview", help="make a contact sheet of a set"))
    arguments = parser.parse_args()
    try:
        return cli.run_synth(arguments) if arguments.command == "synth" else cli.run_preview(arguments)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
