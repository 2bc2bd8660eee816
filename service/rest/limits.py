"""What a connection may do to us: how many there are, how slowly they may send or read, how long a head may be.

uvicorn leaves these to a proxy in front; here they hold without one. Two protocol classes, for HTTP and WebSocket,
bound what happens before a request reaches the application; `UploadGuard` bounds the body on its way to it. What a
request may ask for is not decided here, but in `service.rest.parsing` and in the use case.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from websockets.frames import Frame

from service.inference.byte_budget import ByteBudget, Hold
from service.inference.errors import OverloadedError, TooSlowError
from service.inference.requests import request_id_from
from service.rest.connections import HttpConnection, WebSocketConnection
from service.rest.problems import HttpError, http_problem

_MAX_PIPELINED: Final = 16
_MAX_FRAGMENTS: Final = 1024  # of one WebSocket message: each costs more than its bytes
_PIECE_BYTES: Final = 64 * 1024  # of an answer
_SEND_BUFFER_BYTES: Final = (
    64 * 1024
)  # of the kernel's; it takes bytes in lumps, which must be small beside the least rate
_HOLD: Final = "handpose.uploads"  # in the scope
_TRY_AGAIN_LATER: Final = 1013
_TOO_BIG: Final = 1009
_POLICY_VIOLATION: Final = 1008

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may do, and how many there may be.

    Attributes:
        max_connections: of HTTP and WebSocket together; more are told 503.
        max_head_bytes: of a request's line and headers together.
        max_url_bytes: of a request's target.
        max_headers: in one request.
        head_timeout_s: for a request's head to be complete, from the connection or from its first byte on; also for
            the handshake of TLS.
        body_timeout_s: for a body or message, on top of what its size takes at `min_bytes_per_s`. A reader that takes
            less than that rate for so long is cut off, too.
        min_bytes_per_s: the least rate at which senders and readers are waited for.
        linger_s: for how long what still comes in is thrown away after an answer that did not wait for it, so that
            the sender can read the answer.
    """

    max_connections: int = 1000
    max_head_bytes: int = 32 * 1024
    max_url_bytes: int = 8 * 1024
    max_headers: int = 100
    head_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    min_bytes_per_s: int = 16 * 1024
    linger_s: float = 2.0


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

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

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


class _SlowReaderWatch:
    """Cuts a connection off whose other end takes too little of what is written to it."""

    def __init__(self, transport: asyncio.Transport, limits: ConnectionLimits) -> None:
        self._transport = transport
        self._limits = limits
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
        self._timer = asyncio.get_running_loop().call_later(self._limits.body_timeout_s, self._look)

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if self._left - left < self._limits.min_bytes_per_s * self._limits.body_timeout_s:
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


class _RefusedError(Exception):
    """Leaves the parser from within one of its calls."""


class LimitedHttp(HttpConnection):
    """uvicorn's HTTP with limits on heads, connections and the time that both take."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._head_bytes = 0  # received since the last body, as they come
        self._header_bytes = 0  # of the head that is being read
        self._idle_bytes = 0  # received since the last of a body that were the body's: chunk extensions, trailers
        self._timer: asyncio.TimerHandle | None = None  # for a head, or for the end after a refusal
        self._refusal: HttpError | None = None
        self._deaf = False  # what comes in is thrown away
        self._reader: _SlowReaderWatch | None = None

    # Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.max_connections:
            self.transport = transport
            full = HttpError(
                503, "too_many_connections", "as many connections are open as may be", {"Retry-After": "1"}
            )
            self._refuse(full)
            return
        connection = transport.get_extra_info("socket")
        if connection is not None:
            bound_send_buffer(connection)
        self._reader = _SlowReaderWatch(transport, self.limits)
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._reader is not None:
            self._reader.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader is not None:
            self._reader.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.stop()

    # Heads

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._timer is None:
                self._expect_head()
        else:
            self._idle_bytes += len(data)
        super().data_received(data)
        if self._deaf:
            return
        if self._in_head and self._head_bytes > self.limits.max_head_bytes:
            self._refuse(self._head_too_long())
        elif not self._in_head and self._idle_bytes > self.limits.max_head_bytes:
            self._refuse(self._too_much_besides_the_body())

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            most = self.limits.max_url_bytes
            self._stop_parsing(
                HttpError(414, "url_too_long", f"the URL is longer than {most} bytes, the most there may be")
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes + len(self.url) > self.limits.max_head_bytes:
            self._stop_parsing(self._head_too_long())
        if len(self.headers) >= self.limits.max_headers:
            most = self.limits.max_headers
            self._stop_parsing(
                HttpError(431, "too_many_headers", f"there are more than {most} headers, the most there may be")
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._stop_parsing(
                HttpError(429, "too_many_pipelined", "wait for answers before sending further requests on a connection")
            )
        self._in_head, self._head_bytes, self._idle_bytes = False, 0, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        if not self._answering:  # the answer was out before the body was in
            self._stop_timer()
            self._expect_head()

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade()

    def close_connection(self, transport: asyncio.Transport) -> None:
        if self._in_head or self._deaf:
            transport.close()
            return
        # The answer did not wait for the body, see below; here the connection was to be closed after it.
        self._deaf = True
        self.flow.resume_reading()
        self._stop_timer()
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = self.loop.call_later(self.limits.linger_s, transport.abort)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self.transport.is_closing():
            # Answered without reading the body to its end. Were the connection closed now, its other end would find
            # it broken, and no answer; were it left open, a body without end would never be stopped.
            self._stop_timer()
            self._timer = self.loop.call_later(self.limits.linger_s, self.transport.abort)

    @property
    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_timeout_s, self._head_is_late)

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

    def _too_much_besides_the_body(self) -> HttpError:
        most = self.limits.max_head_bytes
        return HttpError(
            431,
            "trailers_too_long",
            f"the body's chunks come with trailers or extensions of more than {most} bytes, the most there may be",
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
        problem = http_problem(refusal, instance=self._path(), request_id=request_id_from(None))
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
        _log.info(
            "refused a connection",
            extra={"status": refusal.status, "code": refusal.code, "request_id": problem.request_id},
        )
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self.limits.linger_s, self.transport.abort)

    def _path(self) -> str:
        url: bytes = getattr(self, "url", b"")
        return url.partition(b"?")[0][:256].decode("ascii", "replace") or "/"


class LimitedWebSocket(WebSocketConnection):
    """uvicorn's WebSocket, whose unread messages count as uploads and must come in at a least rate."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    uploads: ClassVar[ByteBudget]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hold: Hold = self.uploads.hold()
        self._queued = 0  # bytes of whole messages that were not taken yet
        self._fragments = 0  # bytes of a message's frames so far
        self._timer: asyncio.TimerHandle | None = None
        self._reader: _SlowReaderWatch | None = None

    def connection_made(self, transport: Any) -> None:
        self._reader = _SlowReaderWatch(transport, self.limits)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._reader is not None:
            self._reader.stop()
        super().connection_lost(exc)
        self._queued = self._fragments = 0
        self._hold.release()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader is not None:
            self._reader.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.stop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.disconnected or self.transport.is_closing():
            return
        partial = len(self.conn.reader.buffer) + self._fragments
        try:
            self._hold.resize(partial + self._queued)
        except OverloadedError:
            self._end(_TRY_AGAIN_LATER, "overloaded")
            return
        if partial == 0:
            self._stop_timer()
        elif self._timer is None:
            self._wait_for_message(self.loop.time())

    def handle_text(self, event: Frame) -> None:
        self._fragments = 0 if event.fin else len(event.data)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._fragments = 0 if event.fin else len(event.data)
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._end(_TOO_BIG, "too many fragments")
            return
        self._fragments = 0 if event.fin else self._fragments + len(event.data)
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        self._queued += sum(map(len, self.frames))
        self._stop_timer()
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message: MutableMapping[str, Any] = await super().receive()  # type: ignore[assignment]
        if message["type"] == "websocket.receive":
            taken = len(message.get("bytes") or b"") or len((message.get("text") or "").encode())
            self._queued = max(0, self._queued - taken)
            self._hold.resize(min(self._hold.size, len(self.conn.reader.buffer) + self._fragments + self._queued))
        return message

    def _wait_for_message(self, since: float) -> None:
        self._timer = self.loop.call_at(since + self._allowed_s(), self._message_is_late, since)

    def _allowed_s(self) -> float:
        partial = len(self.conn.reader.buffer) + self._fragments
        return self.limits.body_timeout_s + partial / self.limits.min_bytes_per_s

    def _message_is_late(self, since: float) -> None:
        if self.loop.time() < since + self._allowed_s():
            self._wait_for_message(since)  # more has come meanwhile
        else:
            self._end(_POLICY_VIOLATION, "message_too_slow")

    def _end(self, code: int, reason: str) -> None:
        self._stop_timer()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UploadGuard:
    """ASGI: bodies are received within the budget of all uploads, and at a least rate.

    What was received stays accounted for until the request has its answer, because until then it is held. Whoever makes
    a large answer can have it accounted for, too, with `count_answer`: it goes out in pieces, so that the request lasts
    until the other end has taken all but the last of them.

    Args:
        app: the application.
        limits: time-out and rate.
        uploads: the budget.
    """

    def __init__(self, app: ASGIApp, *, limits: ConnectionLimits, uploads: ByteBudget) -> None:
        self._app = app
        self._limits = limits
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._uploads.hold() as hold:
            body = _Body(scope, receive, hold, self._limits, self._uploads.check_room)

            async def sending(message: Message) -> None:
                body.answered = True
                if message["type"] == "http.response.body":
                    await _send_in_pieces(message, send)
                else:
                    await send(message)

            scope[_HOLD] = hold
            await self._app(scope, body.receive, sending)


def count_answer(scope: Scope, size: int) -> None:
    """Have an answer of so many bytes count as an upload does, until it is sent. Raises OverloadedError."""
    hold: Hold | None = scope.get(_HOLD)
    if hold is not None:
        hold.grow(size)


async def _send_in_pieces(message: Message, send: Send) -> None:
    """uvicorn waits for the other end only between pieces; one large piece would lie in its buffer uncounted."""
    content: bytes = message.get("body", b"")
    rest = (max(len(content), 1) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for start in range(0, rest, _PIECE_BYTES):
        await send({"type": message["type"], "body": content[start : start + _PIECE_BYTES], "more_body": True})
    await send({**message, "body": content[rest:]})


class _Body:
    """One request's body on its way to the application."""

    def __init__(
        self, scope: Scope, receive: Receive, hold: Hold, limits: ConnectionLimits, check_room: Callable[[int], None]
    ) -> None:
        self._receive = receive
        self._hold = hold
        self._limits = limits
        self._check_room = check_room
        self._since = asyncio.get_running_loop().time()
        announced = Headers(scope=scope).get("content-length", "")
        self._announced = int(announced[:18]) if announced.isascii() and announced.isdecimal() else 0
        self._complete = False
        self.answered = False

    async def receive(self) -> Message:
        """The next part. Raises OverloadedError or TooSlowError, until the answer has begun."""
        if self._complete or self.answered:
            return await self._receive()
        if self._hold.size == 0 and self._announced:
            self._check_room(self._announced)
        allowed_s = self._limits.body_timeout_s + self._hold.size / self._limits.min_bytes_per_s
        try:
            async with asyncio.timeout_at(self._since + allowed_s):
                message = await self._receive()
        except TimeoutError as error:
            raise TooSlowError(
                f"of the body, {self._hold.size} bytes came within {allowed_s:.3g} seconds, and then no more",
                code="body_too_slow",
            ) from error
        self._hold.grow(len(message.get("body", b"")))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message
