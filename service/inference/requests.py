"""What every protocol does with a request, whatever it speaks: names it, counts it, reports how it failed.

The client learns little of a failure, the log the rest: a protocol that turns a `ServiceError` into its own problem or
status also calls `report`.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from service.inference.errors import ErrorKind, FieldError, InternalError, InvalidInputError, RoutedTo, ServiceError
from service.inference.keys import without_keys
from service.inference.models import ServedModel
from service.inference.ports import Attribute, Clock
from service.inference.streaming import FrameAnswer

OK: Final = "ok"
CLIENT_GONE: Final = "client_gone"

_INTERNAL_DETAIL: Final = "something failed inside the service; its log tells more under this request id"
_LONGEST_CLIENT_ID: Final = 128
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")

_log = logging.getLogger(__name__)


class RequestTrace(Protocol):
    """The trace of one request, as its protocol sees it."""

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None:
        """How the request ended.

        Args:
            name: the kind of request: its route, never words of the request.
            attributes: what its protocol says about it, by the conventions of OpenTelemetry.
            failed: whether that is our fault.
        """
        ...


class RequestObserver(Protocol):
    """Counts, times and traces requests. Must be quick and must not raise."""

    def request(
        self, name: str, *, request_id: str, caller: str | None, attributes: dict[str, Attribute]
    ) -> AbstractContextManager[RequestTrace]:
        """The block answers a request.

        Args:
            name: what is known of its kind.
            request_id: its id.
            caller: the caller's place in a trace, as its protocol carries it.
            attributes: what its protocol says about it, by the conventions of OpenTelemetry.
        """
        ...

    def part(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:
        """The block is a part of the current request."""
        ...

    def in_flight(self) -> AbstractContextManager[None]:
        """The block works on a request for hands."""
        ...

    def image_answered(self, routed_to: RoutedTo | None, asked_for: str | None, code: str, seconds: float) -> None:
        """One image of the current request has its result or its problem.

        Args:
            routed_to: the model that it was routed to, if it got that far.
            asked_for: what the request named, if anything; the client's words.
            code: "ok", or the problem's code.
            seconds: since the request arrived.
        """
        ...


@dataclass(slots=True)
class Outcome:
    """What is learnt of an image on the way."""

    model: ServedModel | None = None


@contextmanager
def observed_image(
    observer: RequestObserver,
    clock: Clock,
    *,
    since: float,
    asked_for: str | None,
    disconnected: tuple[type[BaseException], ...] = (),
) -> Iterator[Outcome]:
    """Reports how the block that answers one image ended. Exceptions pass through.

    Args:
        observer: is told.
        clock: time.
        since: when the request arrived.
        asked_for: the model that the request names.
        disconnected: exceptions by which a protocol says that the client has gone.
    """
    outcome = Outcome()
    with observed_failure(observer, clock, since=since, asked_for=asked_for, disconnected=disconnected):
        yield outcome
    routed_to = None if outcome.model is None else routed_to_of(outcome.model)
    observer.image_answered(routed_to, asked_for, OK, clock.time() - since)


@contextmanager
def observed_failure(
    observer: RequestObserver,
    clock: Clock,
    *,
    since: float,
    asked_for: str | None,
    disconnected: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """As `observed_image`, for a block whose success is not an answer yet."""
    try:
        yield
    except BaseException as error:
        routed_to = error.routed_to if isinstance(error, ServiceError) else None
        code = CLIENT_GONE if isinstance(error, (asyncio.CancelledError, *disconnected)) else _code_of(error)
        observer.image_answered(routed_to, asked_for, code, clock.time() - since)
        raise


class StreamReport:
    """Counts the frames of one stream, and logs failures: once for as long as frames fail alike.

    Args:
        observer: is told of each frame.
        clock: time.
        request_id: of the stream.
        asked_for: the model that the stream names.
    """

    def __init__(
        self, observer: RequestObserver, clock: Clock, request_id: str, *, asked_for: str | None = None
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._request_id = request_id
        self._last_answer = clock.time()  # or the stream's beginning
        self._last_code: str | None = None
        self.asked_for = asked_for

    def frame_answered(self, answer: FrameAnswer) -> None:
        """A frame has its hands or its problem."""
        self._last_answer, outcome = self._clock.time(), answer.outcome
        if isinstance(outcome, ServiceError):
            if outcome.code != self._last_code:
                report(outcome, self._request_id)
            self._last_code = outcome.code
            self._observer.image_answered(outcome.routed_to, self.asked_for, outcome.code, answer.seconds)
        else:
            self._last_code = None
            self._observer.image_answered(routed_to_of(outcome.estimate.model), self.asked_for, OK, answer.seconds)

    def failed(self, error: ServiceError) -> None:
        """The stream cannot go on."""
        report(error, self._request_id)
        seconds = self._clock.time() - self._last_answer
        self._observer.image_answered(error.routed_to, self.asked_for, error.code, seconds)


def routed_to_of(model: ServedModel) -> RoutedTo:
    """How errors and metrics name a model that a request was routed to."""
    return model.variant, model.version


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


def report(error: ServiceError, request_id: str) -> None:
    """Log what the operator should know and the client is not told: our own failures, and why we were unavailable."""
    if error.kind is ErrorKind.INTERNAL:
        _log.error("%s", error, exc_info=error, extra={"request_id": request_id})
    elif error.kind is ErrorKind.UNAVAILABLE and error.__cause__ is not None:
        _log.warning("%s: %r", error, error.__cause__, extra={"request_id": request_id})


def request_id_from(given: str | None) -> str:
    """The caller's own id, if it can be put into logs and answers safely; else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given) and without_keys(given) == given:
        return given
    return uuid.uuid4().hex


def client_id_from(given: str | None, name: str) -> str | None:
    """The sender's id, if it gives one.

    Args:
        given: the id.
        name: where the request gave it, for the error.

    Raises:
        InvalidInputError: if it is too long or is not printable.
    """
    if given is not None and not (len(given) <= _LONGEST_CLIENT_ID and given.isprintable()):
        message = f"must be at most {_LONGEST_CLIENT_ID} printable characters"
        raise InvalidInputError(f"{name} {message}", code="invalid_client_id", errors=[FieldError(name, message)])
    return given or None


def _code_of(error: BaseException) -> str:
    code = getattr(error, "code", None)  # of ours, and of a protocol's own errors
    return code if isinstance(code, str) else ErrorKind.INTERNAL.value
