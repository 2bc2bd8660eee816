"""A skip that nobody expects is named, and fails the run where CI asks for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.expected_skips import EXPECTED_SKIPS, expected_because

ROOT = Path(__file__).resolve().parents[1]


def run_with_skips(folder: Path, *reasons: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    """A run of pytest, under this project's conftest, of a test that skips for each reason and one that passes."""
    tests = [f"def test_{number}():\n    pytest.skip({reason!r})\n" for number, reason in enumerate(reasons)]
    file = folder / "test_skips.py"
    file.write_text("import pytest\n\ndef test_passes():\n    pass\n" + "".join(tests))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        str(file),
    ]
    environment = {**os.environ, "CI": ci}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_ci_fails_on_an_unexpected_skip_and_says_why(tmp_path: Path) -> None:
    run = run_with_skips(tmp_path, "the moon is full", "the moon is full", "there is an accelerator", ci="true")
    assert run.returncode == 1, run.stdout
    assert "    2  UNEXPECTED  <-  the moon is full" in run.stdout
    assert "    1  expected: tests a warning that is given without one  <-  there is an accelerator" in run.stdout
    assert "FAILED: 2 skipped for reasons that tests/expected_skips.py does not expect" in run.stdout


def test_ci_accepts_an_expected_skip(tmp_path: Path) -> None:
    run = run_with_skips(tmp_path, "there is an accelerator", ci="true")
    assert run.returncode == 0, run.stdout
    assert "expected: tests a warning that is given without one  <-  there is an accelerator" in run.stdout


def test_elsewhere_an_unexpected_skip_is_only_named(tmp_path: Path) -> None:
    run = run_with_skips(tmp_path, "the moon is full")
    assert run.returncode == 0, run.stdout
    assert "note: 1 skipped for reasons that tests/expected_skips.py does not expect" in run.stdout


def test_a_skip_is_expected_only_on_the_machines_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert expected_because("only root can give files away") == "needs files of two owners"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert expected_because("only root can give files away") is None


def test_every_expected_reason_is_one_that_a_test_gives() -> None:
    sources = "".join(
        path.read_text()
        for folder in ("tests", "trainer")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "expected_skips.py"
    )
    assert [each.reason for each in EXPECTED_SKIPS if each.reason not in sources] == []
