"""`handpose models`: the models that can be asked."""

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from service.cli.connection import connected


async def models(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    async with connected(parsed) as client:
        found = await client.models()
    if parsed.json:
        print(json.dumps([dataclasses.asdict(model) for model in found], indent=2))
        return 0
    table = Table("variant", "version", "labels", "input", "parameters", "exported", box=None)
    for model in found:
        table.add_row(
            model.variant,
            str(model.version),
            ", ".join(model.labels) or "-",
            f"{model.input_size} px",
            f"{model.parameters:,}" if model.parameters else "-",
            model.created or "-",
        )
    Console().print(table)
    return 0
