"""The names that a request carries from system to system, and the trace of what becomes of it.

A `Span` is one part of a request's time, in a trace that may have begun in another system. This module is the port: who
makes spans and where they go is an adapter's business (`service.observability.otlp`), and without one a request has an
`Untraced` span, which does nothing but carry the caller's trace on. The current span is a context variable, so that
adapters can find it without every port naming it.

Span names and attributes are the use case's own words; an attribute whose name has a dot in it is a protocol's.
"""

import re
import uuid
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Final, Protocol, Self

from service.inference.errors import FieldError, InvalidInputError
from service.inference.keys import without_keys

Attribute = str | int | float | bool

_LONGEST_CLIENT_ID: Final = 128

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span(Protocol):
    """One part of a request's time. Must be quick and must not raise."""

    @property
    def traceparent(self) -> str | None:
        """W3C `traceparent` by which the next system's spans become children of this one; None outside any trace."""
        ...

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Where to look this span up (trace_id, span_id); None if nobody keeps it."""
        ...

    def child(self, name: str, **attributes: Attribute) -> "Span":
        """A part of this part, which begins now."""
        ...

    def linked(self, name: str, **attributes: Attribute) -> "Span":
        """The root of a trace of its own that points to this one, for parts of what may go on for hours."""
        ...

    def annotate(self, **attributes: Attribute) -> None:
        """Say more about this part."""
        ...

    def end(self, error: BaseException | None = None) -> None:
        """This part is over, and this is why it failed, if it did. Only the first time counts."""
        ...


class RequestSpan(Span, Protocol):
    """The span of a whole request, as its protocol sees it."""

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None:
        """How the request ended.

        Args:
            name: what kind of request it was: its route, never a stranger's words.
            attributes: what its protocol says about it, by the conventions of OpenTelemetry.
            failed: whether that is our fault.
        """
        ...


class Tracer(Protocol):
    """Begins the spans of requests."""

    def request(self, name: str, traceparent: str | None, **attributes: Attribute) -> RequestSpan:
        """A request has arrived.

        Args:
            name: what is known of its kind.
            traceparent: the caller's trace, as `traceparent_from` returns it.
            attributes: what is known of it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Untraced:
    """A `RequestSpan` that nobody keeps. It carries the caller's trace on."""

    traceparent: str | None = None

    @property
    def exemplar(self) -> None:
        return None

    def child(self, name: str, **attributes: Attribute) -> Self:  # noqa: ARG002 -- nobody keeps them
        return self

    def linked(self, name: str, **attributes: Attribute) -> Self:  # noqa: ARG002 -- nobody keeps them
        return self

    def annotate(self, **attributes: Attribute) -> None: ...

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None: ...

    def end(self, error: BaseException | None = None) -> None: ...


class NoTracer:
    """Implements `Tracer` where no traces are kept."""

    def request(self, name: str, traceparent: str | None, **attributes: Attribute) -> Untraced:  # noqa: ARG002 -- nobody keeps them
        return Untraced(traceparent)


SPAN: Final[ContextVar[Span]] = ContextVar("handpose_span", default=Untraced())  # noqa: B039 -- it is immutable
"""What is being done now, for whom. A batch has several requests' spans; here is that of the first that is traced."""


class entered:  # noqa: N801 -- used like a function
    """The span is the current one in this block, and ends with it; exceptions pass through."""

    # A class, because a request enters half a dozen spans, and one made of generators costs three times as much.
    __slots__ = ("_before", "_span")

    _before: "Token[Span]"

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._before = SPAN.set(self._span)
        return self._span

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        SPAN.reset(self._before)
        self._span.end(error)


def part(name: str, **attributes: Attribute) -> entered:
    """The block is a part of what is being done now, which begins with this call."""
    return entered(SPAN.get().child(name, **attributes))


def trace_id_of(traceparent: str | None) -> str | None:
    """The id of the trace, by which logs and traces find each other."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    return found[1] if found is not None else None


def request_id_from(given: str | None) -> str:
    """The caller's own id, if it can be put into logs and headers safely; else a new one."""
    fit = given is not None and _REQUEST_ID.fullmatch(given) is not None and without_keys(given) == given
    return given if given is not None and fit else uuid.uuid4().hex


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
