"""One worker: the predictor with its models, in a process of its own, doing one shard after the other.

Knows nothing of Ray: `ShardWorker` is a class that is made once in each process and called with a row for each shard.
The pictures of a shard are read, decoded and batched side by side, on an event loop that runs while a shard is done.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from service.backends.embedded import Run
from service.backends.repository import Servable
from service.bootstrap import local_service
from service.inference.errors import ErrorKind
from service.inference.estimates import Estimate, EstimateRequest, Priority
from service.inference.requests import as_service_error, report
from service.observability.logs import configure_logging
from service.offline.attempts import ShardAttempts
from service.offline.job import Work
from service.offline.records import Record, answered, encode, failed, refused
from service.offline.storage import Place, StorageError, one_line

_DEADLINE_S: Final = 600.0  # of one picture; a model that takes longer is stuck
_TRIES: Final = 3
_PAUSE_S: Final = 0.5  # before the second try, and twice as long before the third
_BATCHES_UNDER_WAY: Final = 3  # one runs, one is full, one is being read and decoded
_KILLED: Final = "killed_worker"
# Failures that are not the picture's.
_PASSING: Final = frozenset({ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED})


class ShardError(Exception):
    """A shard could not be done, through no fault of its pictures. It can be done again."""


class ShardWorker:
    """Does shards, in the process that it is made in.

    Args:
        work: the job.
        open_servable: how embedded models are opened; None: with TensorFlow.
        pause_s: before a picture that could not be read or answered is tried again.

    Raises:
        StartError: the models cannot be had here.
    """

    def __init__(
        self, work: Work, open_servable: Callable[[Servable], Run] | None = None, pause_s: float = _PAUSE_S
    ) -> None:
        configure_logging(work.settings.log_level, work.settings.log_format)
        self._work = work
        self._pause_s = pause_s
        self._input, self._output = Place.at(work.description.input), Place.at(work.output)
        self._runner = asyncio.Runner()
        self._resources = AsyncExitStack()
        service = local_service(work.settings, open_servable=open_servable)
        try:
            self._service = self._runner.run(self._resources.enter_async_context(service))
        except BaseException:
            self._runner.close()
            raise

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Do one shard.

        Args:
            row: number of the shard, place of its first picture in the job, names of its pictures.

        Returns:
            The shard's number, how many pictures it has, how many of them show no hand, the codes of those that failed,
            and the process.

        Raises:
            ShardError: the model or the store failed, and not the pictures; nothing was written.
        """
        number, images = int(row["shard"]), [str(name) for name in row["images"]]
        file_name = self._work.file_name(number)
        attempts = ShardAttempts(self._output, file_name)
        try:
            records = self._runner.run(self._shard(int(row["first"]), images, attempts))
            self._check_pictures_are_to_blame(records)
            self._output.write(file_name, encode(records, self._work.description.form))
        except BaseException:  # SystemExit and KeyboardInterrupt are no picture's fault either
            attempts.failed()
            raise
        attempts.done()
        codes = [record["problem"]["code"] for record in records if "problem" in record]
        without_hands = sum("result" in record and not record["result"]["hands"] for record in records)
        counts = {"images": len(images), "without_hands": without_hands}
        return {"shard": number, **counts, "failed": codes, "process": os.getpid()}

    def close(self) -> None:
        self._runner.run(self._resources.aclose())
        self._runner.close()

    async def _shard(self, first: int, images: Sequence[str], attempts: ShardAttempts) -> list[Record]:
        if attempts.one_by_one:
            return [await self._carefully(image, str(first + index), attempts) for index, image in enumerate(images)]
        settings = self._work.settings
        under_way = asyncio.Semaphore(min(settings.max_queue, _BATCHES_UNDER_WAY * settings.max_batch_size))

        async def one(index: int, image: str) -> Record:
            async with under_way:
                return await self._picture(image, request_id=str(first + index))

        return await asyncio.gather(*(one(index, image) for index, image in enumerate(images)))

    async def _carefully(self, image: str, request_id: str, attempts: ShardAttempts) -> Record:
        """A picture's record, where one of the shard kills processes."""
        if image in attempts.fatal:
            return failed(image, request_id, 500, _KILLED, "the process that worked on this picture was killed")
        await asyncio.to_thread(attempts.begin_image, image)
        return await self._picture(image, request_id)

    async def _picture(self, image: str, request_id: str) -> Record:
        """A picture's record. What may pass is tried again.

        Raises:
            ShardError: the model does not answer.
        """
        for attempt in range(1, _TRIES + 1):
            last = attempt == _TRIES
            try:
                return answered(image, request_id, await self._estimate(image))
            except OSError as error:
                if last or isinstance(error, FileNotFoundError | PermissionError):
                    status = 404 if isinstance(error, FileNotFoundError) else 503
                    detail = f"the picture cannot be read: {one_line(error)}"
                    return failed(image, request_id, status, "unreadable_file", detail)
            except Exception as error:
                failure = as_service_error(error)
                if failure.kind is ErrorKind.UNKNOWN_MODEL or (last and failure.kind in _PASSING):
                    raise ShardError(f"the model does not answer: {failure}") from error
                if failure.kind not in _PASSING:
                    report(failure, request_id)
                    return refused(image, request_id, failure)
            await asyncio.sleep(self._pause_s * attempt)
        raise AssertionError("the last try returns or raises")

    def _check_pictures_are_to_blame(self, records: Sequence[Record]) -> None:
        """Where every picture of a shard failed with an error of the machine's, the shard failed and not they.

        A single picture gets its problem all the same, unless its store is away.

        Raises:
            ShardError: the pictures are not to blame.
        """
        problems = [record["problem"] for record in records if record["status"] >= 500]
        if sum(each["code"] != _KILLED for each in problems) < len(records):
            return
        if len(records) > 1:
            raise ShardError(f"every picture failed, the first with {problems[0]['code']}: {problems[0]['detail']}")
        try:
            self._input.names()
        except StorageError as error:
            raise ShardError(str(error)) from error

    async def _estimate(self, image: str) -> Estimate:
        content = await asyncio.to_thread(self._input.read, image, at_most=self._work.settings.max_body_bytes)
        return await self._service.predictor.estimate(
            EstimateRequest(
                image=content,
                deadline=self._service.clock.time() + _DEADLINE_S,
                max_hands=self._work.description.max_hands,
                min_score=self._work.description.min_score,
                whole=self._work.description.whole,
                asked_for=self._work.description.model,
                priority=Priority.BULK,
            )
        )
