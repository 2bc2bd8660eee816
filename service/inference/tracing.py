"""The names that a request carries from system to system: its id, its sender's, and the trace that it belongs to.

The trace is a context variable, so that an adapter can pass it on without every port naming it. Spans are not made
here. A batch holds several requests and can carry one trace only: that of the first in it.
"""

import re
import uuid
from contextvars import ContextVar
from typing import Final

from service.inference.errors import FieldError, InvalidInputError

_LONGEST_CLIENT_ID: Final = 128

TRACEPARENT: ContextVar[str | None] = ContextVar("handpose_traceparent", default=None)
"""W3C `traceparent` of the request, or of the batch's first request; None outside any trace."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def request_id_from(given: str | None) -> str:
    """The caller's own id, if it can be put into logs and headers safely; else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def client_id_from(given: str | None) -> str | None:
    """Who sends a request, if it says so.

    Raises:
        InvalidInputError: if it is too long or holds what cannot be printed.
    """
    if given is not None and not (len(given) <= _LONGEST_CLIENT_ID and given.isprintable()):
        message = f"must be at most {_LONGEST_CLIENT_ID} printable characters"
        raise InvalidInputError(
            f"X-Client-Id {message}", code="invalid_client_id", errors=[FieldError("X-Client-Id", message)]
        )
    return given or None


def traceparent_from(given: str | None) -> str | None:
    """The caller's trace, if it is one."""
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None
