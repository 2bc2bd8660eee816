"""The command line: help, exit codes, and errors as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli import COMMANDS, Command, main

ROOT = Path(__file__).parents[2]

A_COMMAND = '''
"""A command that ends in the way it is asked to."""

from trainer.errors import RefusedError, TrainerError


def add_arguments(parser):
    parser.add_argument("--end", default="well")


def run(arguments):
    if arguments.end == "refused":
        raise RefusedError("the hat does not fit: choose a larger one")
    if arguments.end == "failed":
        raise TrainerError("the kettle is empty")
    if arguments.end == "disk":
        raise PermissionError(13, "Permission denied", "/nowhere")
    if arguments.end == "defect":
        raise ZeroDivisionError
    if arguments.end == "stopped":
        raise KeyboardInterrupt
    return 0
'''


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    (tmp_path / "a_command_for_tests.py").write_text(A_COMMAND)
    monkeypatch.syspath_prepend(str(tmp_path))
    return [
        Command("act", "do as asked", "a_command_for_tests"),
        Command("absent", "its module is not there", "no_such_module"),
    ]


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("well", 0, ""),
        ("failed", 1, "error: the kettle is empty\n"),
        ("disk", 1, "error: [Errno 13] Permission denied: '/nowhere'\n"),
        ("refused", 2, "error: the hat does not fit: choose a larger one\n"),
        ("stopped", 130, "stopped\n"),
    ],
)
def test_ends_of_a_command_have_their_exit_code_and_at_most_one_line(
    end: str, code: int, message: str, commands: list[Command], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["act", "--end", end], commands) == code
    assert capsys.readouterr().err == message


def test_what_tensorflow_prints_while_it_is_imported_stays_off_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    noise = "import os\nos.write(2, b'chatter')\n"
    (tmp_path / "a_noisy_command.py").write_text(noise + A_COMMAND)
    (tmp_path / "a_broken_command.py").write_text(noise + "raise ImportError('libcuda is too old')")
    assert main(["act"], [Command("act", "do as asked", "a_noisy_command")]) == 0
    assert "chatter" not in capfd.readouterr().err
    with pytest.raises(ImportError, match="libcuda"):
        main(["act"], [Command("act", "do as asked", "a_broken_command")])
    assert "chatter" in capfd.readouterr().err


@pytest.mark.parametrize("indent", ["", "    "], ids=["at once", "when it runs"])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    indent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    body = f"def add_arguments(parser): pass\ndef run(arguments):\n    pass\n{indent}import drawing_on_the_moon.gl\n"
    (tmp_path / "a_command_that_draws.py").write_text(body)
    try:
        assert main(["draw"], [Command("draw", "draw something", "a_command_that_draws", "synth")]) == 2
    finally:
        sys.modules.pop("a_command_that_draws", None)
    printed = capsys.readouterr().err
    assert "needs the package 'drawing_on_the_moon'" in printed
    assert 'pip install ".[synth]"' in printed


def test_a_module_of_ours_that_is_missing_keeps_its_trace() -> None:
    with pytest.raises(ModuleNotFoundError):
        main(["draw"], [Command("draw", "draw something", "trainer.no_such_module")])


def test_defects_keep_their_trace(commands: list[Command]) -> None:
    with pytest.raises(ZeroDivisionError):
        main(["act", "--end", "defect"], commands)


@pytest.mark.parametrize("argv", [[], ["dance"], ["act", "--colour", "red"]])
def test_wrong_arguments_exit_with_2(
    argv: list[str], commands: list[Command], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv, commands)
    assert exit_.value.code == 2
    assert "usage: python -m trainer" in capsys.readouterr().err


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        assert f"{command.name} {command.summary}" in text


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_explains_its_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: python -m trainer {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["profile", "export"])
def test_help_is_answered_without_importing_keras(command: str) -> None:
    program = (
        "import sys\n"
        "from trainer.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(sorted({'keras', 'tensorflow', 'torch', 'jax'} & sys.modules.keys()))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert f"usage: python -m trainer {command}" in process.stdout
    assert process.stdout.splitlines()[-1] == "[]"


def test_profile_runs_as_a_program_and_keeps_tensorflow_quiet() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "trainer", "profile", "--variant", "lightweight", "--size", "64"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    )
    assert "6,892,930" in process.stdout
    assert process.stderr == ""
