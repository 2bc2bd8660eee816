"""What the service tells of itself."""

import json
from concurrent.futures import Executor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.inference.models import ModelReference
from service.inference.routing import RoutingRules
from service.observability.logs import JsonFormatter
from service.pose.keypoints import KEYPOINT_NAMES, SKELETON_EDGES
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.backend import FakeBackend
from tests.support.images import image_bytes
from tests.support.models import INPUT_SIZE, served_model


async def test_the_default_of_the_rules_is_the_one_that_is_listed(gateway: Gateway) -> None:
    async def defaults() -> list[str]:
        listed = (await gateway.client.get("/v1/models")).json()["models"]
        return [each["variant"] for each in listed if each["default"]]

    before = await defaults()
    gateway.router.follow(RoutingRules(default=ModelReference("standard")))

    assert (before, await defaults()) == (["lightweight"], ["standard"])


async def test_models_are_listed_with_versions_labels_and_which_is_the_default(workers: Executor) -> None:
    models = [
        served_model("standard", version=3),
        served_model("lightweight", version=2, labels=("canary",)),
        served_model("lightweight", version=1),
    ]
    async with running_gateway(workers, backend=FakeBackend(*models)) as gateway:
        listed = (await gateway.client.get("/v1/models")).json()["models"]
    assert [(each["variant"], each["version"], each["labels"], each["default"]) for each in listed] == [
        ("lightweight", 1, ["stable"], True),
        ("lightweight", 2, ["canary"], False),
        ("standard", 3, ["stable"], False),
    ]
    assert {each["input_size"] for each in listed} == {INPUT_SIZE}


async def test_skeleton_names_every_keypoint_and_edge(gateway: Gateway) -> None:
    skeleton = (await gateway.client.get("/v1/skeleton")).json()
    assert [each["name"] for each in skeleton["keypoints"]] == list(KEYPOINT_NAMES)
    assert [tuple(edge) for edge in skeleton["edges"]] == list(SKELETON_EDGES)
    assert skeleton["keypoints"][4]["finger"] == "thumb"


async def test_readiness_follows_the_backend_and_liveness_does_not(gateway: Gateway) -> None:
    assert (await gateway.client.get("/readyz")).json() == {"status": "ready"}
    gateway.backend.trouble = "loading cpm_standard version 1"
    answer = await gateway.client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.json()["detail"] == "loading cpm_standard version 1"
    assert (await gateway.client.get("/livez")).json() == {"status": "alive"}


async def test_metrics_are_read_by_the_prometheus_parser_and_count_what_happened(gateway: Gateway) -> None:
    await gateway.client.post("/v1/hand-pose", content=image_bytes())
    await gateway.client.post("/v1/hand-pose", content=b"no image", headers={"X-Model-Variant": "standard"})
    await gateway.client.post("/v1/hand-pose", content=image_bytes(), headers={"X-Model-Variant": "anything at all"})
    answer = await gateway.client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    requests = {
        (sample.labels["variant"], sample.labels["version"], sample.labels["code"]): sample.value
        for sample in samples
        if sample.name == "handpose_requests_total"
    }
    assert requests == {
        ("lightweight", "1", "ok"): 1,
        ("standard", "1", "unsupported_image_format"): 1,
        ("unknown", "unknown", "unknown_variant"): 1,
    }
    durations = [sample for sample in samples if sample.name == "handpose_request_duration_seconds_count"]
    assert sum(sample.value for sample in durations) == 3


async def test_a_request_that_cannot_be_answered_counts_for_the_model_that_it_was_routed_to(workers: Executor) -> None:
    """By default, and not by anything that it said."""
    async with running_gateway(workers, backend=FakeBackend(served_model("standard"))) as gateway:
        await gateway.client.post("/v1/hand-pose", content=image_bytes())
        text = (await gateway.client.get("/metrics")).text
    assert 'handpose_requests_total{code="unknown_version",variant="lightweight",version="unknown"} 1.0' in text


async def test_request_id_of_the_caller_is_kept(gateway: Gateway) -> None:
    answer = await gateway.client.get("/livez", headers={"X-Request-Id": "req-1:a/b+c=d@e~f"})
    assert answer.headers["X-Request-Id"] == "req-1:a/b+c=d@e~f"


@pytest.mark.parametrize("unsafe", ["", "two words", "x" * 129, 'quo"te', "<b>", "\u00e9"])
async def test_unsafe_request_id_is_replaced(gateway: Gateway, unsafe: str) -> None:
    headers = {b"X-Request-Id": unsafe.encode("latin-1")}
    first = await gateway.client.get("/livez", headers=headers)
    second = await gateway.client.get("/livez", headers=headers)
    ids = {first.headers["X-Request-Id"], second.headers["X-Request-Id"]}
    assert len(ids - {unsafe, ""}) == 2


async def test_log_line_names_the_request_and_its_trace(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-Id": "find-me", "traceparent": trace}
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level("INFO", "service.rest"):
        await gateway.client.post("/v1/hand-pose", content=image_bytes(), headers=headers)
        await gateway.client.post("/v1/hand-pose", content=b"", headers={"traceparent": "not\tone"})
    first, second = (json.loads(line) for line in caplog.text.splitlines())
    assert first["message"] == "POST /v1/hand-pose"
    assert (first["request_id"], first["trace_id"], first["status"]) == ("find-me", trace.split("-")[1], 200)
    assert ("trace_id" in second, second["status"]) == (False, 400)
