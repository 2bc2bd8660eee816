"""Errors that a trainer command reports to its user as one line.

Any other exception is a defect and keeps its trace.
"""

from __future__ import annotations

from typing import ClassVar


class TrainerError(Exception):
    """The work could not be done: says what was wrong and what would be right."""

    exit_code: ClassVar[int] = 1


class RefusedError(TrainerError):
    """What was asked for cannot be right: a bad argument, a missing file, a version that already exists."""

    exit_code: ClassVar[int] = 2
