"""What every HTTP request gets, whatever becomes of it: an id, safe headers, a log line, and an answer.

A plain ASGI middleware: it adds no task and leaves the request's channel alone, so that routes can watch for the
sender going away.
"""

import asyncio
import logging
import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.errors import InternalError, UnavailableError
from service.inference.ports import Clock
from service.inference.tracing import TRACEPARENT
from service.rest.problems import problem_of, response_to

REQUEST_ID_HEADER: Final = "X-Request-Id"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_QUIET_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines

logger = logging.getLogger(__name__)


class RequestFrame:
    """Frames every request; see the module.

    Sets `request.state.request_id`, and `request.state.arrived` in the clock's time.
    """

    def __init__(self, app: ASGIApp, *, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_from(headers.get(REQUEST_ID_HEADER))
        traceparent = traceparent_from(headers.get("traceparent"))
        arrived = self._clock.time()
        scope.setdefault("state", {}).update(request_id=request_id, arrived=arrived)
        status: int | None = None

        async def framed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
            await send(message)

        trace = TRACEPARENT.set(traceparent)
        try:
            await self._app(scope, receive, framed_send)
        except asyncio.CancelledError:
            # Only the server cancels a request: it stops, and will wait no longer.
            if status is not None or (task := asyncio.current_task()) is None:
                raise
            task.uncancel()
            stopped = UnavailableError("the service stopped before there was an answer", retry_after_s=1.0)
            problem = problem_of(stopped, instance=scope["path"], request_id=request_id)
            await response_to(problem)(scope, receive, framed_send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"], extra={"request_id": request_id})
            if status is not None:  # half an answer is out: all that is left is to cut it off
                raise
            problem = problem_of(InternalError("unexpected"), instance=scope["path"], request_id=request_id)
            await response_to(problem)(scope, receive, framed_send)
        finally:
            TRACEPARENT.reset(trace)
            logger.log(
                logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "status": status,
                    "duration_ms": round((self._clock.time() - arrived) * 1000, 1),
                    "request_id": request_id,
                    "traceparent": traceparent,
                    "client": (scope.get("client") or (None,))[0],
                },
            )


def request_id_from(given: str | None) -> str:
    """The caller's own, if it can be put into logs and headers safely; else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def traceparent_from(given: str | None) -> str | None:
    """The caller's W3C trace context, if it is one."""
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None
