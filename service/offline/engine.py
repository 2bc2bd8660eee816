"""Runs a job on Ray Data: hands shards to workers, replaces workers that die, shows how far it is.

One machine and a cluster differ in the address only. Ray keeps the workers alive and gives a dead one's shards to
another; what is done is known from the shards' files (`service.offline.job`), so neither Ray nor this process remembers
anything that a kill could lose.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import ray
import ray.data
from ray.exceptions import RayError

from service.backends.embedded import Run
from service.backends.repository import Servable
from service.offline.job import Job, JobError
from service.offline.storage import Place
from service.offline.worker import ShardWorker

LOCAL: Final = "local"
_OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024  # only names and counts travel through it
_MOST_BLOCKS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers, and what each of them gets.

    Attributes:
        number: at the most; None: as many as there is room for.
        cpus: processor cores of one worker.
        gpus: graphics processors of one worker; a fraction shares one.
    """

    number: int | None = None
    cpus: int = 2
    gpus: float = 0.0


@dataclass(slots=True)
class Progress:
    """How far a job is.

    Attributes:
        images: of the job.
        done: those with a record, from earlier runs too.
        worked: those that this run has done.
        without_hands: those of this run on which no hand was found.
        failed: codes of those of this run that got a problem.
        shards: numbers of the shards that this run has done.
        processes: how many shards each worker process did, by its id.
        began: when this run began to work, on `time.monotonic`.
    """

    images: int
    done: int
    worked: int = 0
    without_hands: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    shards: set[int] = field(default_factory=set)
    processes: Counter[int] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a shard that is done; once, however often a worker did it."""
        if int(row["shard"]) in self.shards:
            return
        self.shards.add(int(row["shard"]))
        self.done += int(row["images"])
        self.worked += int(row["images"])
        self.without_hands += int(row["without_hands"])
        self.failed.update(str(code) for code in row["failed"])
        self.processes[int(row["process"])] += 1


@contextmanager
def cluster(address: str, workers: Workers) -> Iterator[None]:
    """Ray on this machine for as long as the block runs, or a connection to a cluster that is there.

    Args:
        address: `local`, `auto` or `host:port`.
        workers: what they need; on this machine, Ray gets no more.

    Raises:
        JobError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway, and warns of until then
    only_here: dict[str, Any] = {}
    if address == LOCAL:
        cores = max(os.cpu_count() or 1, workers.cpus * (workers.number or 1))
        only_here = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address, logging_level=logging.ERROR, **only_here)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run(
    job: Job,
    workers: Workers,
    *,
    on_progress: Callable[[Progress], None],
    open_servable: Callable[[Servable], Run] | None = None,
) -> Progress:
    """Do what is left of a job. Needs Ray (`cluster`).

    Args:
        job: what to do.
        workers: how many, and what they need.
        on_progress: called before the first shard and after each.
        open_servable: how embedded models are opened; None: with TensorFlow.

    Returns:
        How far the job is now: less than all its pictures, where a shard could not be done.

    Raises:
        JobError: no worker could begin.
    """
    progress = Progress(job.work.description.images, job.images_done)
    on_progress(progress)
    rows = [{"shard": shard.number, "first": shard.first, "images": list(shard.images)} for shard in job.to_do]
    _quieten()
    most = min(workers.number or _room_for(workers), len(rows))
    shards = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
        ShardWorker,
        fn_constructor_kwargs={"work": job.work, "open_servable": open_servable},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
    )
    try:
        for row in shards.iter_rows():
            progress.add(row)
            on_progress(progress)
    except RayError as error:
        raise JobError(f"the workers failed: {str(error).strip().splitlines()[-1]}") from error
    Place.at(job.work.output).tidy()
    return progress


def _room_for(workers: Workers) -> int:
    """How many workers the cluster has room for now."""
    there: Mapping[str, float] = ray.cluster_resources()
    rooms = [there.get("CPU", 0) / workers.cpus]
    if workers.gpus:
        rooms.append(there.get("GPU", 0) / workers.gpus)
    return max(1, int(min(rooms)))


def _quieten() -> None:
    """Ray Data's own bars and plans stay off the terminal, and a shard that fails does not end the job."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
