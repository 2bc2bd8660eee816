"""The REST application, put together from what it is given."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from service.inference.access import Doorkeeper
from service.inference.decoding import ImageDecoder
from service.inference.errors import FieldError, InvalidInputError, ServiceError
from service.inference.models import ModelReference
from service.inference.ports import Backend, Clock
from service.inference.predictor import Predictor
from service.inference.requests import RequestObserver
from service.rest.access import AccessGate, OriginCheck
from service.rest.middleware import RequestContext
from service.rest.openapi import describe
from service.rest.pages import page_routes
from service.rest.policy import RestPolicy
from service.rest.problems import CLIENT_GONE, HttpError, http_problem, reported_problem, response_to
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
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(
        hand_pose_routes(predictor=predictor, decoder=decoder, observer=observer, clock=clock, policy=policy)
    )
    app.include_router(information_routes(backend=backend, default_model=default_model))
    app.include_router(operation_routes(metrics=metrics if policy.metrics else None, not_ready=not_ready))
    app.include_router(page_routes(lambda: describe(app)))
    _add_exception_handlers(app)
    _add_middleware(app, observer, clock, policy, doorkeeper)
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
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(operation_routes(metrics=metrics, not_ready=not_ready))
    _add_exception_handlers(app)
    app.add_middleware(RequestContext, clock=clock)
    return app


def _add_exception_handlers(app: FastAPI) -> None:
    for kind, handler in _FAILURES.items():
        app.add_exception_handler(kind, handler)


def _add_middleware(
    app: FastAPI,
    observer: RequestObserver,
    clock: Clock,
    policy: RestPolicy,
    doorkeeper: Doorkeeper | None,
) -> None:
    """What surrounds the routes, from the inside out."""
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


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return response_to(reported_problem(error, request))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    problem = http_problem(error, instance=request.url.path, request_id=request.state.request_id)
    return response_to(problem, error.headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        ours = HttpError(404, "not_found", f"there is nothing at {path}; /docs lists the calls", error.headers)
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        ours = HttpError(405, "method_not_allowed", f"{path} answers {allowed}, not {method}", error.headers)
    else:
        ours = HttpError(error.status_code, "http_error", str(error.detail), error.headers)
    return await _http_error(request, ours)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Parameters that the framework checks before a route is called."""
    assert isinstance(error, RequestValidationError)
    fields = [FieldError(".".join(map(str, each["loc"])), str(each["msg"])) for each in error.errors()]
    return await _service_error(
        request, InvalidInputError(f"{fields[0].field}: {fields[0].message}", code="invalid_parameter", errors=fields)
    )


async def _sender_left(_request: Request, _error: Exception) -> Response:
    """Nobody receives this; the status is for the log."""
    return Response(status_code=CLIENT_GONE)


_FAILURES: Final[dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = {
    ServiceError: _service_error,
    HttpError: _http_error,
    RequestValidationError: _validation_error,
    HTTPException: _http_exception,
    ClientDisconnect: _sender_left,
}
