"""A collector of traces, for tests: takes OTLP over HTTP as OpenTelemetry's does, and remembers the spans."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as WireStatus


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span as it came over the wire; ids in hexadecimal, times in nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    server: bool
    failed: bool
    begun: int
    ended: int
    attributes: dict[str, Any]
    linked_span_ids: tuple[str, ...]


class OtlpCollector:
    """Listens on a port of its own, within `with`.

    Attributes:
        spans: what has come so far.
        paths: where it was sent to.
        answering: while cleared, no request is answered.
    """

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.paths: list[str] = []
        self.answering = threading.Event()
        self.answering.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.answering.wait(20)
                collector.paths.append(self.path)
                collector.spans += _spans_in(ExportTraceServiceRequest.FromString(body))
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def named(self, name: str) -> list[CollectedSpan]:
        """The spans of this name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.begun)

    def only(self, name: str) -> CollectedSpan:
        """The only span of this name."""
        (span,) = self.named(name)
        return span

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _spans_in(request: ExportTraceServiceRequest) -> list[CollectedSpan]:
    return [
        CollectedSpan(
            service=_attributes(resource_spans.resource)["service.name"],
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            server=span.kind == WireSpan.SPAN_KIND_SERVER,
            failed=span.status.code == WireStatus.STATUS_CODE_ERROR,
            begun=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
            attributes=_attributes(span),
            linked_span_ids=tuple(link.span_id.hex() for link in span.links),
        )
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def _attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}
