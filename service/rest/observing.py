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


@contextmanager
def observed_request(observer: RequestObserver) -> Iterator[None]:
    """Counts a request as being worked on for as long as the block runs."""
    observer.request_started()
    try:
        yield
    finally:
        observer.request_ended()


@contextmanager
def observed_image(
    observer: RequestObserver, clock: Clock, *, arrived: float, asked_for: str | None
) -> Iterator[Outcome]:
    """Reports how the block that answers one image ended, and after how long. Exceptions pass through."""
    outcome = Outcome()
    try:
        yield outcome
    except BaseException as error:
        model, asked_for = routed(error, asked_for)
        observer.image_answered(outcome.model or model, asked_for, _code_of(error), clock.time() - arrived)
        raise
    observer.image_answered(outcome.model, asked_for, OK, clock.time() - arrived)


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
