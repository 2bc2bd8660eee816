"""Everything that can go wrong with a request, as one tree that no protocol shows through.

    ServiceError
    ├── InvalidInputError            your input: the request itself is wrong
    │   └── UndecodableImageError    the image does not decode
    ├── UnsupportedTypeError         your input: a kind of content that we do not read
    ├── TooLargeError                your input: more bytes, pixels or items than allowed
    ├── UnauthenticatedError         your input: no key, or a wrong one
    ├── UnknownModelError            your input: no such variant, version or label
    ├── OverloadedError              try later: the queue is full
    ├── UnavailableError             try later: no model can answer now
    ├── TooSlowError                 your input: it came in too slowly
    ├── DeadlineExceededError        out of time: expired while waiting or running
    └── InternalError                our fault; details go to the log only

Each protocol has one table from `ErrorKind` to its own status: `service.rest.problems` and `service.rpc`. Exceptions of
other libraries are translated where they appear, with the original as the cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from service.inference.keys import without_keys

RoutedTo = tuple[str, int | None]
"""The variant and the version that a request was routed to; None while the version is not known."""


class ErrorKind(StrEnum):
    """What sort of failure it was; each kind has one status in each protocol."""

    INVALID_INPUT = "invalid_input"
    UNDECODABLE_IMAGE = "undecodable_image"
    UNSUPPORTED_TYPE = "unsupported_type"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    UNKNOWN_MODEL = "unknown_model"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    TOO_SLOW = "too_slow"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"


OUR_FAULT: Final = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED})
"""Failures that traces mark as errors; of the others the sender is the cause."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with one part of the request."""

    field: str
    message: str

    def __post_init__(self) -> None:
        for name in ("field", "message"):
            object.__setattr__(self, name, without_keys(getattr(self, name)))


class ServiceError(Exception):
    """A definite answer that is not a result.

    Attributes:
        detail: one sentence for whoever sent the request: what was wrong and what is allowed.
        code: stable identifier for programs; the kind unless something narrower is known ("roi_outside_image").
        errors: the offending parts of the request, where there are several or they have names.
        retry_after_s: seconds after which the same request may succeed; None where repeating it is pointless.
        routed_to: the model that the request had been routed to, for metrics; None if it did not get that far.
    """

    kind: ClassVar[ErrorKind]

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        detail = without_keys(detail)  # it may repeat a stranger's words
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.kind.value
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.routed_to: RoutedTo | None = None


class InvalidInputError(ServiceError):
    """The request is wrong in a way that its detail explains."""

    kind = ErrorKind.INVALID_INPUT


class UndecodableImageError(InvalidInputError):
    """The image is truncated or damaged."""

    kind = ErrorKind.UNDECODABLE_IMAGE


class UnsupportedTypeError(ServiceError):
    """The content is of a kind that is not read here."""

    kind = ErrorKind.UNSUPPORTED_TYPE


class TooLargeError(ServiceError):
    """More bytes, pixels or items than are allowed."""

    kind = ErrorKind.TOO_LARGE


class UnauthenticatedError(ServiceError):
    """No key, or one that is not known."""

    kind = ErrorKind.UNAUTHENTICATED


class UnknownModelError(ServiceError):
    """No such variant, version or label."""

    kind = ErrorKind.UNKNOWN_MODEL


class OverloadedError(ServiceError):
    """The queue is full; `retry_after_s` says when there should be room."""

    kind = ErrorKind.OVERLOADED


class UnavailableError(ServiceError):
    """No model can answer at the moment."""

    kind = ErrorKind.UNAVAILABLE


class TooSlowError(ServiceError):
    """The request did not come in at the least rate that is waited for."""

    kind = ErrorKind.TOO_SLOW


class DeadlineExceededError(ServiceError):
    """The request's time was up before its answer was there."""

    kind = ErrorKind.DEADLINE_EXCEEDED


class InternalError(ServiceError):
    """Our fault; what happened is in the log."""

    kind = ErrorKind.INTERNAL
