"""Sends spans to a collector by OTLP over HTTP.

The only module that needs OpenTelemetry's SDK, and only `service.bootstrap` imports it, when an endpoint is set. It has
a provider of its own and leaves OpenTelemetry's global one alone.

Nothing here may touch an answer. Spans go into a bounded queue, which a thread empties; a collector that is slow or
away costs spans, and one line in the log. `close` waits for what is queued, but not for long.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

_QUEUE: Final = 4096
_BATCH: Final = 512
_SEND_EVERY_MS: Final = 1000
_SEND_WITHIN_S: Final = 5.0

logger = logging.getLogger(__name__)


class OtlpExport:
    """Keeps spans and sends them to a collector.

    Args:
        endpoint: where the collector takes traces: http(s)://host:port/v1/traces.
        sample_ratio: of the requests whose caller has not decided, the share that is traced, 0 to 1.
        send_every_ms: how long a span waits for others before they are sent.
    """

    def __init__(self, endpoint: str, *, sample_ratio: float, send_every_ms: int = _SEND_EVERY_MS) -> None:
        provider = TracerProvider(
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
        provider.add_span_processor(self._processor)
        self.tracer = provider.get_tracer("service")

    def close(self, within_s: float) -> None:
        """Send what is queued, and stop. Blocks for `within_s` seconds at the most, whatever the collector does."""
        # The library has a bound of its own, of half a minute; its threads do not keep the process from ending.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within_s)
        if closing.is_alive():
            self._exporter.shutdown()  # tries no more
            logger.warning("some traces could not be sent in %g s and are lost", within_s)


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
