"""The command says what a job is about, and how far it is."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.offline.command import ProgressLines, summary
from service.offline.engine import Progress
from service.offline.job import Job
from service.settings import Settings


def test_progress_is_told_at_the_beginning_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress, lines = Progress(images=6, done=2), ProgressLines()

    lines.show(progress)
    progress.add({"shard": 1, "images": 2, "without_hands": 1, "failed": [], "process": 7})
    lines.show(progress)  # too soon after the first line
    progress.add({"shard": 2, "images": 2, "without_hands": 1, "failed": ["body_too_large"], "process": 8})
    lines.show(progress)

    first, last = capsys.readouterr().err.splitlines()
    assert first == "2 of 6 pictures"
    assert last.startswith("6 of 6 pictures, 1 with a problem, ")
    assert last.endswith(" a second, 0 s left")


def test_a_shard_that_was_done_twice_counts_once() -> None:
    progress = Progress(images=6, done=2)
    row = {"shard": 1, "images": 2, "without_hands": 1, "failed": ["too_many_pixels"], "process": 7}

    progress.add(row)
    progress.add({**row, "process": 8})

    assert (progress.done, progress.worked, progress.failed) == (4, 2, Counter({"too_many_pixels": 1}))
    assert progress.processes == Counter({7: 1})


def test_hidden_files_are_counted_and_named(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder = pictures(1)
    for index in range(12):
        (folder / f".hidden-{index:02}").touch()

    job = Job.begin(str(folder), str(tmp_path / "out"), settings, model="lightweight@1", form="jsonl")

    first, second = summary(job).splitlines()
    assert first == "1 pictures in 1 shards; lightweight@1, embedded"
    assert second.startswith("left out 12 hidden files: .hidden-00, .hidden-01, ")
    assert second.endswith(".hidden-09 and 2 more")
