"""Traces by OpenTelemetry's API: which spans there are, and how they hang together.

The API alone carries the caller's trace on to the model server and the log; spans are kept only where the SDK provides
them (`service.observability.otlp`). OpenTelemetry's global provider is left alone.

    POST /v1/hand-pose                     one per request, a child of the caller's span
    ├── decode, detection, postprocess     parts of it
    ├── queue                              from the first item's arrival to its batch's departure
    └── inference                          one per request in the batch; the model server sees one of them as its parent
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context as NoParent
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.inference.errors import OUR_FAULT, ServiceError
from service.inference.models import AnyModel
from service.inference.ports import Attribute

_PREFIX: Final = "handpose."
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_CARRIER: Final = "traceparent"


class RequestSpan:
    """Implements `service.inference.requests.RequestTrace`."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None:
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(StatusCode.ERROR)


class Traces:
    """Begins and ends spans; the current span is OpenTelemetry's.

    Args:
        tracer: makes the spans; None: none are kept.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.NoOpTracer()

    @contextmanager
    def request(
        self, name: str, *, request_id: str, caller: str | None, attributes: dict[str, Attribute]
    ) -> Iterator[RequestSpan]:
        """A span below the caller's."""
        parent = _PROPAGATOR.extract({_CARRIER: caller} if caller else {})
        attributes = {**attributes, **_named({"request_id": request_id})}
        span = self._tracer.start_span(name, parent, kind=SpanKind.SERVER, attributes=attributes)
        with _current(span):
            yield RequestSpan(span)

    @contextmanager
    def part(self, name: str, **attributes: Attribute) -> Iterator[None]:
        """A child of the current span."""
        with _current(self._tracer.start_span(name, attributes=_named(attributes))):
            yield

    @contextmanager
    def frame(self, frame_id: int) -> Iterator[None]:
        """A trace of its own that links to the stream's, which may go on for hours."""
        stream = trace.get_current_span()
        attributes = _named({"frame_id": frame_id})
        if stream.is_recording():
            links = [Link(stream.get_span_context())]
            span = self._tracer.start_span("frame", NoParent(), attributes=attributes, links=links)
        else:
            span = self._tracer.start_span("frame", attributes=attributes)
        with _current(span):
            yield

    @contextmanager
    def batch(self, model: AnyModel, requests: Sequence[tuple[Context, float]], size: int) -> Iterator[None]:
        """For each request, the end of its wait and its inference; one that is kept becomes the current span."""
        now = time.time_ns()
        attributes = _named({"variant": model.kind, "version": model.version, "batch_size": size})
        spans = []
        for context, queued_s in requests:
            parent = trace.set_span_in_context(context.run(trace.get_current_span))
            waited = self._tracer.start_span("queue", parent, start_time=now - round(queued_s * 1e9))
            waited.end(now)
            spans.append(self._tracer.start_span("inference", parent, attributes=attributes, start_time=now))
        # The backend can pass one trace on only.
        passed_on = max(spans, key=lambda span: (_context(span).trace_flags.sampled, _context(span).is_valid))
        with ExitStack() as ends:
            for span in spans:
                ends.enter_context(_current(span))
            with trace.use_span(passed_on, record_exception=False, set_status_on_exception=False):
                yield


def annotate(**attributes: Attribute) -> None:
    """Say more about the current span."""
    trace.get_current_span().set_attributes(_named(attributes))


def exemplar() -> dict[str, str] | None:
    """Where to look the current span up; None if it is not kept."""
    span = trace.get_current_span()
    if not span.is_recording():
        return None
    context = span.get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


def trace_id() -> str | None:
    """The id of the current trace, by which logs and traces find each other; None outside any trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def traceparent() -> str | None:
    """W3C `traceparent` by which the next system's spans become children of the current one; None outside any trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_CARRIER)


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """The span is the current one in this block and ends with it, saying how; exceptions pass through."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except ServiceError as error:
            span.set_attribute("error.type", error.code)
            if error.kind in OUR_FAULT:
                span.set_status(Status(StatusCode.ERROR, error.detail))
            raise
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            if isinstance(error, Exception):
                span.set_status(StatusCode.ERROR)
            raise


def _context(span: Span) -> SpanContext:
    return span.get_span_context()


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"{_PREFIX}{name}": value for name, value in attributes.items()}
