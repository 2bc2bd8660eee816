"""The log of a run: one row a line, the same in TensorBoard's form, and what a crash repeated counts once."""

import struct
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event

from trainer.errors import RefusedError
from trainer.run_log import RunLog, read_log


def _row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "samples": 2 * step, "minutes": 0.5, "input_size": 32, **values}


def _events(folder: Path) -> list[Event]:
    """The events of the folder's one file: records of length, checksum, content, checksum."""
    (file,) = (folder / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_rows_are_read_back_with_the_columns_that_they_fill(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(_row(10, loss=1.25))
    log.write(_row(10, pck_at_0_2=0.5))
    assert read_log(tmp_path) == [_row(10, loss=1.25), _row(10, pck_at_0_2=0.5)]
    assert log.is_validated(10)
    assert not log.is_validated(20)
    assert not RunLog(tmp_path / "other").is_validated(10)


def test_a_look_at_a_part_is_no_validation_of_all_that_is_held_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(_row(10, pck_at_0_2=0.5, validated_share=0.25))
    assert not log.is_validated(10)
    log.write(_row(10, pck_at_0_2=0.5, validated_share=1.0))
    assert log.is_validated(10)


def test_a_log_of_before_there_was_a_column_goes_on_without_it(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,samples,minutes,input_size,pck_at_0_2\n5,10,0.5,32,0.4\n")
    log = RunLog(tmp_path)
    assert log.is_validated(5)
    log.write(_row(10, pck_at_0_2=0.5, validated_share=1.0))
    assert read_log(tmp_path)[-1] == _row(10, pck_at_0_2=0.5)


def test_what_a_run_logs_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0)):
        RunLog(tmp_path).write(_row(step, loss=loss))
    RunLog(tmp_path).write(_row(21, loss=1.9))  # from the checkpoint of update 15
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(10, 3.0), (20, 2.0), (21, 1.9)]


@pytest.mark.parametrize("cut", ["3", "30,60,0.5,3", "30,60,0.5,32,1e-3,1.5"])
def test_half_a_row_that_a_full_disk_left_does_not_count(tmp_path: Path, cut: str) -> None:
    for step in (10, 20):
        RunLog(tmp_path).write(_row(step, loss=1.0))
    with (tmp_path / "log.csv").open("a") as file:
        file.write(cut)
    assert [row["step"] for row in read_log(tmp_path)] == [10, 20]
    assert not RunLog(tmp_path).is_validated(20)
    RunLog(tmp_path).write(_row(30, loss=0.5, pck_at_0_2=0.5))
    assert read_log(tmp_path)[-1] == _row(30, loss=0.5, pck_at_0_2=0.5)
    assert [row["step"] for row in read_log(tmp_path)] == [10, 20, 30]
    assert RunLog(tmp_path).is_validated(30)


def test_half_a_heading_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,sampl")
    RunLog(tmp_path).write(_row(10, loss=1.0))
    assert read_log(tmp_path) == [_row(10, loss=1.0)]


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    RunLog(tmp_path).write(_row(10, loss=1.25, pck_at_0_2=0.5))
    head, event = _events(tmp_path)
    assert head.file_version == "brain.Event:2"
    assert event.step == 10
    assert {value.tag: value.simple_value for value in event.summary.value} == {
        "training/minutes": 0.5,
        "training/input_size": 32.0,
        "loss/loss": 1.25,
        "validation/pck_at_0_2": 0.5,
    }


def test_a_missing_or_foreign_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="the run has no log"):
        read_log(tmp_path)
    (tmp_path / "log.csv").write_text("step,loss\nten,1\n")
    with pytest.raises(RefusedError, match="is no log of a run"):
        read_log(tmp_path)
