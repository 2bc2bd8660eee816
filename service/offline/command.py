"""What the command does once its words are read: begin the job or go on with it, run it, show how far it is.

Importing this module imports Ray.
"""

import argparse
import signal
import sys
import time
from typing import Final

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
            max_hands=parsed.max_hands,
            min_score=parsed.min_score,
            whole=parsed.whole,
        )
        _say(summary(job))
        if not job.to_do:
            _say("nothing is left to do")
            return 0
        with engine.cluster(parsed.address, workers):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # again: Ray has put its own in the place of ours
            progress = engine.run(job, workers, on_progress=ProgressLines().show)
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
    if progress.without_hands:
        _say(f"{progress.without_hands} show no hand")
    if progress.failed:
        _say("with a problem: " + ", ".join(f"{count} {code}" for code, count in sorted(progress.failed.items())))
    missing = progress.images - progress.done
    _say(f"{progress.done} of {progress.images} pictures have their record, in {job.work.output}")
    if missing:
        _say(f"{missing} have none, because a shard could not be done: the same command tries them again")
    return 1 if missing else 0


class ProgressLines:
    """Prints how far a job is: at the beginning, every few seconds, and at the end."""

    def __init__(self) -> None:
        self._printed = -_LINE_EVERY_S

    def show(self, progress: engine.Progress) -> None:
        """Print a line, if it is time for one."""
        now = time.monotonic()
        if now - self._printed < _LINE_EVERY_S and progress.done < progress.images:
            return
        self._printed = now
        failed, line = sum(progress.failed.values()), f"{progress.done} of {progress.images} pictures"
        if failed:
            line += f", {failed} with a problem"
        if progress.worked:
            rate = progress.worked / max(now - progress.began, 1e-9)
            line += f", {rate:.1f} a second, {(progress.images - progress.done) / rate:.0f} s left"
        _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
