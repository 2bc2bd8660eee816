"""Several gateway processes on one port: what one of them says of the metrics holds for all."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import httpx
import pytest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from service.inference.ports import Phase
from service.rpc.server import ServerOptions
from tests.support.executor import InlineExecutor
from tests.support.gateway import Gateway
from tests.support.gateway_process import GatewayProcess
from tests.support.images import image_bytes

REQUESTS = 24


@pytest.fixture
def workers() -> Executor:
    return InlineExecutor()


@pytest.fixture
def model_server(tmp_path: Path) -> Iterator[StandIn]:
    for variant in ("lightweight", "standard"):
        add_version(tmp_path, variant, 1)
    models = config_text(tmp_path, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
    with StandIn(tmp_path, models) as stand_in:
        yield stand_in


def process(model_server: StandIn, repository: Path, **others: str) -> GatewayProcess:
    return GatewayProcess(
        {
            "BACKEND": "tensorflow_serving",
            "TFS_ADDRESSES": model_server.address,
            "MODEL_REPO": str(repository),
            "REUSE_PORT": "true",
            "MAX_QUEUE": "100",
            "GRPC_PORT": "0",
            **others,
        }
    )


def samples(url: str) -> dict[str, float]:
    """Every sample of ours by name and labels; over a connection of its own, so that any process may answer."""
    text = httpx.get(f"{url}/metrics").text
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict[str, float], name: str) -> float:
    return sum(value for key, value in found.items() if key.startswith(name + "{"))


@pytest.mark.slow
def test_two_processes_on_one_port_are_counted_together(
    model_server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared))
    with process(model_server, tmp_path) as first:
        with process(model_server, tmp_path, REST_PORT=str(first.port)) as second:
            assert first.url == second.url
            statuses: Counter[int] = Counter()
            for _ in range(REQUESTS):  # each over a connection of its own: the system spreads connections
                answer = httpx.post(f"{first.url}/v1/hand-pose", content=image_bytes())
                statuses[answer.status_code] += 1
            httpx.post(f"{first.url}/v1/hand-pose", content=b"", headers={"X-Model-Variant": "standard"})
            seen = [samples(first.url) for _ in range(6)]

            assert statuses == {200: REQUESTS}
            served = {pid: _requests_of(shared, pid) for pid in (first.pid, second.pid)}
            assert min(served.values()) > 0, "both have answered"
            assert sum(served.values()) == REQUESTS + 1
            for found in seen:  # whichever process was asked
                assert total(found, "handpose_requests_total") == REQUESTS + 1
                assert total(found, "handpose_request_duration_seconds_count") == REQUESTS + 1
                assert total(found, "handpose_stage_duration_seconds_count") == len(Phase) * REQUESTS
                assert found["handpose_backend_up{}"] == 1
                assert found["handpose_queue_limit{}"] == 200
                assert (found["handpose_inflight_requests{}"], total(found, "handpose_queue_depth")) == (0, 0)
                assert total(found, "handpose_model_info") == 2
                assert not any("pid" in key or key.startswith("process_") for key in found)
            second.terminate()
            assert second.wait() == 0
        left = samples(first.url)
        assert total(left, "handpose_requests_total") == REQUESTS + 1, "what has been counted stays"
        assert left["handpose_queue_limit{}"] == 100, "what is gone has no queue"

        with process(model_server, tmp_path, REST_PORT=str(first.port)) as third:
            assert samples(first.url)["handpose_queue_limit{}"] == 200
            third.end()  # as a crash would: it cannot tidy up
            assert samples(first.url)["handpose_queue_limit{}"] == 100


def _requests_of(shared: Path, pid: int) -> int:
    """What one process has counted of its own."""
    found = MultiProcessCollector.merge([str(shared / f"counter_{pid}.db")])  # type: ignore[no-untyped-call]
    counted = (each.value for metric in found for each in metric.samples if each.name == "handpose_requests_total")
    return int(sum(counted))


async def test_grpc_servers_share_a_port_only_if_they_are_asked_to(workers: Executor) -> None:
    first = Gateway(workers, options=ServerOptions(port=0, reuse_port=True))
    await first.start()
    second = Gateway(workers, options=ServerOptions(port=first.port, reuse_port=True))
    alone = Gateway(workers, options=ServerOptions(port=first.port))
    await second.start()
    try:
        assert second.port == first.port
        with pytest.raises(RuntimeError):
            await alone.start()
    finally:
        for each in (first, second, alone):
            await each.stop()
