"""The curve of a run: `log.csv`, and the same values as an event file that TensorBoard shows.

`log.csv` is the record: the model cards are made from it. The event file is written with TensorBoard's own messages and
record format, which need no TensorFlow, so that it is there with every Keras backend; without the package `tensorboard`
only the CSV is written. A run that goes on after a crash logs some updates again; the later row counts
(`read_log`). A row that a full disk or a kill cut off does not count.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.errors import RefusedError

FILE_NAME: Final = "log.csv"
EVENTS_FOLDER: Final = "tensorboard"
COLUMNS: Final = (
    "step",
    "samples",
    "minutes",
    "input_size",
    "learning_rate",
    "loss",
    "loss_stage1",
    "loss_stage2",
    "loss_stage3",
    "images_per_second",
    "minutes_left",
    "pck_at_0_1",
    "pck_at_0_2",
    "epe_px",
    "validated_share",
    "recall_at_0_1_alarms",
)
VALIDATION_COLUMNS: Final = ("pck_at_0_2", "recall_at_0_1_alarms")
"""One of them is filled in the rows of a validation: the second of the detector's. Both are empty in the others."""
SHARE_COLUMN: Final = "validated_share"
"""How much of what is held out a validation looked at, 1 for all. Logs of before there was this column lack it."""

_NO_CURVES: Final = ("step", "samples", SHARE_COLUMN)


class RunLog:
    """Writes the log of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._events = _Events(folder / EVENTS_FOLDER)

    def write(self, values: Mapping[str, float | str]) -> None:
        """Adds one row; `step` must be among the values, which are named as `COLUMNS`."""
        path = self._folder / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_off_half_a_row(path)
        columns = _columns(path)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns or COLUMNS, extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()})
        self._events.write(
            int(values["step"]), {name: float(v) for name, v in values.items() if name not in _NO_CURVES}
        )

    def is_validated(self, step: int) -> bool:
        """Whether there is a row of a validation of all that is held out after this update."""
        if not (self._folder / FILE_NAME).is_file():
            return False
        return any(
            row["step"] == step and is_validation(row) and row.get(SHARE_COLUMN, 1.0) >= 1.0
            for row in read_log(self._folder)
        )


def is_validation(row: Mapping[str, float]) -> bool:
    """Whether a row of the log is of a validation."""
    return any(column in row for column in VALIDATION_COLUMNS)


def _cut_off_half_a_row(path: Path) -> None:
    """Takes away what stands after the last end of a line, so that the next row is one."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _columns(path: Path) -> list[str]:
    """The columns that a log has, which may be of an earlier version; none if there is no log."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log, each with the columns it fills; of rows that a crash had repeated, the later ones.

    RefusedError if there is no log or it is no log of a run.
    """
    path = folder / FILE_NAME
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("\n")]
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
        kept: list[dict[str, float]] = []
        for row in rows:
            while kept and kept[-1]["step"] > row["step"]:  # logged before the crash, and now again
                kept.pop()
            kept.append(row)
    except FileNotFoundError:
        raise RefusedError(f"{path}: the run has no log") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(f"{path} is no log of a run: {error}") from error
    return kept


class _Events:
    """An event file of TensorBoard; does nothing where the package is missing."""

    def __init__(self, folder: Path) -> None:
        self._available = importlib.util.find_spec("tensorboard") is not None
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._available:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path.parent.mkdir(parents=True, exist_ok=True)
        scalars = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in values.items()]
        events = [Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))]
        if not self._path.exists():
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        with self._path.open("ab") as file:
            for event in events:
                RecordWriter(file).write(event.SerializeToString())


def _tag(name: str) -> str:
    """TensorBoard groups curves by what stands before the slash."""
    group = {"loss": "loss", "pck": "validation", "epe": "validation", "recall": "validation"}.get(
        name.split("_", maxsplit=1)[0], "training"
    )
    return f"{group}/{name}"
