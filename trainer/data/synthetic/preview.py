"""The command `preview`: a contact sheet of any COCO-form set of hands."""

import argparse
from pathlib import Path

from trainer.data.synthetic.contact_sheet import SheetLayout, make_sheet
from trainer.errors import RefusedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("set", type=Path, help="folder of the set, or its JSON file")
    parser.add_argument("--out", type=Path, default=Path("contact-sheet.png"), help="picture to write (.png or .jpg)")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tile", type=int, default=192, help="side of a tile in pixels (default 192)")
    parser.add_argument("--plain", action="store_true", help="without keypoints")
    parser.add_argument("--both", action="store_true", help="each picture twice: without and with keypoints")
    parser.add_argument("--zoom", action="store_true", help="show the first hand of a picture instead of all of it")
    parser.add_argument(
        "--seed", type=int, default=None, help="draw the pictures at random; without it, the first ones"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the sheet. Raises RefusedError, naming the file, for a set that cannot be read."""
    if min(arguments.columns, arguments.rows) < 1 or arguments.tile < 16:
        raise RefusedError("--columns and --rows must be at least 1, --tile at least 16")
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise RefusedError(f"{arguments.out}: the sheet is written as .png or .jpg")
    layout = SheetLayout(
        columns=arguments.columns,
        rows=arguments.rows,
        tile=arguments.tile,
        overlay=not arguments.plain,
        plain_too=bool(arguments.both),
        zoom=bool(arguments.zoom),
    )
    sheet = make_sheet(arguments.set, layout, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out, quality=82)
    print(f"{arguments.out}: {sheet.width}x{sheet.height}")
    return 0
