"""The stand-in for TensorFlow Serving's binary: what the stack check could otherwise be fooled by."""

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.stand_in.tensorflow_model_server import (
    MeasuredModel,
    Metrics,
    batching_parameters,
    monitoring_path,
    parser,
)
from tests.support.servables import write_card, write_painting_model

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_flag_that_tensorflow_serving_is_not_known_to_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--model_config_file=a", "--enable_batchng=true"])
    assert "--enable_batchng=true" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [[1, 2, 4], [8, 1]])
def test_batch_sizes_that_do_not_rise_to_the_largest_are_refused(sizes: list[int]) -> None:
    values = "max_batch_size { value: 8 } max_enqueued_batches { value: 4 } num_batch_threads { value: 2 }"
    text = values + "".join(f"\nallowed_batch_sizes: {size}" for size in sizes)
    with pytest.raises(ValueError, match="must rise and end with max_batch_size"):
        batching_parameters(text)


def test_monitoring_that_is_not_switched_on_is_refused() -> None:
    with pytest.raises(ValueError, match="does not switch Prometheus on"):
        monitoring_path('prometheus_config { enable: false path: "/metrics" }')


def test_latencies_are_exported_in_microseconds_and_of_successes_only() -> None:
    metrics = Metrics()
    metrics.request_ended("cpm_standard", "OK", 0.25)
    metrics.request_ended("cpm_standard", "OK", 0.5)
    metrics.request_ended("cpm_standard", "UNAVAILABLE", 9.0)

    families = {each.name: each for each in text_string_to_metric_families(metrics.exposition())}
    latency = {
        sample.name.rsplit("_", 1)[-1]: sample.value
        for sample in families[":tensorflow:serving:request_latency"].samples
        if sample.labels.get("le") in {None, "+Inf"}
    }
    assert latency == {"bucket": 2.0, "sum": pytest.approx(750_000), "count": 2.0}
    counted = {
        sample.labels["status"]: sample.value for sample in families[":tensorflow:serving:request_count"].samples
    }
    assert counted == {"OK": 2.0, "UNAVAILABLE": 1.0}


def test_what_the_dashboard_asks_for_is_exported_under_the_names_of_tensorflow_serving() -> None:
    metrics = Metrics()
    metrics.version_loaded(Path("/models/cpm_standard/1"), "success")
    metrics.batch_ran("cpm_standard", 0.2)
    metrics.request_ended("cpm_standard", "OK", 0.25)
    exported = set(re.findall(r"^:[a-z_:]+", metrics.exposition(), re.MULTILINE))

    dashboards = "".join(file.read_text() for file in (ROOT / "deploy/grafana/dashboards").glob("*.json"))
    asked_for = set(re.findall(r":tensorflow:[a-z_:]+", dashboards))
    assert asked_for
    assert asked_for <= exported


def test_the_batching_metrics_thread_pool_has_no_name() -> None:
    metrics = Metrics()
    metrics.request_ended("cpm_standard", "OK", 0.25)
    assert 'queuing_latency_count{thread_pool_name=""} 1' in metrics.exposition()


def test_a_missing_model_is_not_counted_and_a_broken_warm_up_counts_as_success(tmp_path: Path) -> None:
    metrics = Metrics()
    keypoints = np.full((21, 2), 32.0)
    with pytest.raises(OSError, match="Could not find SavedModel"):
        MeasuredModel(write_card(tmp_path, version=1), metrics)
    assert "load_attempt_count" not in metrics.exposition()

    folder = write_painting_model(tmp_path, keypoints, version=2)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records" * 10)
    with pytest.raises(Exception, match="corrupted"):
        MeasuredModel(folder, metrics)
    assert f'load_attempt_count{{model_path="{folder}",status="success"}} 1' in metrics.exposition()


def test_flags_of_the_deployments_are_known() -> None:
    given = parser().parse_args(
        [
            *("--model_config_file=a", "--grpc_max_threads=256", "--max_num_load_retries=2"),
            *("--load_retry_interval_micros=1000000", "--grpc_channel_arguments=grpc.max_connection_age_ms=30000"),
        ]
    )
    assert (given.grpc_max_threads, given.max_num_load_retries) == (256, 2)
