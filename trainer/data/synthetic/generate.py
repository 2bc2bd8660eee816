"""Making a set with several processes: hands out indices, takes back records, shows how it goes.

Each process has its own OpenGL context. A sample depends only on the set's seed and its index, so neither the number of
processes nor the order in which they finish shows in the result.
"""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.data import worker_process
from trainer.data.synthetic.asset import load_asset
from trainer.data.synthetic.backgrounds import PhotoFolder
from trainer.data.synthetic.gltf import load_hand_meshes
from trainer.data.synthetic.hands import BodyHands, HandSource
from trainer.data.synthetic.hdr import read_hdr
from trainer.data.synthetic.renderer import Renderer
from trainer.data.synthetic.sample import make_sample
from trainer.data.synthetic.scene import Stock
from trainer.data.synthetic.writer import Record, SetFolder, SetSettings, write_sample

_CHUNK: Final = 6
# Panoramas serve as light and as blurred backgrounds; more than this many would only fill the memory.
_MOST_PANORAMAS: Final = 200


@dataclass(frozen=True)
class Sources:
    """Files that hands, light and backgrounds come from; empty where the made-up ones serve alone."""

    hand_meshes: Path | None = None
    panoramas: tuple[Path, ...] = ()
    backgrounds: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    made: int
    total: int
    rate: float  # pictures a second, after the first had come


def build_stock(sources: Sources) -> Stock:
    """Load all that scenes are made from. Raises the loaders' errors, which name the file."""
    asset = load_asset()
    body = BodyHands(asset)
    hands: list[HandSource] = [body]
    if sources.hand_meshes is not None:
        # The body's hands vary more, so they stay the larger part.
        hands = [body, body, load_hand_meshes(sources.hand_meshes)]
    panoramas: list[npt.NDArray[np.float32]] = [read_hdr(path) for path in sources.panoramas[:_MOST_PANORAMAS]]
    photos = PhotoFolder(sources.backgrounds) if sources.backgrounds else None
    return Stock(hands=tuple(hands), body=asset.body, panoramas=tuple(panoramas), photos=photos)


class Maker:
    """Makes samples in this process."""

    def __init__(self, folder: Path, settings: SetSettings, sources: Sources) -> None:
        self._folder, self._settings = folder, settings
        self._stock = build_stock(sources)
        self._renderer = Renderer(settings.size, settings.size)

    def make(self, indices: list[int]) -> list[Record]:
        """Make and write the samples of these indices; returns their records."""
        s = self._settings
        return [
            write_sample(
                self._folder, i, make_sample(self._stock, self._renderer, s.kind, s.size, s.seed, i), masks=s.masks
            )
            for i in indices
        ]

    def close(self) -> None:
        """Give the graphics context back."""
        self._renderer.close()


_maker: Maker | None = None
_plan: tuple[Path, SetSettings, Sources] | None = None


def _begin_worker(folder: Path, settings: SetSettings, sources: Sources) -> None:
    global _plan  # noqa: PLW0603 - a worker process has no other place for its state
    _plan = (folder, settings, sources)
    worker_process.begin()


def _make_in_worker(indices: list[int]) -> list[Record]:
    global _maker  # noqa: PLW0603
    if _maker is None:
        assert _plan is not None
        _maker = Maker(*_plan)
    return _maker.make(indices)


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


def generate(
    folder: Path, settings: SetSettings, sources: Sources, count: int, workers: int, console: Console
) -> Outcome:
    """Make the set's first `count` samples, or what is missing of them, and write the annotations of all there are.

    Raises SetError for a folder that holds something else, and KeyboardInterrupt after noting what was finished.
    """
    target = SetFolder(folder, settings)
    todo = target.missing(count)
    made, rate = 0, 0.0
    if todo:
        target.start()
        columns = (
            TextColumn("rendering"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=count, completed=count - len(todo), rate="starting")
            first: float | None = None
            counted = 0
            for records in _results(folder, settings, sources, todo, workers):
                target.note(records)
                made += len(records)
                now = time.monotonic()
                if first is None:
                    first = now
                else:
                    counted += len(records)
                    rate = counted / max(now - first, 1e-6)
                progress.update(task, advance=len(records), rate=f"{rate:.1f}/s" if rate else "")
    target.finish()
    return Outcome(made=made, total=count, rate=rate)


def _results(
    folder: Path, settings: SetSettings, sources: Sources, todo: list[int], workers: int
) -> Iterator[list[Record]]:
    if workers == 0:
        maker = Maker(folder, settings, sources)
        try:
            for chunk in _chunks(todo):
                yield maker.make(chunk)
        finally:
            maker.close()
        return
    waiting = _chunks(todo)
    context = multiprocessing.get_context("spawn")
    with worker_process.one_thread_each():
        pool = ProcessPoolExecutor(workers, context, _begin_worker, (folder, settings, sources))
        try:
            running: set[Future[list[Record]]] = set()
            for chunk in waiting:
                running.add(pool.submit(_make_in_worker, chunk))
                if len(running) >= 3 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
