"""What REST tells an observer of each request, and how it sees to it that every one is told."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import ClientDisconnect

from service.inference.errors import ErrorKind, ServiceError
from service.inference.failures import routed
from service.inference.models import ServedModel
from service.inference.ports import Clock
from service.rest.problems import HttpError

OK: Final = "ok"
CLIENT_GONE: Final = "client_gone"


class RequestObserver(Protocol):
    """Counts and times requests. Must be quick and must not raise."""

    def request_started(self) -> None: ...

    def request_ended(self) -> None: ...

    def image_answered(self, model: ServedModel | None, asked_for: str | None, code: str, seconds: float) -> None:
        """One image has its result or its problem.

        Args:
            model: what served it, if it got that far.
            asked_for: what the request named, if anything; a stranger's words.
            code: "ok", or the problem's code.
            seconds: since the request arrived.
        """
        ...


@dataclass
class Outcome:
    """What is learnt of a request on the way."""

    model: ServedModel | None = None


class observed_request:  # noqa: N801 -- used like a function
    """Counts a request as being worked on for as long as the block runs."""

    # Classes, this and the next, because what every request enters costs three times as much if made of generators.
    __slots__ = ("_observer",)

    def __init__(self, observer: RequestObserver) -> None:
        self._observer = observer

    def __enter__(self) -> None:
        self._observer.request_started()

    def __exit__(self, *_: object) -> None:
        self._observer.request_ended()


class observed_image:  # noqa: N801 -- used like a function
    """Reports how the block that answers one image ended, and after how long. Exceptions pass through."""

    __slots__ = ("_arrived", "_asked_for", "_clock", "_observer", "_outcome")

    def __init__(self, observer: RequestObserver, clock: Clock, *, arrived: float, asked_for: str | None) -> None:
        self._observer = observer
        self._clock = clock
        self._arrived = arrived
        self._asked_for = asked_for
        self._outcome = Outcome()

    def __enter__(self) -> Outcome:
        return self._outcome

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        model, asked_for, code = self._outcome.model, self._asked_for, OK
        if error is not None:
            routed_to, asked_for = routed(error, asked_for)
            model, code = model or routed_to, _code_of(error)
        self._observer.image_answered(model, asked_for, code, self._clock.time() - self._arrived)


@contextmanager
def observed_failure(
    observer: RequestObserver, clock: Clock, *, arrived: float, asked_for: str | None
) -> Iterator[None]:
    """As `observed_image`, for a block whose success is not an answer yet."""
    try:
        yield
    except BaseException as error:
        observer.image_answered(None, asked_for, _code_of(error), clock.time() - arrived)
        raise


def _code_of(error: BaseException) -> str:
    match error:
        case ServiceError() | HttpError():
            return error.code
        case ClientDisconnect() | asyncio.CancelledError():
            return CLIENT_GONE
        case _:
            return ErrorKind.INTERNAL.value
