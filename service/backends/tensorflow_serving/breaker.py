"""Stops asking a server that does not answer, until a probe has shown that it does again."""

from enum import StrEnum


class State(StrEnum):
    """Whether calls are let through: all, none, or all until the first failure."""

    CLOSED = "closed"
    OPEN = "open"
    ON_TRIAL = "on_trial"


class CircuitBreaker:
    """Opens after several failures in a row. It knows no time: the catalogue's regular polls are the probes.

    Args:
        failures_to_open: failures in a row after which no calls are let through.
    """

    def __init__(self, failures_to_open: int = 5) -> None:
        self._failures_to_open = failures_to_open
        self._failures = 0
        self.state = State.CLOSED

    @property
    def lets_through(self) -> bool:
        return self.state is not State.OPEN

    def call_succeeded(self) -> None:
        self._failures = 0
        self.state = State.CLOSED

    def call_failed(self) -> None:
        self._failures += 1
        if self.state is State.ON_TRIAL or self._failures >= self._failures_to_open:
            self.state = State.OPEN

    def probe_succeeded(self) -> None:
        """The server answers: let calls through again, and stop at the first that fails."""
        if self.state is State.OPEN:
            self.state = State.ON_TRIAL

    def probe_failed(self) -> None:
        """The server cannot be reached at all."""
        self.state = State.OPEN
