"""What TensorFlow Serving's status codes mean to a request: the one table between its errors and ours.

The same code stands for different things there, so the message decides where the code does not. The messages are those
of TensorFlow Serving 2.19; where one is not recognised, the code alone gives the answer.
"""

from typing import Final

import grpc

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)

QUEUE_FULL: Final = "batch scheduling queue"
EXPIRED_IN_QUEUE: Final = "timeout exceeded while waiting in batching queue"
UNKNOWN_LABEL: Final = "unrecognized servable version label"

_SOON_S: Final = 0.25  # after which a full queue has moved
_LATER_S: Final = 1.0  # after which a model server may be back


def is_queue_full(error: grpc.RpcError) -> bool:
    """Whether the model server refused for want of room, and works otherwise."""
    return _code(error) is grpc.StatusCode.UNAVAILABLE and QUEUE_FULL in _details(error).lower()


def is_unavailable(error: grpc.RpcError) -> bool:
    """Whether sending the same request again may help. A model has no memory, so running it twice does no harm."""
    return _code(error) is grpc.StatusCode.UNAVAILABLE


def translate(error: grpc.RpcError, model: str) -> ServiceError:
    """The service's error for a failed call about a model, such as "cpm_standard version 2".

    The caller raises it `from` the original, so that the log shows what really happened.
    """
    code, details = _code(error), _details(error)
    message = details.lower()
    if code is grpc.StatusCode.NOT_FOUND:
        return UnknownModelError(f"the model server does not have {model}")
    if code is grpc.StatusCode.INVALID_ARGUMENT and UNKNOWN_LABEL in message:
        return UnknownModelError(f"the model server does not have {model}", code="unknown_label")
    if code is grpc.StatusCode.UNAVAILABLE and QUEUE_FULL in message:
        return OverloadedError("the model server's queue is full", retry_after_s=_SOON_S)
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError("the model server cannot be reached at the moment", retry_after_s=_LATER_S)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and EXPIRED_IN_QUEUE in message:
        return DeadlineExceededError("the request's time was up while it waited in the model server's queue")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return UnavailableError("the model server is out of memory", retry_after_s=_LATER_S)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError("the request's time was up while the model server worked on it")
    if code is grpc.StatusCode.CANCELLED:
        return UnavailableError("the connection to the model server was closed", retry_after_s=_LATER_S)
    # Among these: a batch larger than the model server allows, a wrong input or output name. Ours to mend.
    return InternalError(f"the model server refused a request for {model}")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else ""
