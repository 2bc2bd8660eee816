"""Uvicorn's connections, with what it leaves to strangers put right.

Both classes change what happens when a client breaks its protocol: the answer to that is uvicorn's, but the log stays
quiet, because a traceback for each such client would bury what the operator should see. And HTTP's answers go out in
one piece, where uvicorn writes the head and the body one after the other.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

_HEAD: Final = b"HTTP/1.1 "


class HttpConnection(HttpToolsProtocol):
    """HTTP/1.1. What is written after the connection's end is dropped, and a head goes out with its body.

    uvicorn learns of the end a little after the transport does, and an answer that is written in between would raise.
    A WebSocket that the connection becomes writes to the same transport.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        outgoing = Outgoing(transport, lambda: self.close_connection(transport), self.loop)
        super().connection_made(cast("asyncio.Transport", outgoing))

    def close_connection(self, transport: asyncio.Transport) -> None:
        """Close it, after the last answer or because something is wrong; what was written is still sent."""
        transport.close()


class Outgoing:
    """A transport that is not offended by what comes too late, and keeps a head for what follows it at once.

    Each write is a call of the kernel, which wakes whoever reads: for an answer of two, twice. A head that nothing
    follows in the same turn of the event loop goes out by itself. After `write_eof` nothing goes out; where TLS has no
    such end of its own, it still ends this side.
    """

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport = transport
        self._close = close
        self._closed = self._ended = False
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._send(head + data)
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._send_head)
        else:
            self._send(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._send_head()
        self._ended = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        if not self._closed:
            self._send_head()
            self._closed = True
            self._close()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def _send(self, data: bytes) -> None:
        if not (self._ended or self.is_closing()):
            self._transport.write(data)

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._send(head)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket. Text that is not UTF-8 closes it with 1007; one that is refused by an HTTP answer was answered."""

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_text(self.frames):
            self.frames = []
            if not self.close_sent and self.conn.state is State.OPEN:  # else it is being closed already
                self.conn.send_close(1007)
                self.handle_parser_exception()
            return
        super().send_receive_event_to_app()


def _is_text(parts: list[Any]) -> bool:
    try:
        b"".join(parts).decode()
    except UnicodeDecodeError:
        return False
    return True
