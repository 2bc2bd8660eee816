"""The door of REST: who asks is found out from a request's head, before its body is read.

A plain ASGI middleware, like `service.rest.middleware`. Everything needs a key but what is listed here: health, which
is asked by those who have none; and the pages, which hold nothing that is not in the repository.
"""

import logging
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.inference.access import Doorkeeper, asked_by
from service.inference.errors import ServiceError
from service.inference.ports import Clock
from service.inference.requests import RequestObserver, request_id_from
from service.rest.problems import HttpError, problem_of, response_to

STREAM_PROTOCOL: Final = "handpose.v1"
"""The subprotocol of streams; a client that names others has to name it, too."""

KEY_PROTOCOL: Final = "handpose.key."
"""A browser cannot set headers on a WebSocket: it names a subprotocol that begins so and ends in its key."""

OPEN_PATHS: Final = frozenset({"/", "/docs", "/openapi.json", "/page.json", "/livez", "/readyz"})
_COST_AN_IMAGE: Final = frozenset({"/v1/hand-pose", "/v1/hand-pose:batch"})
"""Costs an image before it is known what the body holds. The frames of streams are counted one by one."""

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
        self._open = OPEN_PATHS | ({"/metrics"} if metrics_open else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._open or scope["path"].startswith("/static/"):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._doorkeeper.admit(_key_shown(scope), (scope.get("client") or ("unknown",))[0])
            if scope["path"] in _COST_AN_IMAGE:
                caller.take()
        except ServiceError as error:
            if scope["path"] in _COST_AN_IMAGE or scope["type"] == "websocket":
                now = self._clock.time()
                seconds = now - scope.get("state", {}).get("arrived", now)
                self._observer.image_answered(None, Headers(scope=scope).get("x-model-variant"), error.code, seconds)
            await _refuse(error, scope, receive, send)
            return
        _take_key_out(scope)
        scope.setdefault("state", {})["key_name"] = caller.name
        with asked_by(caller):
            await self._app(scope, receive, send)


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
        ours = origin is None or origin.partition("://")[2] == headers.get("host", "")
        if ours or origin in self._allowed or "*" in self._allowed:
            await self._app(scope, receive, send)
            return
        error = HttpError(403, "origin_not_allowed", "pages from elsewhere may not open streams here")
        await _refuse(error, scope, receive, send)


async def _refuse(error: ServiceError | HttpError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the body."""
    headers = Headers(scope=scope)
    request_id = scope.get("state", {}).get("request_id") or request_id_from(headers.get("x-request-id"))
    response = response_to(problem_of(error, instance=scope["path"], request_id=request_id))
    if scope["type"] != "websocket":
        if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            # The server throws the body away for a while before it closes, so that the client can read this answer.
            response.headers["Connection"] = "close"
        await response(scope, receive, send)
        return
    said = {"code": error.code, "request_id": request_id, "client": scope.get("client")}
    _log.info("refused %s", scope["path"], extra=said)
    if "websocket.http.response" in scope.get("extensions", {}):
        response.headers["X-Request-Id"] = request_id
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})


def _key_shown(scope: Scope) -> str | None:
    """The key that a request shows: in its header or, on a WebSocket, in a subprotocol."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    protocols = () if scheme else scope.get("subprotocols", ())  # only a WebSocket has some
    return next((each.removeprefix(KEY_PROTOCOL) for each in protocols if each.startswith(KEY_PROTOCOL)), None)


def _take_key_out(scope: Scope) -> None:
    hidden = (b"authorization", b"sec-websocket-protocol")
    scope["headers"] = [each for each in scope["headers"] if each[0] not in hidden]
    if "subprotocols" in scope:
        scope["subprotocols"] = [each for each in scope["subprotocols"] if not each.startswith(KEY_PROTOCOL)]
