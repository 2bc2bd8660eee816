"""The script that asks a Prometheus all that the dashboards ask."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from deploy.grafana.check_queries import DASHBOARDS, filled_in, main, questions_of

Series = list[dict[str, Any]]


class FakePrometheus:
    """Answers each query with what a function says; a string is an error's."""

    def __init__(self, answer: Callable[[str], Series | str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = answer(parse_qs(body)["query"][0])
                refused = isinstance(found, str)
                reply = {"error": found} if refused else {"data": {"result": found}}
                self.send_response(400 if refused else 200)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def dashboards(tmp_path: Path) -> Path:
    def panel(title: str, expression: str) -> dict[str, Any]:
        return {"type": "timeseries", "title": title, "targets": [{"expr": expression}]}

    variable = {"type": "query", "name": "variant", "query": {"query": 'label_values(requests{job=~"$job"}, variant)'}}
    panels = [
        {"type": "row", "title": "Traffic", "panels": []},
        panel("good", 'rate(good{variant=~"$variant"}[$__rate_interval])'),
        panel("empty", "empty"),
        {"type": "row", "title": "GPU", "panels": [panel("folded", "nan")]},
    ]
    dashboard = {"title": "Ours", "panels": panels, "templating": {"list": [variable]}}
    (tmp_path / "ours.json").write_text(json.dumps(dashboard))
    return tmp_path


@pytest.fixture
def prometheus() -> Iterator[FakePrometheus]:
    def answer(query: str) -> Series | str:
        if query == "nan":
            return [{"value": [0, "NaN"]}]
        if query == "empty":
            return []
        if query in {'rate(good{variant=~".*"}[1m])', 'count by (variant) (requests{job=~".*"})'}:
            return [{"value": [0, "NaN"]}, {"value": [0, "2"]}]
        return f"parse error: {query}"

    fake = FakePrometheus(answer)
    yield fake
    fake.close()


def test_queries_without_data_are_told_and_fail(
    prometheus: FakePrometheus, dashboards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--prometheus", prometheus.url, "--dashboards", str(dashboards)])
    said = capsys.readouterr().out.splitlines()
    assert status == 1
    assert said == [
        "Ours / Traffic / empty: no data",
        "    empty",
        "Ours / GPU / folded: nothing but NaN",
        "    nan",
        "2 of 4 queries have data",
    ]


def test_rows_and_panels_that_cannot_be_filled_are_left_out_and_named(
    prometheus: FakePrometheus, dashboards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = ["--without", "GPU", "--without", "empty"]
    status = main(["--prometheus", prometheus.url, "--dashboards", str(dashboards), *left_out])
    assert (status, capsys.readouterr().out) == (0, "2 of 2 queries have data; left out: GPU, empty\n")


def test_what_prometheus_cannot_parse_is_told(
    prometheus: FakePrometheus, dashboards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = dashboards / "ours.json"
    file.write_text(file.read_text().replace('"expr": "empty"', '"expr": "rate("'))
    assert main(["--prometheus", prometheus.url, "--dashboards", str(dashboards), "--without", "GPU"]) == 1
    assert "Ours / Traffic / empty: refused: parse error: rate(" in capsys.readouterr().out


def test_titles_that_do_not_exist_cannot_be_left_out(dashboards: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--dashboards", str(dashboards), "--without", "Traffik"])


def test_prometheus_that_is_away_is_told(dashboards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = FakePrometheus(lambda _: [])
    gone.close()
    assert main(["--prometheus", gone.url, "--dashboards", str(dashboards)]) == 1
    assert "cannot be asked" in capsys.readouterr().err


def test_variables_of_our_dashboards_are_all_filled_in() -> None:
    asked = [question for file in DASHBOARDS.glob("*.json") for question in questions_of(file)]
    assert len(asked) > 50
    assert [question for question in asked if "$" in question.expression] == []
    assert {question.row for question in asked} >= {"Traffic", "Latency", "Shadow", "TensorFlow Serving", "variables"}
    assert filled_in('x{a=~"${variant:regex}"}[$__rate_interval]') == 'x{a=~".*"}[1m]'
