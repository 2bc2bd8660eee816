"""The table from `ErrorKind` to gRPC status, and the rich errors made from it.

The codes and details are those of the HTTP problems; only the way they travel differs.
"""

from typing import Final

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from service.inference.errors import ErrorKind, FieldError, ServiceError
from service.inference.requests import detail_of
from service.rpc.handpose.v1 import hand_pose_pb2 as pb

ERROR_DOMAIN: Final = "handpose"

STATUS_DETAILS: Final = "grpc-status-details-bin"
"""Trailing metadata that carries a serialised google.rpc.Status."""

Ending = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
"""What `context.abort` takes: status, detail, trailing metadata."""

STATUS_OF: Final[dict[ErrorKind, grpc.StatusCode]] = {
    ErrorKind.INVALID_INPUT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNDECODABLE_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNSUPPORTED_TYPE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    ErrorKind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}


def status_number(error: ServiceError) -> int:
    """The number of the error's gRPC status (google.rpc.Code)."""
    return int(STATUS_OF[error.kind].value[0])


def problem_of(error: ServiceError) -> pb.Problem:
    """The error as a part of a batch's or a stream's answer."""
    return pb.Problem(
        code=error.code,
        detail=detail_of(error),
        status=status_number(error),
        retry_after=None if error.retry_after_s is None else _duration(error.retry_after_s),
        errors=[pb.FieldProblem(field=each.field, message=each.message) for each in _fields_of(error)],
    )


def rich_status(error: ServiceError, request_id: str) -> status_pb2.Status:
    """The error as the status that ends a call."""
    status = status_pb2.Status(code=status_number(error), message=detail_of(error))
    info = {"code": error.code, "request_id": request_id}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=ERROR_DOMAIN, metadata=info)
    )
    if error.retry_after_s:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    if fields := _fields_of(error):
        violation = error_details_pb2.BadRequest.FieldViolation
        violations = [violation(field=each.field, description=each.message) for each in fields]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    return status


def ending_of(error: ServiceError, request_id: str) -> Ending:
    """What ends a call with the error's status and its details."""
    details = rich_status(error, request_id).SerializeToString()
    return STATUS_OF[error.kind], detail_of(error), ((STATUS_DETAILS, details), ("x-request-id", request_id))


def _fields_of(error: ServiceError) -> tuple[FieldError, ...]:
    return () if error.kind is ErrorKind.INTERNAL else error.errors


def _duration(seconds: float) -> duration_pb2.Duration:
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return duration_pb2.Duration(seconds=whole, nanos=nanos)
