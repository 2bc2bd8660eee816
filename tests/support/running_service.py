"""A gateway in a thread of its own, as a client sees one: through its sockets only."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.inference.access import AccessPolicy, ApiKey, Doorkeeper
from service.inference.keys import digest_of
from tests.support.gateway import Gateway

T = TypeVar("T")


class Service:
    """A running gateway; `urls` are its two addresses.

    Args:
        key: the only key that it lets in; None: it asks for none.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway")
        self._workers = ThreadPoolExecutor(1)
        self._thread.start()
        self.gateway = self._run(self._start)

    @property
    def urls(self) -> dict[str, str]:
        return {"rest": self.gateway.rest_url, "grpc": self.gateway.rpc_url}

    def do(self, action: Callable[[Gateway], T]) -> T:
        """Run something on the gateway's own thread, and return its result."""

        async def act() -> T:
            return action(self.gateway)

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def drain_streams(self) -> None:
        """Let the streams end, as at shutdown."""
        asyncio.run_coroutine_threadsafe(self.gateway.streams.drain(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.gateway.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._workers.shutdown()

    async def _start(self) -> Gateway:
        doorkeeper = None
        if self._key is not None:
            doorkeeper = Doorkeeper(AccessPolicy(), time=self._loop.time)
            doorkeeper.follow([ApiKey("tests", digest_of(self._key))])
        gateway = Gateway(self._workers, doorkeeper=doorkeeper)
        await gateway.start()
        await gateway.start_rest()
        return gateway

    def _run(self, start: Callable[[], object]) -> Gateway:
        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)  # type: ignore[arg-type]
