"""The command `synth`: arguments, checks and messages round `generate`."""

import argparse
import time
from pathlib import Path
from typing import Final

from rich.console import Console

from trainer.data.synthetic.backgrounds import PICTURE_SUFFIXES, list_files
from trainer.data.synthetic.generate import Sources, generate
from trainer.data.synthetic.gltf import mesh_files
from trainer.data.synthetic.renderer import make_context
from trainer.data.synthetic.writer import SetSettings, digest_of_files
from trainer.data.worker_process import available_cores
from trainer.errors import RefusedError

_SMALLEST: Final = 32
_LARGEST: Final = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--count", type=int, required=True, help="pictures in the set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, or to go on with")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core; 0: this one)")
    parser.add_argument("--size", type=int, default=256, help="side of the square pictures in pixels (default 256)")
    parser.add_argument("--kind", choices=("crop", "scene", "mixed"), default="crop", help="default crop")
    parser.add_argument("--masks", action="store_true", help="also write masks/*.png")
    parser.add_argument("--hand-meshes", type=Path, metavar="DIR", help="rigged glTF hands to use besides the body's")
    parser.add_argument(
        "--panoramas", type=Path, metavar="DIR", help="Radiance .hdr panoramas for light and background"
    )
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="photographs for backgrounds")


def run(arguments: argparse.Namespace) -> int:
    """Makes the set; 0 when it is complete, 130 when stopped by Ctrl-C. Raises RefusedError for wrong arguments."""
    count, size, seed = int(arguments.count), int(arguments.size), int(arguments.seed)
    if count <= 0:
        raise RefusedError(f"--count must be above 0, got {count}")
    if not _SMALLEST <= size <= _LARGEST:
        raise RefusedError(f"--size must be in {_SMALLEST}..{_LARGEST}, got {size}")
    if seed < 0:
        raise RefusedError(f"--seed must not be negative, got {seed}")
    workers = arguments.workers if arguments.workers is not None else available_cores()
    if workers < 0:
        raise RefusedError(f"--workers must not be negative, got {workers}")
    settings, sources = _collect(arguments, size, seed)
    # Says at once, and in this process, when there is no OpenGL.
    make_context().release()
    console = Console(stderr=True)
    start = time.monotonic()
    try:
        outcome = generate(arguments.out, settings, sources, count, workers, console)
    except KeyboardInterrupt:
        console.print("stopped; run the same command again to go on from here")
        return 130
    if outcome.made == 0:
        print(f"{arguments.out}: all {count} pictures were there already")
    else:
        seconds = time.monotonic() - start
        speed = f", {outcome.rate:.1f} a second after start-up" if outcome.rate else ""
        print(f"{arguments.out}: made {outcome.made} of {count} pictures in {seconds:.1f} s{speed}")
    return 0


def _collect(arguments: argparse.Namespace, size: int, seed: int) -> tuple[SetSettings, Sources]:
    meshes: Path | None = arguments.hand_meshes
    panoramas = list_files(arguments.panoramas, (".hdr",), "panoramas") if arguments.panoramas else ()
    photos = (
        list_files(arguments.backgrounds, PICTURE_SUFFIXES, "background photographs") if arguments.backgrounds else ()
    )
    settings = SetSettings(
        seed=seed,
        kind=arguments.kind,
        size=size,
        masks=bool(arguments.masks),
        hand_meshes=digest_of_files(mesh_files(meshes), meshes) if meshes else "",
        panoramas=digest_of_files(panoramas, arguments.panoramas) if panoramas else "",
        backgrounds=digest_of_files(photos, arguments.backgrounds) if photos else "",
    )
    return settings, Sources(hand_meshes=meshes, panoramas=panoramas, backgrounds=photos)
