"""What becomes of a failure, whichever protocol tells the client: the client learns little, the log the rest.

Each protocol turns a `ServiceError` into its own problem or status. Wherever one does, it calls `report`, so that the
log really tells what the client is promised that it tells.
"""

import logging
from typing import Final

from service.inference.errors import ErrorKind, InternalError, ServiceError
from service.inference.models import ServedModel
from service.inference.tracing import SPAN

_INTERNAL_DETAIL: Final = "something failed inside the service; its log tells more under this request id"

_log = logging.getLogger(__name__)


def as_service_error(error: Exception) -> ServiceError:
    """The error itself if it is one of the tree; else an internal one with it as the cause."""
    if isinstance(error, ServiceError):
        return error
    failure = InternalError("unexpected")
    failure.__cause__ = error
    return failure


def detail_of(error: ServiceError) -> str:
    """What a client is told: of an internal error, nothing but that."""
    return _INTERNAL_DETAIL if error.kind is ErrorKind.INTERNAL else error.detail


def routed(error: BaseException, asked_for: str | None) -> tuple[ServedModel | None, str | None]:
    """The model that a failed request had been routed to, and, where that is not known, what it asked for."""
    match error.routed_to if isinstance(error, ServiceError) else None:
        case ServedModel() as model:
            return model, asked_for
        case None:
            return None, asked_for
        case reference:
            return None, str(reference)


def report(error: ServiceError, request_id: str) -> None:
    """Log what the operator should know and the client is not told: our own failures, and what made us unavailable.

    The trace learns of every failure.
    """
    SPAN.get().annotate(problem=error.code)
    if error.kind is ErrorKind.INTERNAL:
        _log.error("%s", error, exc_info=error, extra={"request_id": request_id})
    elif error.kind is ErrorKind.UNAVAILABLE and error.__cause__ is not None:
        _log.warning("%s: %r", error, error.__cause__, extra={"request_id": request_id})


def let_go_of_frames(error: BaseException) -> None:
    """Forget through which calls an error came, once that was reported.

    A traceback keeps every local variable on its way, a request's whole body among them; and where one of those knows
    the error in its turn, as a task or future does, only the collector of garbage ends that, which may take seconds.
    """
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        each.__traceback__ = None
        seen.add(id(each))
        pending += [more for more in (each.__cause__, each.__context__) if more is not None and id(more) not in seen]


class FrameFailures:
    """Reports the failed frames of one stream: once for as long as they all fail alike, not thirty times a second.

    Args:
        request_id: of the stream.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._last_code: str | None = None

    def frame_ended(self, failure: ServiceError | None) -> None:
        """A frame was answered: with this failure, or well."""
        code = failure.code if failure is not None else None
        if failure is not None and code != self._last_code:
            report(failure, self._request_id)
        self._last_code = code
