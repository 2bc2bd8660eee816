"""Limits on connections, inside uvicorn: how many, how long a head may be, how slowly they may send or read.

uvicorn leaves these to a proxy in front; here they hold without one. They cannot be set from outside, so the classes
here derive from uvicorn's private ones. This is the only module that knows them, and pyproject.toml pins uvicorn's
minor version because of it. Bodies are bounded in `service.rest.uploads`.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Final

import uvicorn
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.protocol import State

from service.inference.byte_budget import ByteBudget, Hold
from service.inference.errors import OverloadedError
from service.inference.requests import request_id_from
from service.rest.policy import ConnectionLimits
from service.rest.problems import HttpError, problem_of

_MAX_PIPELINED: Final = 16
_SEND_BUFFER_BYTES: Final = 64 * 1024  # of the kernel's; it takes bytes in lumps, small beside the least rate
_MAX_FRAGMENTS: Final = 1024  # of one WebSocket message: each costs more than its bytes

_log = logging.getLogger(__name__)


def protocols(limits: ConnectionLimits, uploads: ByteBudget, *, max_message_bytes: int) -> dict[str, Any]:
    """What `uvicorn.Config` is to be told of protocols.

    Args:
        limits: of connections.
        uploads: what bodies and messages may hold all together.
        max_message_bytes: longest message of a WebSocket.
    """
    return {
        "http": type("_Http", (LimitedHttp,), {"limits": limits}),
        "ws": type("_WebSocket", (LimitedWebSocket,), {"limits": limits, "uploads": uploads}),
        "ws_max_size": max_message_bytes,
        "ws_per_message_deflate": False,  # pictures are compressed, and what unpacks to much is no use
    }


class LimitedServer(uvicorn.Server):
    """uvicorn on sockets that listen already, with a time-out for the handshake of TLS.

    Args:
        config: uvicorn's.
        handshake_timeout_s: for the handshake of TLS.
    """

    def __init__(self, config: uvicorn.Config, *, handshake_timeout_s: float) -> None:
        super().__init__(config)
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: Any = None) -> None:
        """Take connections from the sockets."""
        await self.lifespan.startup()
        loop, config = asyncio.get_running_loop(), self.config
        http: Any = config.http_protocol_class
        state = self.lifespan.state
        protocol = partial(http, config=config, server_state=self.server_state, app_state=state, _loop=loop)
        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=self._handshake_timeout_s if config.ssl else None,
            )
            for sock in sockets
        ]
        self.started = True


class _RefusedError(Exception):
    """Leaves the parser from within one of its calls."""


class _Limited(asyncio.Protocol):
    """What both kinds of connection have: a timer, and an end for readers that take too little of what is written."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    transport: Any
    _timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None  # while more is written than the other end has taken

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reader_timer()

    def _watch_reader(self) -> None:
        left, rate = self.transport.get_write_buffer_size(), self.limits.rate

        def look() -> None:
            if left - self.transport.get_write_buffer_size() >= rate.min_bytes_per_s * rate.grace_s:
                self._watch_reader()
                return
            _log.info("cut off a connection whose other end does not read")
            self._reader_timer = None
            self.transport.abort()

        self._reader_timer = asyncio.get_running_loop().call_later(rate.grace_s, look)

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LimitedHttp(_Limited, HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on heads, connections and the time that both take."""

    _in_head = True
    _header_bytes = 0  # of the head that is being read
    _other_bytes = 0  # received since the last of a body: of a head, or else chunk extensions and trailers
    _refusal: HttpError | None = None
    _deaf = False  # what comes in is thrown away

    # Connections

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.limits.max_connections:
            self.transport = transport
            full = "as many connections are open as may be"
            self._refuse(HttpError(503, "too_many_connections", full, {"Retry-After": "1"}))
            return
        connection = transport.get_extra_info("socket")
        if connection is not None:
            bound_send_buffer(connection)
        outgoing: Any = LenientTransport(transport, lambda: self._close_connection(transport))
        super().connection_made(outgoing)
        self._expect_head()

    # Heads

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._other_bytes += len(data)
        if self._in_head and self._timer is None:
            self._expect_head()
        super().data_received(data)
        most = self.limits.max_head_bytes
        if self._other_bytes > most and not self._deaf:
            what = "the body's chunks come with trailers or extensions of"
            trailers = HttpError(431, "trailers_too_long", f"{what} more than {most} bytes, the most there may be")
            self._refuse(self._head_too_long() if self._in_head else trailers)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > (most := self.limits.max_url_bytes):
            self._stop_parsing(
                HttpError(414, "url_too_long", f"the URL is longer than {most} bytes, the most there may be")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes + len(self.url) > self.limits.max_head_bytes:
            self._stop_parsing(self._head_too_long())
        if len(self.headers) >= (most := self.limits.max_headers):
            self._stop_parsing(
                HttpError(431, "too_many_headers", f"there are more than {most} headers, the most there may be")
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            detail = "wait for answers before sending further requests on a connection"
            self._stop_parsing(HttpError(429, "too_many_pipelined", detail))
        self._in_head, self._other_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._header_bytes, self._other_bytes = True, 0, 0
        if not self._answering:  # the answer was out before the body was in
            self._expect_head()

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade()

    def _close_connection(self, transport: asyncio.Transport) -> None:
        """Close it, after the last answer or because something is wrong; what was written is still sent."""
        if self._in_head or self._deaf:
            transport.close()
            return
        # The answer did not wait for the body, see below; here the connection was to be closed after it.
        self.flow.resume_reading()
        self._linger(transport)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self.transport.is_closing():
            # Answered without reading the body to its end. Were the connection closed now, its other end would find
            # it broken, and no answer; were it left open, a body without end would never be stopped.
            self._set_timer(self.limits.linger_s, self.transport.abort)

    @property
    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        self._set_timer(self.limits.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self._answering:
            self._expect_head()  # of a request that was sent ahead; the one before it is still being answered
            return
        seconds = self.limits.head_timeout_s
        self._refuse(HttpError(408, "head_too_slow", f"the request's head was not complete within {seconds:g} seconds"))

    def _head_too_long(self) -> HttpError:
        most = self.limits.max_head_bytes
        return HttpError(431, "head_too_long", f"the request's head is longer than {most} bytes, the most there may be")

    def _linger(self, transport: asyncio.Transport) -> None:
        """End this side; throw away what still comes in for a while, so that the other end can read the answer."""
        self._deaf = True
        if transport.can_write_eof():
            transport.write_eof()
        self._set_timer(self.limits.linger_s, transport.abort)

    # Refusals

    def _stop_parsing(self, refusal: HttpError) -> None:
        self._refusal = refusal
        raise _RefusedError

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's word for whatever was wrong
        self._refuse(self._refusal or HttpError(400, "invalid_http", "this is not HTTP/1.1 as it should be"))

    def _refuse(self, refusal: HttpError) -> None:
        """Answer without the application, and close once the other end could read it."""
        self._deaf = True
        if not self._in_head and not self._answering and self.cycle is not None:
            return  # the request has its answer, and the connection is about to be closed, see on_response_complete
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._answering:
            overtakes = self._in_head or self.pipeline or self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if overtakes:
                self.transport.close()  # an answer is on its way, and this one cannot overtake it
                return
        path = getattr(self, "url", b"").partition(b"?")[0][:256].decode("ascii", "replace") or "/"
        problem = problem_of(refusal, instance=path, request_id=request_id_from(None))
        body = problem.model_dump_json(exclude_unset=True).encode()
        headers = {
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "x-request-id": problem.request_id,
            "x-content-type-options": "nosniff",
            "connection": "close",
            **refusal.headers,
        }
        head = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        said = {"status": refusal.status, "code": refusal.code, "request_id": problem.request_id}
        _log.info("refused a connection", extra=said)
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self._linger(self.transport)


class LimitedWebSocket(_Limited, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, whose unread messages count as uploads and must come in at a least rate.

    Text that is not UTF-8 closes it with 1007, without a traceback in the log.
    """

    uploads: ClassVar[ByteBudget]
    _queued = 0  # bytes of whole messages that were not taken yet

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hold: Hold = self.uploads.hold()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._hold.release()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.disconnected or self.transport.is_closing():
            return
        try:
            self._hold.resize(self._partial + self._queued)
        except OverloadedError:
            self._end(CloseCode.TRY_AGAIN_LATER, "overloaded")
            return
        if self._partial == 0:
            self._stop_timer()
        elif self._timer is None:
            self._wait_for_message(self.loop.time())

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._end(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return
        super().handle_cont(event)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused by an HTTP answer, which is an answer

    def send_receive_event_to_app(self) -> None:
        self._stop_timer()
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.frames = []
            if not self.close_sent and self.conn.state is State.OPEN:  # else it is being closed already
                self.conn.send_close(1007)
                self.handle_parser_exception()
            return
        self._queued += sum(map(len, self.frames))
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message: Any = await super().receive()
        if message["type"] == "websocket.receive":
            taken = len(message.get("bytes") or b"") or len((message.get("text") or "").encode())
            self._queued = max(0, self._queued - taken)
            self._hold.resize(min(self._hold.size, self._partial + self._queued))
        return message

    @property
    def _partial(self) -> int:
        """Bytes of the message that is not complete yet."""
        return len(self.conn.reader.buffer) + sum(map(len, self.frames))

    def _wait_for_message(self, since: float) -> None:
        """Called again when its time is up: more may have come meanwhile, which gives it more time."""
        left_s = since + self.limits.rate.allowed_s(self._partial) - self.loop.time()
        if left_s > 0:
            self._set_timer(left_s, lambda: self._wait_for_message(since))
        else:
            self._end(CloseCode.POLICY_VIOLATION, "message_too_slow")

    def _end(self, code: int, reason: str) -> None:
        self._stop_timer()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()


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
