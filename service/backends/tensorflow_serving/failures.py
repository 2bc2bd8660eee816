"""What TensorFlow Serving's status codes mean: the one table between its errors and ours.

The same code stands for different things there, so the message decides where the code does not. The messages are those
of TensorFlow Serving 2.19; where one is not recognised, the code alone gives the answer.
"""

import re
from enum import Enum, auto
from typing import Final

from grpc import StatusCode

from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)


class Meaning(Enum):
    """What the failure of a call says."""

    UNKNOWN_VERSION = auto()  # or label
    BATCH_TOO_LARGE = auto()
    QUEUE_FULL = auto()
    THREADS_BUSY = auto()
    UNREACHABLE = auto()
    EXPIRED = auto()
    OUT_OF_MEMORY = auto()
    REFUSED = auto()


_MEANINGS: Final = (  # the first row that fits decides
    (StatusCode.NOT_FOUND, r"", Meaning.UNKNOWN_VERSION),
    (StatusCode.INVALID_ARGUMENT, r"unrecognized servable version label", Meaning.UNKNOWN_VERSION),
    (StatusCode.INVALID_ARGUMENT, r"larger than maximum input batch size", Meaning.BATCH_TOO_LARGE),
    (StatusCode.UNAVAILABLE, r"batch scheduling queue", Meaning.QUEUE_FULL),
    (StatusCode.UNAVAILABLE, r"", Meaning.UNREACHABLE),
    (StatusCode.CANCELLED, r"", Meaning.UNREACHABLE),
    (StatusCode.RESOURCE_EXHAUSTED, r"timeout exceeded while waiting", Meaning.EXPIRED),
    (StatusCode.RESOURCE_EXHAUSTED, r"\boom\b|out of memory", Meaning.OUT_OF_MEMORY),
    (StatusCode.RESOURCE_EXHAUSTED, r"", Meaning.THREADS_BUSY),  # --grpc_max_threads; the message may be empty
    (StatusCode.DEADLINE_EXCEEDED, r"", Meaning.EXPIRED),
)


class CallError(Exception):
    """A call to a model server that failed. Its text is one line: the status code and what the server says.

    Attributes:
        code: gRPC's status code.
        details: the server's message in one line; may be empty.
        meaning: what they say together.
    """

    def __init__(self, code: StatusCode, details: str = "") -> None:
        self.code = code
        self.details = one_line(details)
        super().__init__(f"{code.name}: {self.details}" if self.details else code.name)
        fitting = (
            meaning for each, words, meaning in _MEANINGS if each is code and re.search(words, self.details.lower())
        )
        self.meaning = next(fitting, Meaning.REFUSED)  # such as a wrong name of an input: a mistake of ours

    @property
    def worth_another_try(self) -> bool:
        """Whether another server, or this one a moment later, may answer. Running a model twice does no harm."""
        return self.code is StatusCode.UNAVAILABLE or self.meaning is Meaning.THREADS_BUSY


def translate(error: CallError, model: str) -> ServiceError:
    """The service's error for a failed call about a model, such as "cpm_standard version 2".

    The caller raises it `from` the original, so that the log shows what the server said.
    """
    return {
        Meaning.UNKNOWN_VERSION: UnknownModelError(f"the model server does not have {model}"),
        Meaning.QUEUE_FULL: OverloadedError("the model server's queue is full", retry_after_s=0.25),
        Meaning.THREADS_BUSY: OverloadedError("the model server is busy", retry_after_s=0.25),
        Meaning.UNREACHABLE: UnavailableError("the model server cannot be reached at the moment", retry_after_s=1.0),
        Meaning.EXPIRED: DeadlineExceededError("the request's time was up before the model server answered"),
        Meaning.OUT_OF_MEMORY: UnavailableError("the model server is out of memory", retry_after_s=1.0),
    }.get(error.meaning, InternalError(f"the model server refused a request for {model}"))


def one_line(text: str) -> str:
    """The text without line breaks and tabs, which the server's messages are full of."""
    return " ".join(text.split())
