"""The service as users start it, with a collector for its traces and a model server behind it."""

import json
from pathlib import Path

import httpx
import pytest

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from tests.support.gateway_process import GatewayProcess
from tests.support.images import image_bytes
from tests.support.otlp_collector import OtlpCollector

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.slow
def test_one_trace_goes_from_the_caller_through_the_gateway_to_the_model_server_metrics_and_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for variant in ("lightweight", "standard"):
        add_version(tmp_path, variant, 1)
    models = config_text(tmp_path, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
    with OtlpCollector() as collector, StandIn(tmp_path, models) as model_server:
        gateway = GatewayProcess(
            {
                "BACKEND": "tensorflow_serving",
                "TFS_ADDRESSES": model_server.address,
                "MODEL_REPO": str(tmp_path),
                "TRACE_ENDPOINT": collector.url,
                "TRACE_SAMPLE_RATIO": "0",
                "LOG_LEVEL": "info",
                "LOG_FORMAT": "json",
            }
        )
        with gateway:
            headers = {"traceparent": TRACEPARENT, "X-Request-Id": "find-me"}
            answer = httpx.post(f"{gateway.url}/v1/hand-pose?roi=0,0,40,40", content=image_bytes(), headers=headers)
            metrics = httpx.get(f"{gateway.url}/metrics", headers={"Accept": "application/openmetrics-text"})
            gateway.terminate()  # at once: what has not been sent is sent at the end
            assert gateway.wait() == 0
        forwarded = model_server.report()["traceparents"][-1]

    assert answer.status_code == 200
    request, inference = collector.only("POST /v1/hand-pose"), collector.only("inference")
    assert (request.trace_id, inference.parent_id) == (TRACE_ID, request.span_id)
    assert forwarded == f"00-{TRACE_ID}-{inference.span_id}-01"
    assert {span.name for span in collector.spans} >= {"decode", "queue", "postprocess"}
    assert metrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert f'# {{span_id="{request.span_id}",trace_id="{TRACE_ID}"}}' in metrics.text
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (said,) = (event for event in events if event.get("request_id") == "find-me")
    assert (said["message"], said["status"], said["trace_id"]) == ("POST /v1/hand-pose", 200, TRACE_ID)
