"""The command reads its words, sets the workers up by the environment, and ends with the right code."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.offline.__main__ import _parser, main, settings_for
from service.offline.job import Job
from service.settings import Settings


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the repository of the tests."""
    for name in [name for name in os.environ if name.startswith("HANDPOSE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HANDPOSE_MODEL_REPO", str(settings.model_repo))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in"],
        ["in", "--out", "o", "--workers", "0"],
        ["in", "--out", "o", "--format", "csv"],
        ["in", "--out", "o", "--address", "ray://head:10001"],
        ["in", "--out", "o", "--max-hands", "17"],
        ["in", "--out", "o", "--min-score", "1.01"],
    ],
    ids=["nothing", "no --out", "no workers", "no such format", "Ray's client", "too many hands", "no such score"],
)
def test_wrong_words_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_wrong_setting_ends_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HANDPOSE_MAX_BATCH_SIZE", "many")

    assert main(["in", "--out", "o"]) == 2
    assert "HANDPOSE_MAX_BATCH_SIZE=many" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "said"), [([], "cannot be listed"), (["--variant", "enormous"], "enormous")])
def test_a_job_that_cannot_begin_ends_with_1_and_a_line(
    option: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *option]) == 1
    assert said in capsys.readouterr().err


def test_a_job_that_is_done_is_left_alone(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = pictures(3), tmp_path / "out"
    Job.begin(str(folder), str(target), settings, model="lightweight@1", form="jsonl")
    (target / "part-000000.jsonl").touch()

    assert main([str(folder), "--out", str(target), "--address", "nowhere:1"]) == 0  # Ray is not asked for
    assert "3 pictures in 1 shards, 3 of them done before; lightweight@1" in capsys.readouterr().err


def test_workers_get_the_cores_of_the_command_unless_the_environment_says_otherwise() -> None:
    parsed = _parser().parse_args(["in", "--out", "o", "--cpus-per-worker", "3"])
    given = {"HANDPOSE_TENSORFLOW_THREADS": "1", "HANDPOSE_MODEL_REPO": "here", "HANDPOSE_ROUTING_FILE": "rules.yaml"}

    settings = settings_for(parsed, given)

    assert (settings.worker_threads, settings.tensorflow_threads) == (3, 1)
    assert settings.model_repo == Path("here").absolute()
    assert settings.routing_file is None
