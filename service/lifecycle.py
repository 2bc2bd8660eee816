"""The life of the process: listen, load the models, serve, answer what was accepted, stop.

Start: listen, so that a port in use shows at once; wait until every model answers; ready. Stop: not ready, refuse what
is new, finish what was accepted, close.
"""

import asyncio
import logging
import math
import select
import signal
import socket
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.ports import Backend
from service.inference.predictor import Predictor
from service.inference.streaming import Streams
from service.observability.metrics import PrometheusObserver
from service.rpc.server import RpcServer

_LAST_PROBLEMS_S: Final = 1.0  # to write the last problems out
_FOLLOW_MODELS_EVERY_S: Final = 1.0
_HANG_UP_S: Final = 1.0  # for clients to hang up, once everything is answered
_LOOK_AT_CONNECTIONS_EVERY_S: Final = 0.02

logger = logging.getLogger(__name__)


class Models(Protocol):
    """A backend, and what it takes until its models answer."""

    @property
    def backend(self) -> Backend: ...

    async def come_up(self) -> None:
        """Return when every model answers."""
        ...

    async def follow(self) -> None:
        """Serve later versions as they appear, for ever."""
        ...

    async def unavailable(self) -> Collection[tuple[str, int | None, str]]:
        """Variant, version and reason of what should be served and is not."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Readiness:
    """Why requests would fail now: what the life cycle knows, then what the backend says."""

    backend: Backend
    stopping: bool = False

    async def __call__(self) -> str | None:
        return "the service is shutting down" if self.stopping else await self.backend.not_ready()


class HangUpWhenStopping:
    """ASGI: once the service is stopping, every HTTP answer asks the client to close its connection."""

    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self._app = app
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hanging_up(message: Message) -> None:
            if message["type"] == "http.response.start" and self._readiness.stopping:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, hanging_up if scope["type"] == "http" else send)


class _Signals:
    """SIGTERM and SIGINT, told apart by order only: the first asks, the second insists."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@dataclass(slots=True, kw_only=True)
class Service:
    """The built parts.

    Attributes:
        predictor, streams: the use case.
        models: what it asks.
        app: REST's application.
        rest, admin: uvicorn's servers, without sockets yet; `admin` where operators have a listener of their own.
        rpc: gRPC's.
        watches: each follows a file while the service runs.
        readiness: told when the service stops.
        observer: told which models there are.
        grace_period_s: for requests that were accepted, once the service is asked to stop.
    """

    predictor: Predictor
    streams: Streams
    models: Models
    app: FastAPI
    rest: uvicorn.Server
    admin: uvicorn.Server | None
    rpc: RpcServer
    watches: Sequence[Callable[[], Coroutine[Any, Any, None]]]
    readiness: Readiness
    observer: PrometheusObserver
    grace_period_s: float

    async def live(
        self, listener: socket.socket, admin_listener: socket.socket | None, on_ready: Callable[[], None]
    ) -> None:
        """From the first connection to the last answer; gRPC listens already.

        Args:
            listener: REST's.
            admin_listener: the operators'.
            on_ready: called once every model answers.
        """
        loop = asyncio.get_running_loop()
        administering = None
        if self.admin is not None and admin_listener is not None:
            administering = loop.create_task(self.admin.serve(sockets=[admin_listener]))
        signals = _Signals(loop)
        serving = loop.create_task(self.rest.serve(sockets=[listener]))
        loading = loop.create_task(self.models.come_up())
        stop = loop.create_task(signals.first.wait())
        following = [loop.create_task(each) for each in (*(watch() for watch in self.watches), self._follow_models())]
        try:
            await asyncio.wait((loading, stop, serving), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                await self._tell_of_models()
                following.append(loop.create_task(self.models.follow()))
                on_ready()
                await asyncio.wait((stop, serving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (loading, stop, *following):
                task.cancel()
            await self._stop(serving, listener, signals)
            if self.admin is not None and administering is not None:  # to the last, so that operators see how it ends
                self.admin.should_exit = self.admin.force_exit = True
                await administering
            self.observer.stopped()

    async def _follow_models(self) -> None:
        """Keep the metrics about models up to date."""
        while True:
            await self._tell_of_models()
            await asyncio.sleep(_FOLLOW_MODELS_EVERY_S)

    async def _tell_of_models(self) -> None:
        self.observer.models_are(self.models.backend.models())
        self.observer.models_unavailable(await self.models.unavailable())
        self.observer.backend_is(up=await self.models.backend.not_ready() is None)

    async def _stop(self, serving: "asyncio.Task[None]", listener: socket.socket, signals: _Signals) -> None:
        loop = asyncio.get_running_loop()
        logger.info("stopping: finishing what was accepted")
        self.readiness.stopping = True
        self.observer.backend_is(up=False)
        deadline = loop.time() + self.grace_period_s
        await self.rpc.not_serving()
        drained = await self._drain(signals)
        # All answers are known; what remains is to write them out, and to have clients hang up before we do.
        await self._await_hang_up(listener, signals, min(_HANG_UP_S, max(0.0, deadline - loop.time())))
        # What has no answer by then gets an error at once.
        self.rest.config.timeout_graceful_shutdown = max(1, math.ceil(deadline - loop.time())) if drained else 0
        self.rest.should_exit = True
        grace_s = 0.0 if signals.second.is_set() else max(0.1, deadline - loop.time())
        await asyncio.gather(serving, self.rpc.stop(grace_s))
        if unanswered := set(self.rest.server_state.tasks):
            await asyncio.wait(unanswered, timeout=_LAST_PROBLEMS_S)
        await self.models.close()

    async def _drain(self, signals: _Signals) -> bool:
        """Wait until every accepted request has its answer, the time is up, or a second signal; whether all have."""
        draining = asyncio.ensure_future(self._finish_accepted())
        insisting = asyncio.ensure_future(signals.second.wait())
        await asyncio.wait((draining, insisting), timeout=self.grace_period_s, return_when=asyncio.FIRST_COMPLETED)
        drained = draining.done()
        if not drained:
            logger.warning("stopping although some requests have no answer yet")
        draining.cancel()
        insisting.cancel()
        return drained

    async def _finish_accepted(self) -> None:
        """Answer everything that was accepted. A stream whose reader is slow gets half of the time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.grace_period_s / 2):
                await self.streams.drain()
        await self.predictor.drain()

    async def _await_hang_up(self, listener: socket.socket, signals: _Signals, longest_s: float) -> None:
        """Refuse new requests, telling each client to close its connection; then stop listening, and wait for the rest.

        A connection that is kept open may carry a request at the very moment at which it is closed from this side, and
        that one would never be answered.
        """

        connections = self.rest.server_state.connections

        async def hung_up() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest_s / 2):
                    while connections and not signals.second.is_set():  # noqa: ASYNC110 -- a plain set
                        await asyncio.sleep(_LOOK_AT_CONNECTIONS_EVERY_S)

        await hung_up()
        # Connections that the kernel has accepted and we have not would be cut off: take those in, and no more.
        listener.listen(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s / 2):
                await asyncio.sleep(_LOOK_AT_CONNECTIONS_EVERY_S)
                while select.select([listener], [], [], 0)[0]:  # noqa: ASYNC110 -- the kernel's queue has no event
                    await asyncio.sleep(_LOOK_AT_CONNECTIONS_EVERY_S)
        for listening in self.rest.servers:
            listening.close()
        await hung_up()
