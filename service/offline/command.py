"""What the command does once its words are read: begin the job or go on with it, run it, show how far it is.

Importing this module imports Ray.
"""

import argparse
import signal
import sys
import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.backends.repository import ServableError
from service.inference.errors import UnknownModelError
from service.offline import engine
from service.offline.job import Job, JobError, pinned
from service.offline.storage import StorageError
from service.settings import Settings

_LINE_EVERY_S: Final = 5.0
_NAMED: Final = 10


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Do the job; returns the exit code."""
    workers = engine.Workers(parsed.workers, parsed.cpus_per_worker, parsed.gpus_per_worker)
    try:
        job = Job.begin(
            parsed.input,
            parsed.out,
            settings,
            model=pinned(parsed.variant or settings.default_model, settings),
            form=parsed.format,
            shard_size=parsed.shard_size,
        )
        _say(summary(job))
        if not job.to_do:
            _say("nothing is left to do")
            return 0
        display = Display(job.work.description.images)
        with engine.cluster(parsed.address, workers), display.bar:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # again: Ray has put its own in the place of ours
            progress = engine.run(job, workers, on_progress=display.show)
    except (JobError, StorageError, ServableError, UnknownModelError, OSError) as error:
        _say(f"python -m service.offline: {error}")
        return 1
    return _verdict(job, progress)


def summary(job: Job) -> str:
    """What a job is about, and what it leaves out."""
    about = job.work.description
    before = f", {job.images_done} of them done before" if job.images_done else ""
    text = f"{about.images} pictures in {len(job.shards)} shards{before}; {about.model}, {job.work.settings.backend}"
    if not job.left_out:
        return text
    named, more = ", ".join(job.left_out[:_NAMED]), len(job.left_out) - _NAMED
    return f"{text}\nleft out {len(job.left_out)} hidden files: {named}{f' and {more} more' if more > 0 else ''}"


def _verdict(job: Job, progress: engine.Progress) -> int:
    seconds = time.monotonic() - progress.began
    _say(f"{progress.worked} pictures in {seconds:.1f} s with {len(progress.processes)} worker processes")
    if progress.failed:
        _say("without keypoints: " + ", ".join(f"{count} {code}" for code, count in sorted(progress.failed.items())))
    missing = progress.images - progress.done
    _say(f"{progress.done} of {progress.images} pictures have their record, in {job.work.output}")
    if missing:
        _say(f"{missing} have none, because a shard could not be done: the same command tries them again")
    return 1 if missing else 0


class Display:
    """A bar where standard error is a terminal, elsewhere a line now and then.

    Args:
        images: of the job.

    Attributes:
        bar: shown while it is entered.
    """

    def __init__(self, images: int) -> None:
        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._said = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=self._lines,
        )
        self._task = self.bar.add_task("workers are starting", total=images, rate="")

    def show(self, progress: engine.Progress) -> None:
        now = time.monotonic()
        failed = sum(progress.failed.values())
        rate = f"{progress.worked / max(now - progress.began, 1e-9):.1f} a second" if progress.worked else ""
        description = f"pictures, {failed} without keypoints" if failed else "pictures"
        if progress.worked:
            self.bar.update(self._task, completed=progress.done, description=description, rate=rate)
        if self._lines and (now - self._said >= _LINE_EVERY_S or progress.done == progress.images):
            self._said = now
            _say(f"{progress.done} of {progress.images} {description} {rate}".rstrip())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
