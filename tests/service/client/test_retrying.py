"""When a request is sent again, and after how long."""

import pytest

from service.client.errors import TryAgainError
from service.client.retrying import RetryPolicy

POLICY = RetryPolicy(attempts=5, first_delay_s=0.1, longest_delay_s=0.5)


def busy(retry_after_s: float | None = None) -> TryAgainError:
    return TryAgainError("overloaded", "busy", retry_after_s=retry_after_s)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [POLICY.pause(attempt, busy(), 100, chance=1.0) for attempt in range(1, 5)]

    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.5])


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_the_services_own_advice_is_never_cut_short(chance: float) -> None:
    assert 2.0 <= POLICY.pause(1, busy(2.0), 100, chance=chance) <= 2.2


def test_the_last_attempt_ends_with_its_error() -> None:
    error = busy()

    with pytest.raises(TryAgainError) as caught:
        POLICY.pause(5, error, 100)

    assert caught.value is error


def test_nobody_waits_longer_than_the_call_may_take() -> None:
    with pytest.raises(TryAgainError):
        POLICY.pause(1, busy(2.0), 1.9)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_delay_s": -1.0}, {"first_delay_s": 2.0, "longest_delay_s": 1.0}]
)
def test_impossible_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="attempts"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
