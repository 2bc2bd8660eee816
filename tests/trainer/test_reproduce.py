"""The whole path: the plan, where it goes on, and a walk along all of it with tiny networks."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.waiting import until
from trainer import cli, weights
from trainer.configs import load_config
from trainer.errors import TrainerError
from trainer.reproduce import (
    SCALES,
    Options,
    Step,
    follow,
    gflop_of_update,
    in_a_process,
    outline,
    plan,
)
from trainer.train import EXIT_UNFINISHED

NEVER = math.inf


class Walk:
    """Steps that are done when they have run, and a note of what ran."""

    def __init__(self, count: int) -> None:
        self.ran: list[int] = []
        self.code = 0
        self.without_result: int | None = None
        self.steps = [self._step(number) for number in range(count)]

    def _step(self, number: int) -> Step:
        def run(left_s: float) -> int:
            self.ran.append(number)
            return self.code

        def is_done() -> bool:
            return number in self.ran and self.code == 0 and number != self.without_result

        return Step(f"step {number}", is_done, run, 1.0, 60.0)


def _ignore(line: str) -> None: ...


def test_steps_are_done_in_order_and_those_that_are_done_are_left_alone() -> None:
    path = Walk(4)
    path.ran = [0, 2]
    assert follow(path.steps, NEVER, _ignore) == 0
    assert path.ran == [0, 2, 1, 3]


def test_a_step_that_fails_ends_the_walk_with_its_exit_code() -> None:
    path = Walk(3)
    path.code = 2
    assert follow(path.steps, NEVER, _ignore) == 2
    assert path.ran == [0]


def test_no_step_begins_when_the_time_is_up() -> None:
    path = Walk(2)
    assert follow(path.steps, time.monotonic() - 1, _ignore) == EXIT_UNFINISHED
    assert path.ran == []


def test_a_step_without_its_result_is_an_error_and_no_endless_loop() -> None:
    path = Walk(2)
    path.without_result = 0
    with pytest.raises(TrainerError, match=r"step 1 \(step 0\) ended without its result"):
        follow(path.steps, NEVER, _ignore)


def test_the_outline_marks_what_is_done_and_adds_up_the_rest() -> None:
    path = Walk(3)
    path.ran = [1]
    lines = outline(path.steps).splitlines()
    assert [line.startswith("done") for line in lines[:3]] == [False, True, False]
    assert "about 2 min at" in lines[3]
    assert "about 2 h on two CPU cores" in lines[3]


def test_operations_of_an_update_follow_from_batch_sizes_and_teacher() -> None:
    config = replace(load_config("paper"), batch_size=2)
    assert gflop_of_update(config, "lightweight") == pytest.approx(2 * 52)
    halved = replace(config, input_sizes=((0.0, 128), (0.5, 256)), distil_weight=0.5)
    assert gflop_of_update(halved, "lightweight") == pytest.approx(2 * 0.625 * (52 + 223 / 3))


def test_a_dry_run_of_the_full_path_says_the_plan_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for part in ("render 40000 pictures", "train reproduce-standard for 24000 updates", "TFLOP/s", "two CPU cores"):
        assert part in printed
    assert list(tmp_path.iterdir()) == []


def test_the_smoke_path_and_the_full_one_do_not_share_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "--dry-run", "--scale", "smoke"]) == 0
    assert "train reproduce-smoke-standard for 1 updates" in capsys.readouterr().out
    assert cli.main(["reproduce", "--dry-run", "--scale", "smoke", "--name", "mine"]) == 0
    assert "train mine-standard for 1 updates" in capsys.readouterr().out


SAVES_WHEN_TOLD = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
signal.signal(signal.SIGINT, lambda *_: told.append(1))
open("ready", "w").close()
while not told:
    time.sleep(0.01)
time.sleep(0.6)  # longer than subprocess waits after Ctrl-C before it kills
open("saved", "w").close()
sys.exit(3)
"""
WAITS_FOR_IT = """
import sys
from trainer.reproduce import wait_for
sys.exit(wait_for([sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.parametrize(("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_stop_reaches_the_training_and_waits_until_it_has_saved(
    tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS_FOR_IT, SAVES_WHEN_TOLD],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    asyncio.run(until((tmp_path / "ready").exists, timeout_s=60))
    (os.killpg if group else os.kill)(process.pid, number)

    assert process.wait(timeout=60) == 3
    assert (tmp_path / "saved").exists()


@pytest.fixture
def without_graphs() -> Iterator[None]:
    """Tracing takes longer than the few updates of these tests."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Sequence[str]]], list[Step]]:
    """The steps of the smoke path, whose commands run in this process, rendering apart, and are noted."""
    monkeypatch.chdir(tmp_path)
    options = Options(Path("out"), "tiny", SCALES["smoke"], (), (), (), (), workers=1)

    def steps(noted: list[Sequence[str]]) -> list[Step]:
        def run_command(arguments: Sequence[str]) -> int:
            noted.append(arguments)
            # The renderer and TensorFlow do not share a process.
            return in_a_process(arguments) if arguments[0] == "synth" else cli.main(arguments)

        return plan(options, run_command)

    return steps


@pytest.mark.slow
@pytest.mark.usefixtures("without_graphs")
def test_the_smoke_path_goes_from_nothing_to_cards_and_on_from_where_it_stopped(
    tmp_path: Path, walk: Callable[[list[Sequence[str]]], list[Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first: list[Sequence[str]] = []
    steps = walk(first)
    assert follow(steps[:4], NEVER, _ignore) == 0
    assert [words[0] for words in first] == ["synth", "synth", "train", "finish"]

    second: list[Sequence[str]] = []
    assert follow(walk(second), NEVER, _ignore) == 0
    assert [words[0] for words in second] == [
        "train", "finish", "train", "finish", "evaluate", "evaluate", "card", "card",
    ]  # fmt: skip
    standard = weights.load(tmp_path / "out/weights/standard.npz", "standard").info
    assert standard.provenance["warm_start"] == "tiny-lightweight"
    distilled = weights.load(tmp_path / "out/candidates/distilled.npz", "lightweight").info
    assert distilled.provenance["teacher"] == "tiny-standard"
    for variant in ("lightweight", "standard"):
        digest = weights.file_sha256(tmp_path / f"out/weights/{variant}.npz")
        assert json.loads((tmp_path / f"out/results/{variant}.json").read_text())["weights_sha256"] == digest
        assert digest in (tmp_path / f"out/cards/{variant}.md").read_text()

    third: list[Sequence[str]] = []
    assert follow(walk(third), NEVER, _ignore) == 0
    assert third == []

    # As a stop at any moment may leave them: two files that do not belong together, and half a file.
    (tmp_path / "out/weights/lightweight.json").write_text("{}")
    (tmp_path / "out/results/standard.json").write_text('{"weights_')
    fourth: list[Sequence[str]] = []
    assert follow(walk(fourth), NEVER, _ignore) == 0
    assert [words[0] for words in fourth] == ["evaluate", "card"]
    assert weights.load(tmp_path / "out/weights/lightweight.npz").variant == "lightweight"
