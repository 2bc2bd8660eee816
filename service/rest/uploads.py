"""What request bodies may hold and how slowly they may come: pure ASGI, whatever server is below.

What a single request may ask for is decided in `service.rest.parsing` and in the use case.
"""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.byte_budget import ByteBudget, Hold
from service.inference.errors import TooSlowError
from service.rest.policy import TransferRate

_PIECE_BYTES: Final = 64 * 1024  # of an answer
_HOLD: Final = "handpose.uploads"  # in the scope


class UploadGuard:
    """ASGI: bodies are received within the budget of all uploads, and at a least rate.

    What was received counts until the request has its answer, because until then it is held. A large answer counts,
    too, if its route calls `count_answer`: it goes out in pieces, so that the request lasts until the other end has
    taken all but the last of them.

    Args:
        app: the application.
        rate: of bodies.
        uploads: the budget.
    """

    def __init__(self, app: ASGIApp, *, rate: TransferRate, uploads: ByteBudget) -> None:
        self._app = app
        self._rate = rate
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        since, announced = loop.time(), announced_length(Headers(scope=scope))
        done = False  # the body is complete, or its answer has begun

        async def receiving() -> Message:
            """The next part. Raises OverloadedError or TooSlowError."""
            nonlocal done
            if done:
                return await receive()
            if hold.size == 0 and announced:
                self._uploads.check_room(announced)
            allowed_s = self._rate.allowed_s(hold.size)
            try:
                async with asyncio.timeout_at(since + allowed_s):
                    message = await receive()
            except TimeoutError as error:
                raise TooSlowError(
                    f"of the body, {hold.size} bytes came within {allowed_s:.3g} seconds, and then no more",
                    code="body_too_slow",
                ) from error
            hold.grow(len(message.get("body", b"")))
            if message["type"] != "http.request" or not message.get("more_body", False):
                done = True
            return message

        async def sending(message: Message) -> None:
            nonlocal done
            done = True
            if message["type"] == "http.response.body":
                await _send_in_pieces(message, send)
            else:
                await send(message)

        with self._uploads.hold() as hold:
            scope[_HOLD] = hold
            await self._app(scope, receiving, sending)


def announced_length(headers: Headers) -> int:
    """Bytes that a body has as its head says; 0 if it does not."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isascii() and text.isdecimal() else 0


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
