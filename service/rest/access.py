"""The door of REST: who asks is found out from a request's head, before its body is read.

A plain ASGI middleware, like `service.rest.middleware`. Everything needs a key but what is listed here: health, which
is asked by those who have none; and the pages, which hold nothing that is not in the repository.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.access import Caller, Doorkeeper, asked_by
from service.inference.errors import ServiceError
from service.inference.ports import Clock
from service.inference.requests import RequestObserver, request_id_from
from service.rest.problems import HttpError, http_problem, problem_of, response_to

STREAM_PROTOCOL: Final = "handpose.v1"
"""The subprotocol of streams; a client that names others has to name it, too."""

KEY_PROTOCOL: Final = "handpose.key."
"""A browser cannot set headers on a WebSocket: it names a subprotocol that begins so and ends in its key."""

OPEN_PATHS: Final = frozenset({"/", "/docs", "/openapi.json", "/page.json", "/livez", "/readyz"})
_OPEN_BELOW: Final = "/static/"
_METRICS: Final = "/metrics"
_COST_AN_IMAGE: Final = frozenset({"/v1/hand-pose", "/v1/hand-pose:batch"})
"""Costs an image before it is known what the body holds. The frames of streams are counted one by one."""

_MOST_IGNORED: Final = 1024 * 1024
_IGNORE_FOR_S: Final = 1.0

_log = logging.getLogger(__name__)


class AccessGate:
    """Admits requests as the doorkeeper says, and answers them in their caller's context.

    Sets `request.state.key_name`, and takes the key out of the request: nothing further in can repeat it.

    Args:
        app: what is behind the door.
        doorkeeper: knows the keys.
        observer: is told of refused requests for hands.
        clock: time.
        metrics_open: whether /metrics needs no key.
    """

    def __init__(
        self, app: ASGIApp, *, doorkeeper: Doorkeeper, observer: RequestObserver, clock: Clock, metrics_open: bool
    ) -> None:
        self._app = app
        self._doorkeeper = doorkeeper
        self._observer = observer
        self._clock = clock
        self._open = OPEN_PATHS | ({_METRICS} if metrics_open else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._open or scope["path"].startswith(_OPEN_BELOW):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._admit(scope)
        except ServiceError as error:
            state, headers = scope.get("state", {}), Headers(scope=scope)
            request_id = state.get("request_id") or request_id_from(headers.get("x-request-id"))
            if scope["path"] in _COST_AN_IMAGE or scope["type"] == "websocket":
                seconds = self._clock.time() - state.get("arrived", self._clock.time())
                self._observer.image_answered(None, headers.get("x-model-variant"), error.code, seconds)
            problem = problem_of(error, instance=scope["path"], request_id=request_id)
            await refuse(response_to(problem), scope, receive, send, request_id, error.code)
            return
        _take_key_out(scope)
        scope.setdefault("state", {})["key_name"] = caller.name
        with asked_by(caller):
            await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller:
        caller = self._doorkeeper.admit(_key_shown(scope), (scope.get("client") or ("unknown",))[0])
        if scope["path"] in _COST_AN_IMAGE:
            caller.take()
        return caller


class OriginCheck:
    """Refuses WebSockets that another site's page opens: browsers ask nobody before they do, unlike for requests.

    Args:
        app: what is behind it.
        allowed: origins whose pages may; "*": all. A page of our own always may.
    """

    def __init__(self, app: ASGIApp, *, allowed: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "websocket" else {}
        origin = headers.get("origin")
        if origin is None or self._may(origin, headers.get("host", "")):
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(headers.get("x-request-id"))
        error = HttpError(403, "origin_not_allowed", "pages from elsewhere may not open streams here")
        problem = http_problem(error, instance=scope["path"], request_id=request_id)
        await refuse(response_to(problem), scope, receive, send, request_id, error.code)

    def _may(self, origin: str, host: str) -> bool:
        if "*" in self._allowed or origin in self._allowed:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:  # "http://[" is no origin
            return False


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send, request_id: str, code: str) -> None:
    """Answer without having read the body: a little of it is ignored, then the connection is closed."""
    if scope["type"] == "websocket":
        _log.info(
            "refused %s", scope["path"], extra={"code": code, "request_id": request_id, "client": scope.get("client")}
        )
        if "websocket.http.response" in scope.get("extensions", {}):
            response.headers["X-Request-Id"] = request_id
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": code})
        return
    if not _has_body(scope):
        await response(scope, receive, send)
        return
    response.headers["Connection"] = "close"
    last: Message = {"type": "http.response.body", "body": b"", "more_body": False}

    async def send_all_but_the_end(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await response(scope, receive, send_all_but_the_end)
    # The answer is complete. Were the connection closed now, while the client still sends, it would find a broken
    # connection and no answer in it.
    ignored = 0
    try:
        async with asyncio.timeout(_IGNORE_FOR_S):
            while ignored < _MOST_IGNORED:
                message = await receive()
                ignored += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    await send(last)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _key_shown(scope: Scope) -> str | None:
    """The key that a request shows: in its header or, on a WebSocket, in a subprotocol."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if not scheme and scope["type"] == "websocket":
        keys = [each for each in scope.get("subprotocols", ()) if each.startswith(KEY_PROTOCOL)]
        return keys[0].removeprefix(KEY_PROTOCOL) if keys else None
    return None


def _take_key_out(scope: Scope) -> None:
    hidden = (b"authorization", b"sec-websocket-protocol")
    scope["headers"] = [each for each in scope["headers"] if each[0] not in hidden]
    if "subprotocols" in scope:
        scope["subprotocols"] = [each for each in scope["subprotocols"] if not each.startswith(KEY_PROTOCOL)]
