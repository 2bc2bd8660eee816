"""Errors as RFC 9457 problems: the one table from `ErrorKind` to HTTP, and what HTTP itself can get wrong.

Nothing but the detail of a ServiceError reaches a client, and of an internal one not even that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response

from service.inference.errors import ErrorKind, FieldError, ServiceError
from service.inference.keys import without_keys
from service.inference.requests import detail_of, report
from service.rest.schemas import FieldProblem, Problem

MEDIA_TYPE: Final = "application/problem+json"

CLIENT_GONE: Final = 499
"""Status in the log of a request whose sender went away; nobody receives it."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """How HTTP tells one kind of failure."""

    status: int
    title: str


PROBLEM_TYPES: Final[Mapping[ErrorKind, ProblemType]] = {
    ErrorKind.INVALID_INPUT: ProblemType(400, "The request is wrong"),
    ErrorKind.UNDECODABLE_IMAGE: ProblemType(422, "The image does not decode"),
    ErrorKind.UNSUPPORTED_TYPE: ProblemType(415, "This kind of content is not read here"),
    ErrorKind.TOO_LARGE: ProblemType(413, "The request is too large"),
    ErrorKind.UNAUTHENTICATED: ProblemType(401, "A valid key is needed"),
    ErrorKind.UNKNOWN_MODEL: ProblemType(404, "There is no such model"),
    ErrorKind.OVERLOADED: ProblemType(429, "The service is busy"),
    ErrorKind.UNAVAILABLE: ProblemType(503, "The service cannot answer now"),
    ErrorKind.TOO_SLOW: ProblemType(408, "The request came in too slowly"),
    ErrorKind.DEADLINE_EXCEEDED: ProblemType(504, "The request's time was up"),
    ErrorKind.INTERNAL: ProblemType(500, "The service failed"),
}


class HttpError(Exception):
    """What only HTTP can get wrong: no such path, no such method, no acceptable answer."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(without_keys(detail))
        self.status = status
        self.code = code
        self.detail = without_keys(detail)
        self.headers = dict(headers or {})


def problem_of(error: ServiceError, *, instance: str, request_id: str) -> Problem:
    """The problem that tells a client of a ServiceError."""
    kind = PROBLEM_TYPES[error.kind]
    internal = error.kind is ErrorKind.INTERNAL
    # Members that do not apply are left out, not null.
    where_they_apply: dict[str, Any] = {}
    if error.retry_after_s is not None:
        where_they_apply["retry_after_ms"] = math.ceil(error.retry_after_s * 1000)
    if error.errors and not internal:
        where_they_apply["errors"] = [_field_problem(each) for each in error.errors]
    return Problem(
        type=f"urn:handpose:{error.kind.value}",
        title=kind.title,
        status=kind.status,
        detail=detail_of(error),
        instance=without_keys(instance),
        code=error.code,
        request_id=request_id,
        **where_they_apply,
    )


def reported_problem(error: ServiceError, request: Request) -> Problem:
    """The problem for this request; if it is our fault, the log learns what happened, under the request's id."""
    request_id = request.state.request_id
    report(error, request_id)
    return problem_of(error, instance=request.url.path, request_id=request_id)


def http_problem(error: HttpError, *, instance: str, request_id: str) -> Problem:
    """The problem that tells a client of an error of HTTP itself."""
    return Problem(
        type=f"urn:handpose:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        instance=without_keys(instance),
        code=error.code,
        request_id=request_id,
    )


def response_to(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP response that carries a problem, with Retry-After where it says when to try again."""
    all_headers = dict(headers or {})
    if problem.retry_after_ms is not None:
        # Whole seconds are all that this header can say; the body is exact.
        all_headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_ms / 1000)))
    if problem.status == PROBLEM_TYPES[ErrorKind.UNAUTHENTICATED].status:
        all_headers.setdefault("WWW-Authenticate", "Bearer")
    body = problem.model_dump_json(exclude_unset=True)
    return Response(body, problem.status, all_headers, media_type=MEDIA_TYPE)


def _field_problem(error: FieldError) -> FieldProblem:
    return FieldProblem(field=error.field, message=error.message)
