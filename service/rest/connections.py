"""Uvicorn's connections, with what it leaves to strangers put right.

Both classes only change what happens when a client breaks its protocol: the answer to that is uvicorn's, but the log
stays quiet, because a traceback for each such client would bury what the operator should see.
"""

from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State


class HttpConnection(HttpToolsProtocol):
    """HTTP/1.1. A request that is still being answered when its connection is closed counts as abandoned.

    uvicorn learns of the end a little after the transport does, and what is written in between raises.
    """

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)  # which closes the connection
        self._abandon()

    def eof_received(self) -> None:
        super().eof_received()  # which has the transport close the connection
        self._abandon()

    def _abandon(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]  # first: None
            self.cycle.disconnected = True
            self.cycle.message_event.set()


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
