"""Log lines: readable text for a terminal, or one JSON object an event for a collector.

What an event carries besides its message (request id, status, duration, ...) is passed as logging's `extra` and becomes
a field of its own. What is logged while a request is being answered also carries the id of its trace. No image, no body
and no key is ever passed there; and what looks like a key is taken out of every line all the same, for a stranger may
have put one where it does not belong, such as in a path.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from service.inference.keys import without_keys
from service.observability.tracing import trace_id

_TOKEN: Final = re.compile(r"""\bbearer[ .][^\s\\"',]{8,}""", re.IGNORECASE)

LogFormat = Literal["text", "json"]

_BUILT_IN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def configure_logging(level: str, style: LogFormat, stream: TextIO | None = None) -> None:
    """Send all log lines of the process, in this style, to a stream (standard error).

    Args:
        level: least level that is written: "debug", "info", "warning" or "error".
        style: "text" or "json".
        stream: where to write.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("service").setLevel(level.upper())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the event's own fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return _without_secrets(json.dumps(event, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """Time, level, message, then the event's own fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_on_one_line(value)}" for name, value in _fields(record).items())
        message = _on_one_line(record.getMessage())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {message}{fields}"
        return _without_secrets(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as `extra`, without what is None, and the trace that the event belongs to."""
    fields = {name: value for name, value in vars(record).items() if _is_ours(name) and value is not None}
    if (current := trace_id()) is not None:
        fields.setdefault("trace_id", current)
    return fields


def _is_ours(name: str) -> bool:
    """Whether an attribute of a record was passed as `extra`; other libraries begin the names of theirs with _."""
    return name not in _BUILT_IN and not name.startswith("_")


def _on_one_line(value: object) -> str:
    """A value as text that cannot begin a line of its own: paths and headers are a stranger's words."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _without_secrets(line: str) -> str:
    """A line without anything that looks like a key of ours or another service's token."""
    return _TOKEN.sub("[key]", without_keys(line))
