"""Errors as RFC 9457 problems: those of `service.answers`, and what HTTP itself can get wrong."""

import math
from collections.abc import Mapping
from typing import Final

from fastapi import Request, Response

from service.answers import PROBLEM_TYPES, error_values, problem_values
from service.inference.errors import ErrorKind, FieldError, InvalidInputError, ServiceError
from service.inference.keys import without_keys
from service.inference.requests import report
from service.rest.schemas import Problem

MEDIA_TYPE: Final = "application/problem+json"

CLIENT_GONE: Final = 499
"""Status in the log of a request whose sender went away; nobody receives it."""


class HttpError(Exception):
    """What only HTTP can get wrong: no such path, no such method, no acceptable answer."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(without_keys(detail))
        self.status = status
        self.code = code
        self.detail = without_keys(detail)
        self.headers = dict(headers or {})


def problem_of(error: ServiceError | HttpError, *, instance: str, request_id: str) -> Problem:
    """What a client is told of an error; `instance` is the path that was asked."""
    if isinstance(error, ServiceError):
        values = error_values(error, instance=instance, request_id=request_id)
    else:
        values = problem_values(error.status, error.code, error.detail, instance=instance, request_id=request_id)
    return Problem.model_validate(values)


def invalid_fields(code: str, *fields: FieldError) -> InvalidInputError:
    """The error that names the parts of a request that are wrong; its detail is the first."""
    return InvalidInputError(f"{fields[0].field}: {fields[0].message}", code=code, errors=fields)


def reported_problem(error: ServiceError | HttpError, request: Request) -> Problem:
    """The problem for this request; if it is our fault, the log learns what happened, under the request's id."""
    request_id = request.state.request_id
    if isinstance(error, ServiceError):
        report(error, request_id)
    return problem_of(error, instance=request.url.path, request_id=request_id)


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
