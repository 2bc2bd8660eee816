"""What the metrics count, read back as Prometheus reads them."""

import re

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.inference.estimates import Estimate, Hand, Timings
from service.inference.ports import DropReason, Observer, RejectReason, ReleaseReason
from service.observability.metrics import PrometheusObserver
from service.pose.geometry import Box
from tests.support.models import served_model

LIGHT = served_model("lightweight", version=3)


def samples(observer: PrometheusObserver) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(observer.exposition().body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_what_the_use_case_reports_is_counted_by_variant_and_version() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    use_case: Observer = observer
    use_case.batch_released(LIGHT, 3, ReleaseReason.FULL)
    use_case.queue_changed(LIGHT, 7)
    use_case.request_dropped(LIGHT, DropReason.EXPIRED)
    use_case.request_rejected(LIGHT, RejectReason.QUEUE_FULL)
    points, scores = np.zeros((21, 2)), np.linspace(0, 1, 21, dtype=np.float32)
    hand = Hand(Box(0, 0, 10, 10), points, scores, np.ones(21))
    use_case.estimated(Estimate(LIGHT, "default", (10, 10), (hand,), Timings(0.004, 0.003, 0.001, 0.02, 0.002, 0.03)))
    found = samples(observer)
    model = {"variant": "lightweight", "version": "3"}
    assert found[key("handpose_stage_duration_seconds_sum", stage="decode", **model)] == 0.004
    assert found[key("handpose_stage_duration_seconds_sum", stage="inference", **model)] == 0.02
    assert found[key("handpose_batch_size_sum", **model)] == 3
    assert found[key("handpose_batch_release_total", reason="full", **model)] == 1
    assert found[key("handpose_queue_depth", **model)] == 7
    assert found[key("handpose_dropped_total", reason="expired", **model)] == 1
    assert found[key("handpose_rejected_total", reason="queue_full", **model)] == 1
    assert found[key("handpose_keypoint_score_count", **model)] == 21
    assert found[key("handpose_keypoint_score_bucket", le="0.5", **model)] == 11


def test_failures_are_counted_and_timed_like_successes() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.image_answered(("lightweight", 3), None, "ok", 0.02)
    observer.image_answered(None, "standard@2", "overloaded", 0.001)
    found = samples(observer)
    failed = {"variant": "standard", "version": "unknown", "code": "overloaded"}
    assert found[key("handpose_requests_total", variant="lightweight", version="3", code="ok")] == 1
    assert found[key("handpose_requests_total", **failed)] == 1
    assert found[key("handpose_request_duration_seconds_count", **failed)] == 1


def test_words_of_strangers_never_become_labels() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    for number in range(50):
        observer.image_answered(None, f"stranger-{number}", "unknown_variant", 0.001)
        observer.image_answered(None, f"standard@{number}", "unknown_version", 0.001)
    counted = {labels for name, labels in samples(observer) if name == "handpose_requests_total"}
    assert {dict(labels)["variant"] for labels in counted} == {"unknown", "standard"}
    assert {dict(labels)["version"] for labels in counted} == {"unknown"}


def test_requests_in_flight_go_up_and_down() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    with observer.in_flight():
        with observer.in_flight():
            assert samples(observer)[key("handpose_inflight_requests")] == 2
        assert samples(observer)[key("handpose_inflight_requests")] == 1


def test_models_that_are_gone_are_no_longer_listed() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.models_are([LIGHT])
    observer.models_are([served_model("standard", version=1, labels=("stable", "canary"))])
    listed = [dict(labels) for name, labels in samples(observer) if name == "handpose_model_info"]
    assert listed == [{"name": "cpm_standard", "variant": "standard", "version": "1", "labels": "stable,canary"}]


def test_backend_counts_as_down_until_it_is_up() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    assert samples(observer)[key("handpose_backend_up")] == 0
    observer.backend_is(up=True)
    assert samples(observer)[key("handpose_backend_up")] == 1


def test_names_and_units_are_prometheus_own() -> None:
    """As `promtool check metrics` would say, where there is none."""
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    families = [family for family in registry.collect() if not family.name.startswith(("process_", "python_"))]
    assert len(families) == 19
    for family in families:
        assert re.fullmatch(r"handpose_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_total", "_sum", "_count", "_bucket", "_ms", "_milliseconds")), family.name
        if "Time" in family.documentation:
            assert family.name.endswith("_seconds"), family.name


def test_observers_share_nothing() -> None:
    first, second = PrometheusObserver(CollectorRegistry()), PrometheusObserver(CollectorRegistry())
    with first.in_flight():
        assert samples(second)[key("handpose_inflight_requests")] == 0


def test_buckets_tell_answers_of_5_ms_from_answers_of_5_s() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.image_answered(("lightweight", 3), None, "ok", 0.004)
    bounds = [
        float(dict(labels)["le"])
        for name, labels in samples(observer)
        if name == "handpose_request_duration_seconds_bucket"
    ]
    assert (min(bounds), sorted(bounds)[-2]) == (0.005, 5.0)


def test_versions_that_cannot_be_asked_are_told_of_until_they_can() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.models_unavailable([("lightweight", 2, "load_failed"), ("standard", None, "not_available")])
    found = samples(observer)
    name = "handpose_model_unavailable"
    assert found[key(name, variant="lightweight", version="2", reason="load_failed")] == 1
    assert found[key(name, variant="standard", version="none", reason="not_available")] == 1

    observer.models_unavailable([])
    assert not any(metric == name for metric, _ in samples(observer))


def test_batches_that_were_too_large_are_counted() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.batch_too_large()
    assert samples(observer)[key("handpose_batches_too_large_total")] == 1
