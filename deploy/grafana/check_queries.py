"""Asks a Prometheus everything that the dashboards ask, and says which questions get no answer.

    python deploy/grafana/check_queries.py --prometheus http://127.0.0.1:9090 --wait-s 60
    python deploy/grafana/check_queries.py --without GPU --without "TensorFlow Serving"

Run it while requests come in. A query is taken from each panel, with Grafana's variables filled in as for "All". It
fails if Prometheus cannot parse it, or has nothing to say, or nothing but NaN. `--without` leaves out a row, or a
panel, that this installation cannot fill. Python's standard library is enough. Exit status: 0 if all have data, 1 if
not.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DASHBOARDS: Final = Path(__file__).resolve().parent / "dashboards"

_FILLED_IN: Final = {"__rate_interval": "1m", "__interval": "1m", "__range": "5m"}
_LABEL_VALUES: Final = re.compile(r"label_values\((.+), *(\w+)\)")


@dataclass(frozen=True, slots=True)
class Question:
    """One query: where it is asked, and in PromQL, with the variables filled in."""

    dashboard: str
    row: str
    panel: str
    expression: str


def questions_of(file: Path) -> Iterator[Question]:
    """Everything that a dashboard asks: panels in their rows, then the variables' own queries."""
    dashboard = json.loads(file.read_text(encoding="utf-8"))
    title = dashboard["title"]
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for inner in (panel, *panel.get("panels", ())):
            for target in inner.get("targets", ()):
                yield Question(title, row, inner["title"], filled_in(target["expr"]))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            if found is None:
                raise ValueError(f"{file.name}: {variable['name']} is no label_values(series, label)")
            yield Question(title, "variables", variable["name"], filled_in(f"count by ({found[2]}) ({found[1]})"))


def filled_in(expression: str) -> str:
    """A query as Grafana sends it when every variable stands at All."""

    def value(match: re.Match[str]) -> str:
        return _FILLED_IN.get(match[1], ".*")

    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", value, expression)


def ask(prometheus: str, expression: str) -> str | None:
    """What is wrong with the answer; None if there is one. Raises OSError if Prometheus cannot be reached."""
    data = urllib.parse.urlencode({"query": expression}).encode()
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query", data, timeout=30) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        said: dict[str, Any] = json.load(error)
        return f"refused: {said.get('error')}"
    if not result:
        return "no data"
    return None if any(not math.isnan(float(series["value"][1])) for series in result) else "nothing but NaN"


def main(arguments: Sequence[str]) -> int:
    """Ask everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address (default %(default)s)")
    parser.add_argument("--dashboards", type=Path, default=DASHBOARDS, help="folder of dashboards")
    parser.add_argument("--without", action="append", default=[], metavar="TITLE", help="a row or a panel to leave out")
    parser.add_argument("--wait-s", type=float, default=0.0, help="how long to wait for data (default %(default)g)")
    parsed = parser.parse_args(arguments)

    asked = [each for file in sorted(parsed.dashboards.glob("*.json")) for each in questions_of(file)]
    if unknown := set(parsed.without) - {title for question in asked for title in (question.row, question.panel)}:
        parser.error(f"no row and no panel is called {', '.join(sorted(unknown))}")
    open_questions = [each for each in asked if not {each.row, each.panel} & set(parsed.without)]
    total, deadline = len(open_questions), time.monotonic() + parsed.wait_s
    while True:
        try:
            outcomes = [(question, ask(parsed.prometheus, question.expression)) for question in open_questions]
        except OSError as error:
            print(f"{parsed.prometheus} cannot be asked: {error}", file=sys.stderr)
            return 1
        open_questions = [question for question, trouble in outcomes if trouble is not None]
        if not open_questions or time.monotonic() >= deadline:
            break
        print(f"{total - len(open_questions)} of {total} queries have data", file=sys.stderr)
        time.sleep(5)
    for question, trouble in outcomes:
        if trouble is not None:
            where = f"{question.dashboard} / {question.row} / {question.panel}"
            print(f"{where}: {trouble}\n    {question.expression}")
    left_out = f"; left out: {', '.join(parsed.without)}" if parsed.without else ""
    print(f"{total - len(open_questions)} of {total} queries have data{left_out}")
    return 1 if open_questions else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
