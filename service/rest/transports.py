"""What asyncio's transports leave open: how much the kernel may buffer, and writes after the end."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_SEND_BUFFER_BYTES: Final = 64 * 1024  # of the kernel's; it takes bytes in lumps, small beside the least rate


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
