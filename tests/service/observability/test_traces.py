"""Traces of requests, as a collector gets them over its socket."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import websockets
from prometheus_client import CollectorRegistry

from service.inference.errors import UnavailableError
from service.inference.estimates import Estimate, Timings
from service.inference.model_queue import BatchingPolicy
from service.inference.models import AnyModel
from service.observability.metrics import PrometheusObserver
from service.observability.otlp import OtlpExport
from service.observability.tracing import Traces, exemplar, trace_id, traceparent
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.support.backend import Crops, FakeBackend, Maps
from tests.support.gateway import Gateway
from tests.support.images import image_bytes
from tests.support.models import served_model
from tests.support.otlp_collector import CollectedSpan, OtlpCollector
from tests.support.waiting import until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_ID}-01"
PARTS = ("decode", "queue", "inference", "postprocess")
PATH = "/v1/hand-pose"
WHOLE = f"{PATH}?whole=true"  # one inference a picture
METHOD = "handpose.v1.HandPoseService/Estimate"


class ForwardingBackend(FakeBackend):
    """Remembers what it would send along to a model server."""

    def __init__(self) -> None:
        super().__init__()
        self.traceparents: list[str | None] = []

    async def predict(self, model: AnyModel, crops: Crops, *, timeout_s: float) -> Maps:
        self.traceparents.append(traceparent())
        return await super().predict(model, crops, timeout_s=timeout_s)


class Traced:
    """A gateway whose traces go to a collector."""

    def __init__(self, gateway: Gateway, backend: ForwardingBackend, export: OtlpExport) -> None:
        self.gateway = gateway
        self.backend = backend
        self.client = httpx.AsyncClient(base_url=gateway.rest_url, timeout=20)
        self._export = export

    async def sent(self) -> None:
        """Return once the collector has every span that has ended."""
        await asyncio.to_thread(self._export.close, 10)


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as collector:
        yield collector


@asynccontextmanager
async def traced_gateway(
    collector: OtlpCollector, *, sample_ratio: float = 1.0, batching: BatchingPolicy | None = None
) -> AsyncIterator[Traced]:
    export = OtlpExport(f"{collector.url}/v1/traces", sample_ratio=sample_ratio, send_every_ms=20)
    with ThreadPoolExecutor(1) as workers:
        backend = ForwardingBackend()
        gateway = Gateway(workers, backend=backend, batching=batching, tracer=export.tracer)
        await gateway.start()
        await gateway.start_rest()
        traced = Traced(gateway, backend, export)
        try:
            yield traced
        finally:
            await traced.client.aclose()
            await gateway.stop()
            await traced.sent()


@pytest.fixture
async def traced(collector: OtlpCollector) -> AsyncIterator[Traced]:
    async with traced_gateway(collector) as traced:
        yield traced


def assert_nested(collector: OtlpCollector, request: CollectedSpan) -> None:
    """The parts of the only request, one after the other, within it."""
    parts = [collector.only(name) for name in PARTS]
    assert {part.trace_id for part in parts} == {request.trace_id}
    assert {part.parent_id for part in parts} == {request.span_id}
    times = [request.begun, *(time for part in parts for time in (part.begun, part.ended)), request.ended]
    assert times == sorted(times)
    assert len({request.span_id, *(part.span_id for part in parts)}) == 5


async def test_rest_request_is_traced_under_its_callers_span(traced: Traced, collector: OtlpCollector) -> None:
    headers = {"traceparent": TRACEPARENT, "X-Request-Id": "find-me", "X-Model-Variant": "standard"}
    answer = await traced.client.post(WHOLE, content=image_bytes(), headers=headers)
    await traced.sent()

    assert answer.status_code == 200
    request = collector.only(f"POST {PATH}")
    assert (request.trace_id, request.parent_id, request.server, request.failed) == (TRACE_ID, CALLER_ID, True, False)
    assert request.service == "handpose-gateway"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "handpose.request_id": "find-me",
        "handpose.routed_by": "header",
        "handpose.variant": "standard",
        "handpose.version": 1,
        "handpose.image_width": answer.json()["image"]["width"],
        "handpose.image_height": answer.json()["image"]["height"],
    }
    assert_nested(collector, request)
    assert collector.only("inference").attributes == {
        "handpose.variant": "standard",
        "handpose.version": 1,
        "handpose.batch_size": 1,
    }
    assert set(collector.paths) == {"/v1/traces"}  # spans leave in one batch or in more


async def test_grpc_call_is_traced_under_its_callers_span(traced: Traced, collector: OtlpCollector) -> None:
    metadata = (("traceparent", TRACEPARENT), ("x-request-id", "find-me"))
    await traced.gateway.stub().Estimate(pb.EstimateRequest(image=image_bytes(), whole=True), metadata=metadata)
    await traced.sent()

    request = collector.only(METHOD)
    assert request.attributes.pop("handpose.image_width") > 0
    assert request.attributes.pop("handpose.image_height") > 0
    assert (request.trace_id, request.parent_id, request.server, request.failed) == (TRACE_ID, CALLER_ID, True, False)
    assert request.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "handpose.v1.HandPoseService",
        "rpc.method": "Estimate",
        "rpc.grpc.status_code": 0,
        "handpose.request_id": "find-me",
        "handpose.routed_by": "default",
        "handpose.variant": "lightweight",
        "handpose.version": 1,
    }
    assert_nested(collector, request)


async def test_model_server_is_called_under_the_span_of_the_inference(traced: Traced, collector: OtlpCollector) -> None:
    await traced.client.post(WHOLE, content=image_bytes(), headers={"traceparent": TRACEPARENT})
    await traced.sent()

    assert traced.backend.traceparents == [f"00-{TRACE_ID}-{collector.only('inference').span_id}-01"]


async def test_requests_that_run_together_keep_traces_of_their_own(collector: OtlpCollector) -> None:
    async with traced_gateway(collector, batching=BatchingPolicy(max_running=1)) as traced:
        traced.backend.hold()
        first = asyncio.ensure_future(traced.client.post(WHOLE, content=image_bytes()))
        await traced.backend.arrived(1)
        others = [asyncio.ensure_future(traced.client.post(WHOLE, content=image_bytes())) for _ in range(2)]
        await until(lambda: len(collector.named("decode")) == 3)
        traced.backend.release()
        await asyncio.gather(first, *others)
        await traced.sent()

    requests, inferences = collector.named(f"POST {PATH}"), collector.named("inference")
    assert len({request.trace_id for request in requests}) == 3
    assert {each.parent_id for each in inferences} == {request.span_id for request in requests}
    assert [each.attributes["handpose.batch_size"] for each in inferences] == [1, 2, 2]
    forwarded = traced.backend.traceparents[1]
    assert forwarded is not None
    assert forwarded.split("-")[1] in {each.trace_id for each in inferences[1:]}


async def test_searching_a_picture_is_a_part_of_decoding_it(traced: Traced, collector: OtlpCollector) -> None:
    await traced.client.post(PATH, content=image_bytes())
    await traced.sent()

    decode, detection = collector.only("decode"), collector.only("detection")
    assert detection.parent_id == decode.span_id
    of_detector, of_model = sorted(collector.named("inference"), key=lambda each: each.begun)
    assert (of_detector.parent_id, of_detector.attributes["handpose.variant"]) == (detection.span_id, "detector")
    assert (of_model.parent_id, of_model.attributes["handpose.variant"]) == (decode.parent_id, "lightweight")


async def test_batch_of_images_shows_each_image(traced: Traced, collector: OtlpCollector) -> None:
    files = [("image", ("a.png", image_bytes(), "image/png")), ("image", ("b.png", b"x", "image/png"))]
    answer = await traced.client.post(f"{PATH}:batch", files=files)
    await traced.gateway.stub().EstimateBatch(
        pb.EstimateBatchRequest(requests=2 * [pb.EstimateRequest(image=image_bytes(), whole=True)])
    )
    await traced.sent()

    assert [result["status"] for result in answer.json()["results"]] == [200, 415]
    for name, parts_of_images in ((f"POST {PATH}:batch", 1), ("handpose.v1.HandPoseService/EstimateBatch", 2)):
        request = collector.only(name)
        images = [each for each in collector.named("image") if each.parent_id == request.span_id]
        assert sorted(each.attributes["handpose.index"] for each in images) == [0, 1]
        inside = [each for each in collector.named("inference") if each.parent_id in {one.span_id for one in images}]
        assert len(inside) == parts_of_images


async def test_failures_of_ours_are_marked_and_mistakes_of_the_sender_are_not(
    traced: Traced, collector: OtlpCollector
) -> None:
    await traced.client.post(WHOLE, content=b"no image", headers={"Content-Type": "image/png"})
    traced.backend.failure = UnavailableError("the model server is down", retry_after_s=1.0)
    await traced.client.post(WHOLE, content=image_bytes())
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.gateway.stub().Estimate(pb.EstimateRequest(image=image_bytes(), whole=True))
    await traced.sent()

    mistake, failure = collector.named(f"POST {PATH}")
    assert (mistake.failed, mistake.attributes["http.response.status_code"]) == (False, 415)
    assert mistake.attributes["handpose.problem"] == "unsupported_image_format"
    assert (failure.failed, failure.attributes["http.response.status_code"]) == (True, 503)
    assert failure.attributes["handpose.problem"] == "unavailable"
    call = collector.only(METHOD)
    assert (call.failed, call.attributes["rpc.grpc.status_code"]) == (True, grpc.StatusCode.UNAVAILABLE.value[0])
    decodings = collector.named("decode")
    assert [each.attributes.get("error.type") for each in decodings] == ["unsupported_image_format", None, None]
    assert [each.failed for each in decodings] == [False, False, False]
    assert [each.failed for each in collector.named("inference")] == [True, True]
    assert len(collector.named("queue")) == 2
    assert collector.named("postprocess") == []


async def test_unknown_paths_and_machines_that_ask_for_health_make_no_names(
    traced: Traced, collector: OtlpCollector
) -> None:
    await traced.client.get("/a/stranger's/words")
    await traced.client.request("PURGE", "/")
    for path in ("/livez", "/readyz", "/metrics"):
        await traced.client.get(path, headers={"traceparent": TRACEPARENT})
    await traced.sent()

    assert sorted(span.name for span in collector.spans) == ["GET", "HTTP /"]


async def test_frame_of_a_stream_is_a_trace_that_points_to_its_stream(traced: Traced, collector: OtlpCollector) -> None:
    url = traced.gateway.rest_url.replace("http", "ws") + f"{PATH}/stream?whole=true"
    async with websockets.connect(url, additional_headers={"traceparent": TRACEPARENT}) as socket:
        for _ in range(2):
            await socket.send(image_bytes())
            await socket.recv()
        await socket.send('{"end": true}')
        await socket.wait_closed()
    await traced.gateway.stop()
    await traced.sent()

    stream = collector.only(f"GET {PATH}/stream")
    frames = collector.named("frame")
    assert stream.trace_id == TRACE_ID
    assert [frame.linked_span_ids for frame in frames] == [(stream.span_id,), (stream.span_id,)]
    assert len({stream.trace_id, *(frame.trace_id for frame in frames)}) == 3
    assert {each.parent_id for each in collector.named("inference")} == {frame.span_id for frame in frames}


async def test_what_the_caller_does_not_trace_is_passed_on_and_not_kept(
    traced: Traced, collector: OtlpCollector
) -> None:
    untraced = f"00-{TRACE_ID}-{CALLER_ID}-00"
    await traced.client.post(WHOLE, content=image_bytes(), headers={"traceparent": untraced})
    await traced.sent()

    assert collector.spans == []
    (forwarded,) = traced.backend.traceparents
    assert forwarded is not None
    assert forwarded.split("-")[1::2] == [TRACE_ID, "00"]


async def test_share_of_requests_is_traced_unless_the_caller_decides(collector: OtlpCollector) -> None:
    async with traced_gateway(collector, sample_ratio=0.0) as traced:
        await traced.client.post(WHOLE, content=image_bytes())
        await traced.client.post(WHOLE, content=image_bytes(), headers={"traceparent": TRACEPARENT})
        await traced.sent()

    assert {span.trace_id for span in collector.spans} == {TRACE_ID}


def test_latencies_of_traced_requests_have_exemplars_where_they_can_be_read(collector: OtlpCollector) -> None:
    export = OtlpExport(f"{collector.url}/v1/traces", sample_ratio=1.0)
    observer, model = PrometheusObserver(CollectorRegistry(), export.tracer), served_model("standard")
    with observer.request("a", request_id="a", caller=TRACEPARENT, attributes={}):
        observer.estimated(Estimate(model, "default", (1, 1), (), Timings(0.002, 0.0, 0.002, 0.002, 0.002, 0.01)))
        observer.image_answered(("standard", 1), None, "ok", 0.02)
    with observer.request("b", request_id="b", caller=TRACEPARENT.replace("-01", "-00"), attributes={}):
        observer.image_answered(("standard", 1), None, "ok", 2.0)
    export.close(10)

    body, media_type = observer.exposition("application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5")
    exemplars = [line for line in body.decode().splitlines() if "# {" in line]
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert [line.partition("{")[0] for line in exemplars] == [
        "handpose_request_duration_seconds_bucket",
        *["handpose_stage_duration_seconds_bucket"] * 4,
    ]
    assert all(f'trace_id="{TRACE_ID}"' in line for line in exemplars)
    assert b"trace_id" not in observer.exposition("text/plain").body


@pytest.mark.parametrize(
    "invalid",
    [
        f"ff-{TRACE_ID}-{CALLER_ID}-01",
        f"00-{'0' * 32}-{CALLER_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{CALLER_ID}-01-and more",
        "",
    ],
)
def test_traceparent_that_is_none_begins_nothing_and_goes_nowhere(invalid: str) -> None:
    with Traces().request("a", request_id="a", caller=invalid, attributes={}):
        assert (trace_id(), traceparent()) == (None, None)


async def test_collector_that_is_away_costs_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpCollector() as gone:
        url = gone.url
    export = OtlpExport(f"{url}/v1/traces", sample_ratio=1.0, send_every_ms=10)
    with ThreadPoolExecutor(1) as workers:
        gateway = Gateway(workers, tracer=export.tracer)
        await gateway.start()
        await gateway.start_rest()
        async with httpx.AsyncClient(base_url=gateway.rest_url) as client:
            answers = [await client.post(PATH, content=image_bytes()) for _ in range(5)]
        await gateway.stop()
    begun = time.monotonic()
    with caplog.at_level("INFO"):
        await asyncio.to_thread(export.close, 0.5)

    assert [answer.status_code for answer in answers] == [200] * 5
    assert time.monotonic() - begun < 8.0
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.startswith("Transient error") or "Failed to export" in line]) == 0


def test_collector_that_hangs_delays_the_end_by_no_more_than_was_allowed(
    collector: OtlpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answering.clear()
    export = OtlpExport(f"{collector.url}/v1/traces", sample_ratio=1.0)
    export.tracer.start_span("a").end()
    begun = time.monotonic()
    export.close(0.3)

    assert time.monotonic() - begun < 8.0
    assert "lost" in caplog.text


def test_without_an_endpoint_opentelemetrys_sdk_is_not_even_imported() -> None:
    """FastAPI imports OpenTelemetry's API, of its own accord; the SDK and the exporter are ours alone."""
    program = (
        "import sys, service.bootstrap;"
        " print(sorted(n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))))"
    )
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_without_the_sdk_requests_carry_the_callers_trace_on() -> None:
    traces = Traces()
    with traces.request("a", request_id="a", caller=TRACEPARENT, attributes={}), traces.part("b"):
        assert (trace_id(), traceparent()) == (TRACE_ID, TRACEPARENT)
        assert exemplar() is None
    assert (trace_id(), traceparent()) == (None, None)
