"""What holds for every test. Fixtures live in the folder of the tests that use them."""

import os
from collections import Counter

import pytest
from hypothesis import settings

from tests.expected_skips import expected_because

# Before the first import of TensorFlow: only its errors, not its report on the machine's instruction sets.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The same examples on every run, and no time limit for each: a slow machine is no defect of the code.
settings.register_profile("handpose", deadline=None, derandomize=True)
settings.load_profile("handpose")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail if a test skips for a reason that tests/expected_skips.py does not expect (default where CI=true)",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    unexpected = any(expected_because(reason) is None for reason in _skips(session.config))
    if unexpected and session.config.getoption("strict_skips") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = _skips(config)
    if not skips:
        return
    terminalreporter.section("skips")
    unexpected = 0
    for reason, count in skips.most_common():
        why = expected_because(reason)
        unexpected += 0 if why else count
        terminalreporter.line(f"{count:5}  {f'expected: {why}' if why else 'UNEXPECTED'}  <-  {reason}")
    if unexpected:
        strict = config.getoption("strict_skips")
        terminalreporter.line(
            f"{'FAILED' if strict else 'note'}: {unexpected} skipped for reasons that tests/expected_skips.py does not"
            " expect on this machine",
            red=strict,
        )


def _skips(config: pytest.Config) -> Counter[str]:
    """How many tests, or modules, were skipped for each reason."""
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    return Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
