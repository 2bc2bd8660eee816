"""The table from kinds of failure to HTTP, complete and as DESIGN says."""

import logging
from concurrent.futures import Executor

import pytest

from service.answers import PROBLEM_TYPES
from service.inference.errors import ErrorKind, FieldError, ServiceError
from service.rest.problems import problem_of, response_to
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.backend import failing_backend
from tests.support.images import image_bytes

STATUS = {
    ErrorKind.INVALID_INPUT: 400,
    ErrorKind.UNDECODABLE_IMAGE: 422,
    ErrorKind.UNSUPPORTED_TYPE: 415,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.UNKNOWN_MODEL: 404,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.TOO_SLOW: 408,
    ErrorKind.DEADLINE_EXCEEDED: 504,
    ErrorKind.INTERNAL: 500,
}


def every_error() -> list[type[ServiceError]]:
    """All errors of the tree."""
    found, waiting = [], [ServiceError]
    while waiting:
        children = waiting.pop().__subclasses__()
        found += children
        waiting += children
    return found


def test_every_kind_has_a_status() -> None:
    assert {kind: PROBLEM_TYPES[kind].status for kind in ErrorKind} == STATUS


def test_every_kind_has_an_error() -> None:
    assert {error.kind for error in every_error()} == set(ErrorKind)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
async def test_every_error_of_a_backend_reaches_the_client_as_its_problem(
    workers: Executor, kind: type[ServiceError]
) -> None:
    error = kind("what was wrong", code="some_code", errors=[FieldError("roi[0]", "why")], retry_after_s=1.2)
    async with running_gateway(workers, backend=failing_backend(error)) as gateway:
        answer = await gateway.client.post("/v1/hand-pose", content=image_bytes())
    body = answer.json()
    assert answer.status_code == STATUS[error.kind]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "2"
    assert body["type"] == f"urn:handpose:{error.kind.value}"
    assert (body["status"], body["code"], body["retry_after_ms"]) == (STATUS[error.kind], "some_code", 1200)
    if error.kind is ErrorKind.INTERNAL:
        assert "what was wrong" not in answer.text
        assert "errors" not in body
    else:
        assert body["detail"] == "what was wrong"
        assert body["errors"] == [{"field": "roi[0]", "message": "why"}]


async def test_unexpected_failure_is_told_to_the_log_and_not_to_the_client(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.backend.failure = RuntimeError("the secret path /srv/model")
    with caplog.at_level(logging.ERROR, "service"):
        answer = await gateway.client.post("/v1/hand-pose", content=image_bytes(), headers={"X-Request-Id": "find-me"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert getattr(record, "request_id", None) == "find-me"
    assert "the secret path /srv/model" in caplog.text
    assert "Traceback" in caplog.text


async def test_failure_outside_the_tree_is_a_problem_too(workers: Executor, caplog: pytest.LogCaptureFixture) -> None:
    async with running_gateway(workers) as gateway:

        @gateway.app.get("/defect")
        async def defect() -> None:
            raise ZeroDivisionError("secret")

        answer = await gateway.client.get("/defect", headers={"X-Request-Id": "find-me"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret" in caplog.text


def test_retry_after_is_in_whole_seconds_and_never_zero() -> None:
    for seconds, header in ((0.05, "1"), (1.0, "1"), (1.01, "2"), (30.0, "30")):
        error = every_error()[0]("later", retry_after_s=seconds)
        response = response_to(problem_of(error, instance="/", request_id="1"))
        assert response.headers["Retry-After"] == header


def test_members_that_do_not_apply_are_left_out() -> None:
    problem = problem_of(every_error()[0]("no"), instance="/", request_id="1")
    assert b"retry_after_ms" not in response_to(problem).body
    assert b"errors" not in response_to(problem).body
