"""Who is let in, how much a key may ask for, and what becomes of those who guess."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from service.inference.access import (
    CALLER,
    MAX_KEYS,
    AccessPolicy,
    Allowance,
    ApiKey,
    Doorkeeper,
    asked_by,
    charge,
)
from service.inference.errors import OverloadedError, UnauthenticatedError
from service.inference.keys import digest_of, new_key
from tests.support.clock import ManualClock

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
TODAY = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Calendar:
    """A date that tests turn."""

    def __init__(self) -> None:
        self.now = TODAY

    def __call__(self) -> datetime:
        return self.now


class Door:
    """A doorkeeper with two keys, on a clock and a calendar moved by hand."""

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.clock, self.calendar = ManualClock(), Calendar()
        self.doorkeeper = Doorkeeper(policy or AccessPolicy(), time=self.clock.time, today=self.calendar)
        self.kiosk, self.lab = new_key(), new_key()
        self.follow()

    def follow(self, **kiosk: object) -> None:
        self.doorkeeper.follow(
            [
                ApiKey("kiosk", digest_of(self.kiosk), **kiosk),  # type: ignore[arg-type]
                ApiKey("lab", digest_of(self.lab)),
            ]
        )

    def admit(self, key: str, peer: str = HERE) -> str:
        return self.doorkeeper.admit(key, peer).name

    def guess(self, times: int, peer: str = HERE) -> None:
        for _ in range(times):
            with pytest.raises(UnauthenticatedError):
                self.admit(new_key(), peer)


@pytest.fixture
def door() -> Door:
    return Door()


def test_each_key_is_known_by_its_name(door: Door) -> None:
    assert (door.admit(door.kiosk), door.admit(door.lab)) == ("kiosk", "lab")
    assert door.doorkeeper.names == ("kiosk", "lab")


def test_every_failure_is_told_in_the_same_words(door: Door) -> None:
    door.follow(expires=TODAY)
    shown = [
        None,
        "",
        "x",
        new_key(),
        door.kiosk,
        f"{door.lab}x",
        "x" * 100_000,
    ]
    told = set()
    for each in shown:
        with pytest.raises(UnauthenticatedError) as caught:
            door.doorkeeper.admit(each, HERE)
        told.add((caught.value.detail, caught.value.code, caught.value.retry_after_s))
    assert len(told) == 1


def test_nobody_gets_in_where_there_are_no_keys(door: Door) -> None:
    door.doorkeeper.follow([])
    with pytest.raises(UnauthenticatedError):
        door.admit(door.lab)


def test_digest_of_zeros_lets_nobody_in(door: Door) -> None:
    door.doorkeeper.follow([ApiKey("mistake", bytes(32))])
    with pytest.raises(UnauthenticatedError):
        door.doorkeeper.admit("anything", HERE)


def test_revoked_key_is_refused_at_once_and_so_is_the_rest_of_its_stream(door: Door) -> None:
    caller = door.doorkeeper.admit(door.kiosk, HERE)
    caller.take()
    door.doorkeeper.follow([ApiKey("lab", digest_of(door.lab))])
    with pytest.raises(UnauthenticatedError):
        caller.take()
    with pytest.raises(UnauthenticatedError):
        door.admit(door.kiosk)
    assert door.admit(door.lab) == "lab"


def test_key_is_good_until_it_expires(door: Door) -> None:
    door.follow(expires=TODAY + timedelta(days=1))
    caller = door.doorkeeper.admit(door.kiosk, HERE)
    door.calendar.now += timedelta(days=1, seconds=-1)
    caller.take()
    door.calendar.now += timedelta(seconds=1)
    with pytest.raises(UnauthenticatedError):
        caller.take()
    with pytest.raises(UnauthenticatedError):
        door.admit(door.kiosk)


def test_more_keys_than_are_compared_in_a_moment_are_refused(door: Door) -> None:
    with pytest.raises(ValueError, match=str(MAX_KEYS)):
        door.doorkeeper.follow([ApiKey(str(index), digest_of(new_key())) for index in range(MAX_KEYS + 1)])


# Rates


def limited(rate: float, burst: float) -> Door:
    return Door(AccessPolicy(allowance=Allowance(rate, burst)))


def refused_for(door: Door, images: int, key: str | None = None) -> float:
    with pytest.raises(OverloadedError) as caught:
        door.doorkeeper.admit(key or door.kiosk, HERE).take(images)
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_burst_passes_then_the_rate_holds() -> None:
    door = limited(2, 5)
    caller = door.doorkeeper.admit(door.kiosk, HERE)
    for _ in range(5):
        caller.take()
    assert refused_for(door, 1) == pytest.approx(0.5)
    door.clock.advance(0.5)
    caller.take()
    assert refused_for(door, 1) == pytest.approx(0.5)


def test_keys_do_not_use_up_each_others_rate() -> None:
    door = limited(1, 1)
    door.doorkeeper.admit(door.kiosk, HERE).take()
    door.doorkeeper.admit(door.lab, HERE).take()
    assert refused_for(door, 1) == pytest.approx(1)


def test_batch_costs_its_images_or_nothing() -> None:
    door = limited(1, 10)
    caller = door.doorkeeper.admit(door.kiosk, HERE)
    caller.take(8)
    assert refused_for(door, 5) == pytest.approx(3)
    caller.take(2)


def test_batch_that_comes_back_when_it_was_told_to_gets_in() -> None:
    door = limited(1, 10)
    caller = door.doorkeeper.admit(door.kiosk, HERE)
    caller.take(8)
    caller.take()
    with pytest.raises(OverloadedError) as caught:
        caller.take(5, counted=1)
    assert caught.value.retry_after_s == pytest.approx(3)
    door.clock.advance(3)
    caller.take()
    caller.take(5, counted=1)
    assert refused_for(door, 1) == pytest.approx(1)


def test_batch_larger_than_the_burst_gets_in_and_is_paid_off_afterwards() -> None:
    door = limited(1, 10)
    door.doorkeeper.admit(door.kiosk, HERE).take(32)
    assert refused_for(door, 1) == pytest.approx(23)


def test_key_has_a_rate_of_its_own() -> None:
    door = limited(1, 1)
    door.follow(allowance=Allowance(1, 3))
    door.doorkeeper.admit(door.kiosk, HERE).take(3)
    refused_for(door, 1)
    door.follow(allowance=Allowance())
    door.doorkeeper.admit(door.kiosk, HERE).take(10_000)


def test_reading_the_keys_anew_gives_no_new_burst() -> None:
    door = limited(1, 2)
    door.doorkeeper.admit(door.kiosk, HERE).take(2)
    door.follow()
    assert refused_for(door, 1) == pytest.approx(1)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0.5), (1, float("inf")), (float("nan"), 1)])
def test_rates_that_make_no_sense_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="burst"):
        Allowance(rate, burst)


@pytest.fixture
def nobody_asks() -> Iterator[None]:
    assert CALLER.get() is None
    yield
    assert CALLER.get() is None


@pytest.mark.usefixtures("nobody_asks")
def test_charge_is_on_the_account_of_whoever_asks() -> None:
    door = limited(1, 3)
    charge(1000)  # nobody: no keys are needed
    with asked_by(door.doorkeeper.admit(door.kiosk, HERE)):
        charge()
        charge(3, counted=1)
    assert refused_for(door, 1) == pytest.approx(1)


# Guessing


def guarded(**policy: float) -> Door:
    return Door(AccessPolicy(failures=3, failures_per_second=0.1, **policy))  # type: ignore[arg-type]


def test_guessing_becomes_slow() -> None:
    door = guarded()
    door.guess(3)
    with pytest.raises(OverloadedError) as caught:
        door.admit(new_key())
    assert caught.value.code == "throttled"
    assert caught.value.retry_after_s == pytest.approx(10)
    door.clock.advance(10)
    door.guess(1)


def test_right_guess_is_not_looked_at_while_the_address_waits() -> None:
    door = guarded()
    door.guess(3)
    with pytest.raises(OverloadedError):
        door.admit(door.kiosk)
    door.clock.advance(10)
    assert door.admit(door.kiosk) == "kiosk"


def test_who_has_shown_a_right_key_is_not_locked_out_by_a_guesser_at_the_same_address() -> None:
    door = guarded()
    door.admit(door.kiosk)
    door.guess(3)
    assert door.admit(door.kiosk) == "kiosk"
    with pytest.raises(OverloadedError):
        door.admit(door.lab)


def test_other_addresses_are_not_throttled() -> None:
    door = guarded()
    door.guess(3)
    assert door.admit(door.kiosk, ELSEWHERE) == "kiosk"


def test_requests_without_a_key_are_no_guesses() -> None:
    door = guarded()
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            door.doorkeeper.admit(None, HERE)
    assert door.admit(door.kiosk) == "kiosk"


def test_right_keys_do_not_use_up_the_guesses() -> None:
    door = guarded()
    for _ in range(10):
        door.admit(door.kiosk)
        door.admit(door.lab)
    door.guess(3)


def test_one_network_of_ipv6_is_one_guesser() -> None:
    door = guarded()
    for index in range(3):
        door.guess(1, f"2001:db8::{index}")
    with pytest.raises(OverloadedError):
        door.admit(new_key(), "2001:db8::ffff")
    door.guess(1, "2001:db8:0:1::1")


def test_ipv4_is_the_same_guesser_over_ipv6() -> None:
    door = guarded()
    door.guess(3, "::ffff:192.0.2.1")
    with pytest.raises(OverloadedError):
        door.admit(new_key(), HERE)


def test_addresses_that_are_remembered_are_bounded_and_the_longest_silent_is_forgotten() -> None:
    door = guarded(max_addresses=2)
    for address in (HERE, ELSEWHERE, "192.0.2.3"):
        door.guess(3, address)
    with pytest.raises(OverloadedError):
        door.admit(new_key(), ELSEWHERE)
    door.guess(1, HERE)  # forgotten when the third came
