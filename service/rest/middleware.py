"""What every HTTP request gets, whatever becomes of it: an id, safe headers, a log line, and an answer.

A plain ASGI middleware: it adds no task and leaves the request's channel alone, so that routes can watch for the
sender going away.
"""

import asyncio
import logging
from contextlib import AbstractContextManager, nullcontext
from http import HTTPMethod, HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.errors import InternalError, UnavailableError
from service.inference.ports import Attribute, Clock
from service.inference.requests import RequestObserver, RequestTrace, request_id_from
from service.rest.problems import problem_of, response_to

REQUEST_ID_HEADER: Final = "X-Request-Id"

_QUIET_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines

_LONGEST_PATH_SHOWN: Final = 256  # in the log: a stranger's words may be long

_SAFE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every answer says unless it says it better itself, as the pages do."""

logger = logging.getLogger(__name__)


class RequestContext:
    """Surrounds every request; see the module.

    Sets `request.state.request_id`, and `request.state.arrived` in the clock's time. `hsts_s` is for how many seconds
    browsers shall not come back without TLS; 0 says nothing.
    """

    def __init__(self, app: ASGIApp, *, clock: Clock, observer: RequestObserver | None = None, hsts_s: int = 0) -> None:
        self._app = app
        self._clock = clock
        self._observer = observer
        self._headers = dict(_SAFE_HEADERS)
        if hsts_s:
            self._headers["Strict-Transport-Security"] = f"max-age={hsts_s}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get(REQUEST_ID_HEADER))
        arrived = self._clock.time()
        scope.setdefault("state", {}).update(request_id=request_id, arrived=arrived)
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers[REQUEST_ID_HEADER] = request_id
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        with self._trace_of(scope, request_id) as trace:
            try:
                await self._app(scope, receive, send_with_headers)
            except asyncio.CancelledError:
                # Only the server cancels a request: it stops, and will wait no longer.
                if status is not None or (task := asyncio.current_task()) is None:
                    raise
                task.uncancel()
                stopped = UnavailableError("the service stopped before there was an answer", retry_after_s=1.0)
                problem = problem_of(stopped, instance=scope["path"], request_id=request_id)
                await response_to(problem)(scope, receive, send_with_headers)
            except Exception:
                shown = scope["path"][:_LONGEST_PATH_SHOWN]
                logger.exception("%s %s failed", scope["method"], shown, extra={"request_id": request_id})
                if status is not None:  # half an answer is out: all that is left is to cut it off
                    raise
                problem = problem_of(InternalError("unexpected"), instance=scope["path"], request_id=request_id)
                await response_to(problem)(scope, receive, send_with_headers)
            finally:
                if trace is not None:
                    _say_how_it_ended(trace, scope, status)
                self._log(scope, status, arrived)

    def _trace_of(self, scope: Scope, request_id: str) -> AbstractContextManager[RequestTrace | None]:
        if self._observer is None or scope["path"] in _QUIET_PATHS:
            return nullcontext()
        method = _method(scope)
        attributes: dict[str, Attribute] = {"http.request.method": method, "url.scheme": scope["scheme"]}
        caller = Headers(scope=scope).get("traceparent")
        return self._observer.request(method, request_id=request_id, caller=caller, attributes=attributes)

    def _log(self, scope: Scope, status: int | None, arrived: float) -> None:
        logger.log(
            logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
            "%s %s",
            scope["method"],
            scope["path"][:_LONGEST_PATH_SHOWN],
            extra={
                "status": status,
                "duration_ms": round((self._clock.time() - arrived) * 1000, 1),
                "request_id": scope["state"]["request_id"],
                "client": (scope.get("client") or (None,))[0],
                "key": scope["state"].get("key_name"),
            },
        )


def _say_how_it_ended(trace: RequestTrace, scope: Scope, status: int | None) -> None:
    """Without a status so far, the answer will be that the service failed."""
    attributes: dict[str, Attribute] = {"http.response.status_code": status or HTTPStatus.INTERNAL_SERVER_ERROR}
    name = _method(scope)
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        attributes["http.route"] = route
        name = f"{name} {route}"
    trace.answered(name, attributes, failed=status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in HTTPMethod.__members__ else "HTTP"
