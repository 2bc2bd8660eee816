"""The whole service in this process, as `python -m service` runs it, on a model that costs nothing.

Its event loop only turns while `ask` waits for an answer, so one input's work is done, or reported as hanging, before
the next one is made.
"""

import asyncio
import logging
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from deploy.stand_in.repository import add_version
from service.bootstrap import Addresses, serve
from service.settings import Settings
from tests.fuzz.targets import PATIENCE, FoundError
from tests.support.servables import run_without_model

ANSWER_S: Final = 90.0 * PATIENCE
"""Within so many seconds every answer must be there. The service gives up earlier. Both are long, because fuzzers share
their cores, and one that waits for its turn has not found a hang."""

_SETTINGS: Final = {
    "HANDPOSE_REST_PORT": "0",
    "HANDPOSE_GRPC_PORT": "0",
    "HANDPOSE_DEFAULT_DEADLINE_MS": "60000",
    "HANDPOSE_MAX_DEADLINE_MS": "60000",
    "HANDPOSE_MAX_BODY_BYTES": "65536",
    "HANDPOSE_MAX_PIXELS": "1000000",
    "HANDPOSE_MAX_BATCH_IMAGES": "4",
    "HANDPOSE_MAX_ROIS": "4",
    "HANDPOSE_WORKER_THREADS": "1",
    "HANDPOSE_GRACE_PERIOD_S": "1",
}

T = TypeVar("T")


class Gateway:
    """A running service. Use `running`."""

    def __init__(self, runner: asyncio.Runner, serving: "asyncio.Task[None]", addresses: Addresses) -> None:
        self._runner = runner
        self._serving = serving
        self._errors = _ErrorLog()
        self.addresses = addresses
        logging.getLogger().addHandler(self._errors)
        runner.get_loop().set_exception_handler(lambda _, context: self._errors.add(_shown(context)))

    def ask(self, asking: Callable[[], Coroutine[Any, Any, T]], *, within_s: float = ANSWER_S) -> T:
        """Let the service run until this is done.

        Raises:
            FoundError: if it takes too long, the service ended, or something was logged as an error.
        """

        async def bounded() -> T:
            try:
                async with asyncio.timeout(within_s):
                    return await asking()
            except TimeoutError as error:
                raise FoundError(f"no end after {within_s:g} s") from error

        result = self._runner.run(bounded())
        if self._serving.done():
            ending = "cancelled" if self._serving.cancelled() else repr(self._serving.exception() or "as if asked to")
            raise FoundError(f"the service has ended: {ending}")
        if errors := self._errors.take():
            raise FoundError("the log has errors:\n" + "\n".join(errors))
        return result

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to REST."""
        return await asyncio.open_connection(*self.addresses.rest, limit=1 << 24)

    def close(self) -> None:
        logging.getLogger().removeHandler(self._errors)

        async def stop() -> None:
            self._serving.cancel()
            with suppress(asyncio.CancelledError):
                await self._serving

        self._runner.run(stop())


@contextmanager
def running(settings: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """A service that answers, on ports that the system chose; `settings` on top of small limits."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        add_version(Path(folder), "lightweight", 1)
        environment = {**_SETTINGS, "HANDPOSE_MODEL_REPO": folder, **(settings or {})}

        async def start() -> tuple["asyncio.Task[None]", Addresses]:
            ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                serve(
                    Settings.from_environment(environment), on_ready=ready.set_result, open_servable=run_without_model
                )
            )
            await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            return serving, ready.result()

        gateway = Gateway(runner, *runner.run(start()))
        try:
            yield gateway
        finally:
            gateway.close()


class _ErrorLog(logging.Handler):
    """Keeps what is logged as an error: whatever the client was told, the service did not expect that."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record))

    def add(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


def _shown(context: Mapping[str, Any]) -> str:
    error = context.get("exception")
    return "\n".join((str(context.get("message")), *(traceback.format_exception(error) if error is not None else ())))
