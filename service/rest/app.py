"""The REST application, put together from what it is given."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from service.inference.access import Doorkeeper
from service.inference.decoding import ImageDecoder
from service.inference.errors import ServiceError
from service.inference.models import ModelReference
from service.inference.ports import Backend, Clock
from service.inference.predictor import Predictor
from service.inference.requests import RequestObserver
from service.rest.access import AccessGate, OriginCheck
from service.rest.middleware import RequestContext
from service.rest.openapi import describe
from service.rest.pages import page_routes
from service.rest.policy import RestPolicy
from service.rest.problems import CLIENT_GONE, HttpError, reported_problem, response_to
from service.rest.routes import (
    Metrics,
    hand_pose_routes,
    information_routes,
    operation_routes,
)

_HEADERS_TO_SEND: Final = (
    "Authorization",
    "Content-Type",
    "X-Model-Variant",
    "X-Client-Id",
    "X-Request-Timeout-Ms",
    "X-Request-Id",
    "traceparent",
)
_HEADERS_TO_READ: Final = ("X-Model-Variant", "X-Request-Id", "Retry-After")


def create_app(
    *,
    predictor: Predictor,
    decoder: ImageDecoder,
    backend: Backend,
    observer: RequestObserver,
    metrics: Metrics,
    not_ready: Callable[[], Awaitable[str | None]],
    clock: Clock,
    default_model: Callable[[], ModelReference],
    policy: RestPolicy,
    doorkeeper: Doorkeeper | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        predictor: answers requests.
        decoder: decodes pictures to draw on.
        backend: asked for its models only.
        observer: is told of every request.
        metrics: gives everything measured, in a text format that an Accept header takes, and its Content-Type.
        not_ready: why requests would fail now, or None.
        clock: time; the predictor's deadlines are in it.
        default_model: what the router answers requests with that name no model, now; shown in /v1/models.
        policy: what REST allows.
        doorkeeper: knows the keys that requests need; None: they need none.
    """
    app = _bare_app()
    app.include_router(
        hand_pose_routes(predictor=predictor, decoder=decoder, observer=observer, clock=clock, policy=policy)
    )
    app.include_router(information_routes(backend=backend, default_model=default_model))
    app.include_router(operation_routes(metrics=metrics if policy.metrics else None, not_ready=not_ready))
    app.include_router(page_routes(lambda: describe(app)))
    # From the inside out:
    if doorkeeper is not None:
        app.add_middleware(
            AccessGate, doorkeeper=doorkeeper, observer=observer, clock=clock, metrics_open=policy.metrics_open
        )
    app.add_middleware(OriginCheck, allowed=policy.cors_origins)
    if policy.cors_origins:
        # Answers the browsers' questions before the door, for they come without a key. No cookies, so no credentials.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=policy.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=_HEADERS_TO_SEND,
            expose_headers=_HEADERS_TO_READ,
        )
    app.add_middleware(RequestContext, clock=clock, observer=observer, hsts_s=policy.hsts_s)
    return app


def create_admin_app(
    *,
    metrics: Metrics,
    not_ready: Callable[[], Awaitable[str | None]],
    clock: Clock,
) -> FastAPI:
    """The application of a listener of its own, for whoever runs the service: /metrics and health, without keys.

    See `create_app` for the arguments.
    """
    app = _bare_app()
    app.include_router(operation_routes(metrics=metrics, not_ready=not_ready))
    app.add_middleware(RequestContext, clock=clock)
    return app


def _bare_app() -> FastAPI:
    handlers: dict[int | type[Exception], Any] = {
        ServiceError: _failure,
        HttpError: _failure,
        HTTPException: _http_exception,
        ClientDisconnect: _gone,
    }
    return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, exception_handlers=handlers)


async def _failure(request: Request, error: Any) -> Response:
    return response_to(reported_problem(error, request), getattr(error, "headers", None))


async def _http_exception(request: Request, error: Any) -> Response:
    """What the framework itself refuses: no such path, no such method."""
    code, detail, path = "http_error", str(error.detail), request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        code, detail = "not_found", f"there is nothing at {path}; /docs lists the calls"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        code, detail = "method_not_allowed", f"{path} answers {allowed}, not {request.method}"
    return await _failure(request, HttpError(error.status_code, code, detail, error.headers))


async def _gone(_request: Request, _error: Any) -> Response:
    """Nobody receives this; the status is for the log."""
    return Response(status_code=CLIENT_GONE)
