"""The table from the error tree to gRPC, kind by kind."""

import grpc
import pytest
from google.rpc import error_details_pb2

from service.inference import errors
from service.inference.errors import ErrorKind, FieldError, ServiceError
from service.rpc.status import STATUS_OF, problem_of, rich_status

ALL_ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ServiceError)]
CONCRETE = [each for each in ALL_ERRORS if each is not ServiceError]


def test_every_kind_has_a_status_and_none_says_ok_or_unknown() -> None:
    assert set(STATUS_OF) == set(ErrorKind)
    assert not {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(STATUS_OF.values())


def test_every_kind_has_an_error_class() -> None:
    assert {each.kind for each in CONCRETE} == set(ErrorKind)


@pytest.mark.parametrize("error_class", CONCRETE, ids=lambda each: each.kind.value)
def test_an_error_keeps_its_code_in_status_and_problem(error_class: type[ServiceError]) -> None:
    error = error_class("what was wrong", code="very_special", retry_after_s=1.25, errors=[FieldError("roi[0]", "no")])

    problem, status = problem_of(error), rich_status(error, "id-7")

    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("VERY_SPECIAL", "handpose")
    assert dict(info.metadata) == {"code": "very_special", "request_id": "id-7"}
    assert problem.code == "very_special"
    assert problem.status == status.code == STATUS_OF[error_class.kind].value[0]
    assert problem.retry_after.ToMilliseconds() == retry.retry_delay.ToMilliseconds() == 1250


def test_wrong_fields_become_field_violations() -> None:
    status = rich_status(errors.InvalidInputError("roi[1]: bad", errors=[FieldError("roi[1]", "bad")]), "id")

    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert [(each.field, each.description) for each in bad_request.field_violations] == [("roi[1]", "bad")]


def test_an_internal_error_tells_nothing_of_itself() -> None:
    error = errors.InternalError("the secret path is /x", errors=[FieldError("x", "secret")])

    assert "secret" not in str(problem_of(error))
    assert "secret" not in str(rich_status(error, "id"))
