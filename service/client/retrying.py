"""When to send a request again: only what may succeed, when the service said so, never beyond the call's time."""

import random
from dataclasses import dataclass

from service.client.errors import TryAgainError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a request is sent again. It changes nothing at the service, so repeating it is always safe.

    Attributes:
        attempts: how often a request is sent at the most; 1 never repeats.
        first_delay_s: pause before the second attempt where the service named none; doubled each time.
        longest_delay_s: longest such pause.
    """

    attempts: int = 4
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.first_delay_s <= self.longest_delay_s:
            raise ValueError(f"attempts must be at least 1 and the delays not negative and in order: {self}")

    def pause(self, attempt: int, error: TryAgainError, remaining_s: float, *, chance: float | None = None) -> float:
        """Seconds to wait before the next attempt.

        Args:
            attempt: how many attempts were made.
            error: how the last one ended.
            remaining_s: seconds left for the whole call.
            chance: a random number in [0, 1); None draws one. It spreads clients that were turned away together.

        Raises:
            TryAgainError: the given error, if there is no next attempt.
        """
        chance = random.random() if chance is None else chance
        if error.retry_after_s is not None:
            pause = error.retry_after_s * (1 + 0.1 * chance)
        else:
            pause = min(self.first_delay_s * 2 ** (attempt - 1), self.longest_delay_s) * (0.5 + 0.5 * chance)
        if attempt >= self.attempts or pause >= remaining_s:
            raise error
        return pause
