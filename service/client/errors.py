"""What can go wrong with a call, whichever protocol carried it.

HandPoseError
├── RejectedError              your request is wrong; sending it again is pointless
├── TryAgainError              the service is busy or away; the client has already retried as the policy says
│   └── ConnectionFailedError  it could not be reached, or the connection broke
├── TimedOutError              the time for the call was up
└── ServerFailedError          the service's fault, or an answer that makes no sense
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing that is wrong with one part of the request."""

    field: str
    message: str


class HandPoseError(Exception):
    """A call without a result.

    Attributes:
        code: stable identifier for programs, the same over REST and gRPC ("invalid_roi").
        detail: one sentence: what was wrong and what is allowed.
        retry_after_s: seconds after which the same request may succeed, if the service said so.
        errors: the parts of the request that are wrong, where they are known.
        request_id: names the request in the service's log; empty if it never got there.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        errors: Sequence[FieldProblem] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.errors = tuple(errors)
        self.request_id = request_id


class RejectedError(HandPoseError):
    """The request is wrong: not an image, too large, a roi outside, no such model, no valid key."""


class TryAgainError(HandPoseError):
    """The service is overloaded or has no model right now."""


class ConnectionFailedError(TryAgainError):
    """The service could not be reached, or went away in the middle."""


class TimedOutError(HandPoseError):
    """The time for the call was up, here or at the service."""


class ServerFailedError(HandPoseError):
    """The service failed; its log tells more under the request id."""
