"""How benchmarks say what they found: a table to read, and JSON on the output's last lines and in a file."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that names the file for `write_json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result, too")


def write_json(result: object, file: Path | None) -> None:
    """Print the result, and write it to the file, if there is one."""
    text = json.dumps(result, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; all columns but the first hold figures."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=160, soft_wrap=True).print(table)
