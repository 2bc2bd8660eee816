"""Prometheus's configuration, rules and alerts, and Grafana's dashboard, held against the metrics that there are."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import CollectorRegistry

from deploy.grafana.check_queries import DASHBOARDS, Question, questions_of
from service.inference.errors import DeadlineExceededError, InternalError, OverloadedError, UnavailableError
from service.observability.metrics import PrometheusObserver

ROOT: Final = Path(__file__).resolve().parents[2]
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
RULES: Final = sorted((PROMETHEUS / "rules").glob("*.yml"))
DOCS: Final = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")

# Of TensorFlow Serving 2.19, by its source; only what is in use here. A distribution ends in _bucket, _sum and _count.
TENSORFLOW_SERVING: Final = {
    ":tensorflow:serving:request_count",
    ":tensorflow:serving:request_latency_bucket",
    ":tensorflow:serving:runtime_latency_bucket",
    ":tensorflow:core:graph_run_time_usecs",
    ":tensorflow:cc:saved_model:load_attempt_count",
}
OTHERS: Final = {"up", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def asked_by_dashboards() -> list[Question]:
    return [question for file in sorted(DASHBOARDS.glob("*.json")) for question in questions_of(file)]


def exported() -> set[str]:
    """Every name that a sample of ours can have."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    return {f"{family.name}{suffix}" for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}


def names_in(expression: str) -> set[str]:
    """The metrics that a query reads."""
    # The literal parts, and the labels that are grouped and matched by, hold no metrics.
    bare = re.sub(r'"[^"]*"|\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)|\{[^}]*\}', " ", expression)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", re.sub(r"\[[^]]*\]|\boffset\s+\w+", " ", bare))
    return set(words) - {"and", "or", "unless", "bool", "e"}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)


@needs_promtool
def test_alerts_are_raised_when_they_should_be_and_not_otherwise() -> None:
    promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml")))


@needs_promtool
def test_everything_that_dashboards_ask_is_promql(tmp_path: Path) -> None:
    asked = [
        {"record": f"query:{number}", "expr": question.expression}
        for number, question in enumerate(asked_by_dashboards())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": asked}]}))
    promtool("check", "rules", "--lint=none", file)


@needs_promtool
def test_metrics_follow_prometheus_naming() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=observer.exposition().body, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_rules_and_dashboards_read_only_metrics_that_are_exported() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = exported() | recorded | TENSORFLOW_SERVING | OTHERS
    asked = [rule["expr"] for rule in rules()] + [question.expression for question in asked_by_dashboards()]
    read = [names_in(expression) for expression in asked]

    assert all(read), "a query without a metric"
    assert set().union(*read) <= known
    assert recorded <= set().union(*read), "recorded, and never read"


def test_panels_of_a_dashboard_lie_side_by_side_and_ask_the_chosen_data_source() -> None:
    files = list(DASHBOARDS.glob("*.json"))
    assert files
    for file in files:
        panels = json.loads(file.read_text(encoding="utf-8"))["panels"]
        assert panels
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            right, bottom = place["x"] + place["w"], place["y"] + place["h"]
            cells = {(x, y) for x in range(place["x"], right) for y in range(place["y"], bottom)}
            assert right <= 24
            assert not cells & taken, panel["title"]
            taken |= cells
            asked = [panel, *panel["targets"]] if panel["type"] != "row" else []
            assert all(each["datasource"]["uid"] == "${datasource}" for each in asked)
        assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_alert_has_a_story_that_raises_it_and_a_page_that_says_what_to_do() -> None:
    (file,) = (PROMETHEUS / "tests").glob("*.yml")
    stories = [each for test in yaml.safe_load(file.read_text())["tests"] for each in test["alert_rule_test"]]
    raised = {story["alertname"] for story in stories if story["exp_alerts"]}
    anchors = {f"docs/observability.md#{line.removeprefix('### ').lower()}" for line in DOCS.splitlines()}

    assert raised == {alert["alert"] for alert in alerts()}
    assert {alert["annotations"]["runbook"] for alert in alerts()} <= anchors
    assert {alert["labels"]["severity"] for alert in alerts()} == {"page", "ticket"}


def test_every_metric_is_explained() -> None:
    ours = {family.removesuffix("_bucket") for family in exported() if family.startswith("handpose_")}
    ours = {name for name in ours if not name.endswith(("_sum", "_count"))}
    assert {name for name in ours if f"`{name}`" not in DOCS} == set()


def test_objective_for_latency_is_a_bound_of_the_histogram() -> None:
    observer = PrometheusObserver(CollectorRegistry())
    observer.image_answered(None, "standard", "ok", 0.1)
    text = observer.exposition().body.decode()
    bounds = set(re.findall(r'handpose_request_duration_seconds_bucket\{.*le="([^"]+)"', text))
    asked = {bound for rule in rules() for bound in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert asked
    assert asked <= bounds


def test_failures_that_count_are_all_that_are_ours() -> None:
    """Every code that our source gives to a failure of ours, but for what is not counted or is the sender's doing."""
    kinds = {InternalError, UnavailableError, DeadlineExceededError, OverloadedError}
    ours = {kind.kind.value for kind in kinds}
    for file in (ROOT / "service").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in {kind.__name__ for kind in kinds}:
                ours |= {ast.literal_eval(each.value) for each in call.keywords if each.arg == "code"}
    asked = [rule["expr"] for rule in rules()] + [question.expression for question in asked_by_dashboards()]
    counted = {codes for expression in asked for codes in re.findall(r'code=~"([^"]*internal[^"]*)"', expression)}

    assert {frozenset(codes.split("|")) for codes in counted} == {
        frozenset(ours - {"not_ready", "rate_limited", "throttled"})
    }


def test_scraped_targets_are_the_ones_of_the_compose_file() -> None:
    """By the names and ports that the services have there."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert jobs["handpose-gateway"]["static_configs"][0]["targets"] == ["gateway:8000"]
    assert "metrics_path" not in jobs["handpose-gateway"], "/metrics is what Prometheus asks unless told otherwise"
    assert jobs["tensorflow-serving"]["static_configs"][0]["targets"] == ["tensorflow-serving:8501"]
    assert jobs["tensorflow-serving"]["metrics_path"] == "/monitoring/prometheus/metrics"
