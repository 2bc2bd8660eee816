"""What asyncio's transports leave open: readers that read too slowly, and writes after the end."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from service.rest.policy import TransferRate

_SEND_BUFFER_BYTES: Final = 64 * 1024  # of the kernel's; it takes bytes in lumps, small beside the least rate

_log = logging.getLogger(__name__)


class SlowReaderWatch:
    """Cuts a connection off whose other end takes too little of what is written to it."""

    def __init__(self, transport: asyncio.Transport, rate: TransferRate) -> None:
        self._transport = transport
        self._rate = rate
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    def paused(self) -> None:
        """More is written than the other end has taken."""
        if self._timer is None:
            self._left = self._transport.get_write_buffer_size()
            self._wait()

    def stop(self) -> None:
        """It has taken enough, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._rate.grace_s, self._look)

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if self._left - left < self._rate.min_bytes_per_s * self._rate.grace_s:
            _log.info("cut off a connection whose other end does not read")
            self._timer = None
            self._transport.abort()
            return
        self._left = left
        self._wait()


def bound_send_buffer(connection: socket.socket) -> None:
    """Left alone, Linux lets it grow to megabytes and takes as much at a time, which looks as if nobody read."""
    with suppress(OSError):  # it is gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


class LenientTransport:
    """A transport on which a write after the end is dropped, where uvicorn's would raise.

    uvicorn learns of the end a little later than the transport does. `write_eof` ends this side even where TLS has no
    such end of its own.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._closed = self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not (self._ended or self.is_closing()):
            self._transport.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ended = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._close()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()
