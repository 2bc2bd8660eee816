"""What every HTTP request gets, whatever becomes of it: an id, safe headers, a log line, and an answer.

A plain ASGI middleware: it adds no task and leaves the request's channel alone, so that routes can watch for the
sender going away.
"""

import asyncio
import logging
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.inference.errors import InternalError, UnavailableError
from service.inference.ports import Clock
from service.inference.tracing import TRACEPARENT, request_id_from, traceparent_from
from service.rest.problems import problem_of, response_to

REQUEST_ID_HEADER: Final = "X-Request-Id"

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
