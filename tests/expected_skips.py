"""The skips that are expected, where, and why nothing is lost; `tests/conftest.py` reports every other skip."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHARED: Final = Path(__file__).resolve().parents[2] / "shared"
"""Research data beside a checkout of the project's developers; no part of the repository."""


@dataclass(frozen=True, slots=True)
class ExpectedSkip:
    """One reason for which tests may skip.

    Attributes:
        reason: what the reason of the skip begins with.
        here: whether it is expected on this machine.
        why: why the skip is acceptable there.
    """

    reason: str
    here: Callable[[], bool]
    why: str


def _nothing_can_be_installed() -> bool:
    return os.geteuid() != 0 or shutil.which("apt-get") is None


def _npm_is_missing() -> bool:
    return shutil.which("npm") is None


def _kubectl_cannot_be_installed() -> bool:
    return os.geteuid() != 0 or _npm_is_missing()


def _no_shared_data() -> bool:
    return not SHARED.is_dir()


_OURS_ONLY: Final = "data that only the project's developers have; generated data covers the same code"

EXPECTED_SKIPS: Final = (
    ExpectedSkip("there is an accelerator", lambda: True, "tests a warning that is given without one"),
    ExpectedSkip("only root can give files away", lambda: os.geteuid() != 0, "needs files of two owners"),
    ExpectedSkip(
        "the sender of a signal is not told here",
        lambda: not hasattr(signal, "sigwaitinfo"),
        "tests what macOS has no system call for",
    ),
    ExpectedSkip("MMPose's samples are not here", _no_shared_data, _OURS_ONLY),
    ExpectedSkip("MMPose's RHD samples are not here", _no_shared_data, _OURS_ONLY),
    ExpectedSkip("the optional folder of rigged hands is not here", _no_shared_data, _OURS_ONLY),
    ExpectedSkip("Chromium and its driver are not installed", _nothing_can_be_installed, "needs root and apt-get"),
    ExpectedSkip("promtool is not installed", _nothing_can_be_installed, "needs root and apt-get"),
    ExpectedSkip("no off-screen OpenGL 3.3", _nothing_can_be_installed, "needs root and apt-get"),
    ExpectedSkip("axe-core is not installed", _npm_is_missing, "needs npm"),
    ExpectedSkip("neither kubectl nor kustomize is installed", _kubectl_cannot_be_installed, "needs root and npm"),
)


def expected_because(reason: str) -> str | None:
    """Why a skip for this reason is acceptable on this machine; None where it is not expected."""
    return next((each.why for each in EXPECTED_SKIPS if reason.startswith(each.reason) and each.here()), None)
