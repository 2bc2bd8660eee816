"""Log lines for people and for programs."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from service.inference.keys import new_key
from service.observability.logs import LogFormat, configure_logging
from service.observability.tracing import Traces


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root, service = logging.getLogger(), logging.getLogger("service")
    before = root.handlers[:], root.level, service.level
    yield
    root.handlers[:], level, service_level = before
    root.setLevel(level)
    service.setLevel(service_level)


def logged(style: LogFormat, message: str, level: str = "info", **fields: object) -> str:
    stream = io.StringIO()
    configure_logging(level, style, stream)
    logging.getLogger("service.rest").info(message, extra=fields)
    return stream.getvalue()


def test_json_line_holds_the_message_and_the_events_own_fields() -> None:
    event = json.loads(logged("json", "POST /v1/hand-pose", status=200, request_id="abc", traceparent=None))
    assert event.pop("time").endswith("+00:00")
    assert event == {
        "level": "info",
        "logger": "service.rest",
        "message": "POST /v1/hand-pose",
        "status": 200,
        "request_id": "abc",
    }


@pytest.mark.parametrize("style", ["text", "json"])
def test_whatever_is_logged_for_a_request_names_its_trace(style: LogFormat) -> None:
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with Traces().request("POST", request_id="a", caller=caller, attributes={}):
        inside = logged(style, "the model server is slow")
    assert "4bf92f3577b34da6a3ce929d0e0e4736" in inside
    assert "trace_id" not in logged(style, "nobody asked")


def test_text_line_reads_message_first_and_fields_after() -> None:
    line = logged("text", "POST /v1/hand-pose", status=200, request_id="abc")
    assert line.endswith("info    POST /v1/hand-pose status=200 request_id=abc\n")


@pytest.mark.parametrize("style", ["text", "json"])
def test_words_of_strangers_cannot_begin_a_line_of_their_own(style: LogFormat) -> None:
    line = logged(style, "GET /a\nerror forged", client="x\r\ny")
    assert line.count("\n") == 1
    assert "\r" not in line


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_libraries_keep_in_records_for_themselves_is_not_shown(style: LogFormat) -> None:
    """As Ray does, which, once imported, puts a timestamp of its own into every record of the process."""
    assert "_kept_ns" not in logged(style, "a message", _kept_ns=1)


@pytest.mark.parametrize("style", ["text", "json"])
def test_traceback_is_kept(style: LogFormat) -> None:
    stream = io.StringIO()
    configure_logging("info", style, stream)
    try:
        raise ValueError("deep down")
    except ValueError:
        logging.getLogger("service").exception("failed", extra={"request_id": "abc"})
    assert "ValueError: deep down" in stream.getvalue()
    if style == "json":
        assert "Traceback" in json.loads(stream.getvalue())["traceback"]


def test_level_holds_for_the_service_and_others_stay_at_warnings() -> None:
    stream = io.StringIO()
    configure_logging("debug", "text", stream)
    logging.getLogger("service.rest").debug("ours")
    logging.getLogger("another").info("theirs")
    logging.getLogger("another").warning("their trouble")
    assert [line.split()[2:] for line in stream.getvalue().splitlines()] == [["ours"], ["their", "trouble"]]
    assert logged("text", "quiet", level="error") == ""


@pytest.mark.parametrize("style", ["text", "json"])
def test_keys_are_in_no_line_wherever_they_came_from(style: LogFormat) -> None:
    key = new_key()
    stream = io.StringIO()
    configure_logging("info", style, stream)
    try:
        raise ValueError(f'header "Authorization: Bearer {key}"')
    except ValueError:
        logging.getLogger("service").exception("GET /v1/%s failed", key, extra={"client": f"x {key}", "id": [key]})
    assert key not in stream.getvalue()
    assert stream.getvalue().count("[key]") == 4
    if style == "json":
        assert json.loads(stream.getvalue())["message"] == "GET /v1/[key] failed"


@pytest.mark.parametrize("style", ["text", "json"])
def test_tokens_of_other_services_are_in_no_line(style: LogFormat) -> None:
    line = logged(style, "refused", client="authorization: bearer eyJhbGciOi.J9.x")
    assert "eyJ" not in line
    assert "authorization: [key]" in line
