"""Traces: the `Tracer` port on OpenTelemetry, sent to a collector by OTLP over HTTP.

The only module that knows OpenTelemetry, and only `service.bootstrap` imports it, when an endpoint is set. It has a
provider of its own and leaves OpenTelemetry's global one alone.

Nothing here may touch an answer. Spans go into a bounded queue, which a thread empties; a collector that is slow or
away costs spans, and one line in the log. `close` waits for what is queued, but not for long.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.inference.errors import ErrorKind, ServiceError
from service.inference.tracing import Attribute

_OURS: Final = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED})
"""Failures that mark a span as an error. What the sender did wrong is an attribute only."""

_PREFIX: Final = "handpose."
_QUEUE: Final = 4096
_BATCH: Final = 512
_SEND_EVERY_MS: Final = 1000
_SEND_WITHIN_S: Final = 5.0

logger = logging.getLogger(__name__)


class OtlpTracer:
    """Implements `service.inference.tracing.Tracer`.

    Args:
        endpoint: where the collector takes traces: http(s)://host:port/v1/traces.
        sample_ratio: of the requests whose caller has not decided, the share that is traced, 0 to 1.
        send_every_ms: how long a span waits for others before they are sent.
    """

    def __init__(self, endpoint: str, *, sample_ratio: float, send_every_ms: int = _SEND_EVERY_MS) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create({SERVICE_NAME: "handpose-gateway"}),  # and what OTEL_RESOURCE_ATTRIBUTES says
            shutdown_on_exit=False,
        )
        self._exporter = _QuietExporter(OTLPSpanExporter(endpoint, timeout=_SEND_WITHIN_S), endpoint)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_QUEUE,
            max_export_batch_size=_BATCH,
            schedule_delay_millis=send_every_ms,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("service")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, name: str, traceparent: str | None, **attributes: Attribute) -> "OtlpSpan":
        caller = self._propagator.extract({"traceparent": traceparent} if traceparent else {}, context=Context())
        span = self._tracer.start_span(name, caller, kind=SpanKind.SERVER, attributes=_named(attributes))
        return OtlpSpan(self._tracer, span)

    def close(self, within_s: float) -> None:
        """Send what is queued, and stop. Blocks for `within_s` seconds at the most, whatever the collector does."""
        # The library has a bound of its own, of half a minute; its threads do not keep the process from ending.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within_s)
        if closing.is_alive():
            self._exporter.shutdown()  # tries no more
            logger.warning("some traces could not be sent in %g s and are lost", within_s)


class OtlpSpan:
    """Implements `service.inference.tracing.RequestSpan`."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: OtelTracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"

    @property
    def exemplar(self) -> dict[str, str] | None:
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def child(self, name: str, **attributes: Attribute) -> "OtlpSpan":
        if not self._span.get_span_context().trace_flags.sampled:
            return self  # none of its parts will be kept either
        context = set_span_in_context(self._span, Context())
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context, attributes=_named(attributes)))

    def linked(self, name: str, **attributes: Attribute) -> "OtlpSpan":
        link = Link(self._span.get_span_context())
        return OtlpSpan(
            self._tracer, self._tracer.start_span(name, Context(), attributes=_named(attributes), links=[link])
        )

    def annotate(self, **attributes: Attribute) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_named(attributes))

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None:
        if self._span.is_recording():
            self._span.update_name(name)
            self._span.set_attributes(attributes)
            if failed:
                self._span.set_status(Status(StatusCode.ERROR))

    def end(self, error: BaseException | None = None) -> None:
        if not self._span.is_recording():
            return
        if isinstance(error, ServiceError):
            self._span.set_attribute("error.type", error.code)
            if error.kind in _OURS:
                self._span.set_status(Status(StatusCode.ERROR, error.detail))
        elif error is not None:
            self._span.set_attribute("error.type", type(error).__qualname__)
            if isinstance(error, Exception):
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _QuietExporter(SpanExporter):
    """Says once that spans do not get through, and once that they do again; the library would say it every second."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = exporter
        self._endpoint = urlsplit(endpoint).netloc.rpartition("@")[2]  # without a password, if there is one
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            logger.warning("%s takes no traces; they are lost until it does", self._endpoint)
        elif self._failing and not failing:
            logger.info("%s takes traces again", self._endpoint)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name if "." in name else f"{_PREFIX}{name}": value for name, value in attributes.items()}
