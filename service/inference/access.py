"""Access: which keys are admitted, how many images each may have estimated, and how guessing is slowed.

Pure rules on a clock that is passed in. `service.access` keeps the keys. A protocol takes the key from a request, calls
`Doorkeeper.admit` before it reads a body, and answers the request in a block of `asked_by`; each image is then charged
with `charge`.
"""

import hmac
import ipaddress
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from service.inference.errors import OverloadedError, UnauthenticatedError
from service.inference.keys import digest_of, is_key

MAX_KEYS: Final = 1000
"""Every key is compared with every request's, so their number is bounded: a thousand take about half a ms."""

_NO_DIGEST: Final = b"\0" * 32


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many images a key may have estimated.

    Attributes:
        images_per_second: in the long run; infinite where there is no limit.
        burst: at once, after a pause.
    """

    images_per_second: float = math.inf
    burst: float = math.inf

    def __post_init__(self) -> None:
        if not (self.images_per_second > 0 and self.burst >= 1):
            raise ValueError(f"a rate must be above 0 and a burst at least 1: {self}")
        if math.isinf(self.images_per_second) != math.isinf(self.burst):
            raise ValueError(f"rate and burst must both have a limit, or neither: {self}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the service knows it.

    Attributes:
        name: for people: in the log, never in an answer.
        digest: SHA-256 of the key, 32 bytes.
        expires: when it stops being one; None: never.
        allowance: its own; None: the usual one.
    """

    name: str
    digest: bytes
    expires: datetime | None = None
    allowance: Allowance | None = None


class TokenBucket:
    """Lets `burst` through at once and `images_per_second` in the long run.

    A batch larger than the bucket passes when the bucket is full, and is paid off afterwards: it waits longer, but not
    for ever.
    """

    def __init__(self, allowance: Allowance, now: float) -> None:
        self.allowance = allowance
        self._level = allowance.burst
        self._at = now

    def take(self, number: float, now: float) -> float:
        """Take so many and return 0, or take none and return the seconds until there are so many."""
        if math.isinf(self.allowance.burst):
            return 0.0
        self._refill(now)
        missing = min(number, self.allowance.burst) - self._level
        if missing > 1e-9:
            return missing / self.allowance.images_per_second
        self._level -= number
        return 0.0

    def give_back(self, number: float, now: float) -> None:
        """Undo a `take`."""
        if not math.isinf(self.allowance.burst):
            self._refill(now)
            self._level = min(self.allowance.burst, self._level + number)

    def _refill(self, now: float) -> None:
        gained = max(0.0, now - self._at) * self.allowance.images_per_second
        self._level = min(self.allowance.burst, self._level + gained)
        self._at = now


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request with a valid key.

    Attributes:
        key: the key.
        doorkeeper: admitted it.
    """

    key: ApiKey
    doorkeeper: "Doorkeeper"

    @property
    def name(self) -> str:
        """The key's name."""
        return self.key.name

    def take(self, images: int = 1, *, counted: int = 0) -> None:
        """Count images against the key's rate.

        Args:
            images: how many the request has.
            counted: how many of them were counted before that was known.

        Raises:
            OverloadedError: too many; its `retry_after_s` says when there is room for this many. None are counted.
            UnauthenticatedError: the key has been revoked, or has expired, since it was shown.
        """
        self.doorkeeper.charge(self.key, images, counted)


CALLER: ContextVar[Caller | None] = ContextVar("handpose_caller", default=None)
"""The caller of the current request; None where no keys are needed."""


def charge(images: int = 1, *, counted: int = 0) -> None:
    """`Caller.take` for the caller of the current request, if it has one."""
    caller = CALLER.get()
    if caller is not None:
        caller.take(images, counted=counted)


@contextmanager
def asked_by(caller: Caller) -> Iterator[None]:
    """Images in the block are charged to this caller."""
    before = CALLER.set(caller)
    try:
        yield
    finally:
        CALLER.reset(before)


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Rates and the patience with wrong keys.

    Attributes:
        allowance: of keys that have none of their own.
        failures: wrong keys that one address may show at once.
        failures_per_second: how fast that is forgiven.
        max_addresses: addresses that are remembered.
    """

    allowance: Allowance = field(default_factory=Allowance)
    failures: int = 10
    failures_per_second: float = 0.5
    max_addresses: int = 10_000


@dataclass(slots=True)
class _Address:
    """What is remembered of one: how many wrong keys it may still show, and the right ones that it has shown."""

    failures: TokenBucket
    proven: set[bytes] = field(default_factory=set)


class Doorkeeper:
    """Admits requests that show a key.

    Args:
        policy: how strict to be.
        time: seconds on a clock that goes forward, for rates.
        today: the date and time, for expiry.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        *,
        time: Callable[[], float],
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy = policy
        self._time = time
        self._today = today
        self._keys: dict[bytes, ApiKey] = {}
        self._rates: dict[bytes, TokenBucket] = {}
        self._addresses: dict[str, _Address] = {}  # the one that was seen last is at the end

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the keys."""
        return tuple(key.name for key in self._keys.values())

    def follow(self, keys: Sequence[ApiKey]) -> None:
        """Admit these keys and no others from now on. Rates of keys that stay are not begun anew.

        Raises:
            ValueError: there are more than `MAX_KEYS`.
        """
        if len(keys) > MAX_KEYS:
            raise ValueError(f"{len(keys)} keys; at most {MAX_KEYS} are allowed")
        now, before = self._time(), self._rates
        self._keys = {key.digest: key for key in keys}
        self._rates = {}
        for key in keys:
            allowance, rate = key.allowance or self._policy.allowance, before.get(key.digest)
            if rate is None or rate.allowance != allowance:
                rate = TokenBucket(allowance, now)
            self._rates[key.digest] = rate

    def admit(self, shown: str | None, peer: str) -> Caller:
        """The caller who shows this key.

        Takes the same, short time for every key. An address that has shown too many wrong ones has to wait, unless the
        key is right and was shown from there before: guesses from behind a proxy do not lock out the callers behind it
        that were admitted before.

        Args:
            shown: what the request shows as its key; None or empty: nothing.
            peer: the address that it comes from, without port.

        Raises:
            UnauthenticatedError: no key, or none that is valid. Nothing tells the one from the other.
            OverloadedError: too many wrong keys came from this address.
        """
        if not shown:
            raise _unauthenticated()
        key, address, now = self._known(shown), self._address(peer), self._time()
        if key is None or key.digest not in address.proven:
            wait_s = address.failures.take(1, now)
            if wait_s:
                raise OverloadedError(
                    "too many requests without a valid key came from this address",
                    code="throttled",
                    retry_after_s=wait_s,
                )
            if key is None:
                raise _unauthenticated()
            address.failures.give_back(1, now)
            address.proven.add(key.digest)
        return Caller(key, self)

    def charge(self, key: ApiKey, images: int, counted: int) -> None:
        """See `Caller.take`."""
        rate = self._rates.get(key.digest)
        if rate is None or self._expired(self._keys[key.digest]):
            raise _unauthenticated()
        now = self._time()
        rate.give_back(counted, now)
        wait_s = rate.take(images, now)
        if wait_s:
            raise OverloadedError(
                f"this key may have {rate.allowance.images_per_second:g} images a second estimated,"
                f" and {rate.allowance.burst:g} at once",
                code="rate_limited",
                retry_after_s=wait_s,
            )

    def _known(self, shown: str) -> ApiKey | None:
        """The key, if it is one; found by comparing with all of them, in constant time."""
        digest = digest_of(shown) if is_key(shown) else _NO_DIGEST
        found = None
        for known, key in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = key
        return None if found is None or digest == _NO_DIGEST or self._expired(found) else found

    def _expired(self, key: ApiKey) -> bool:
        return key.expires is not None and self._today() >= key.expires

    def _address(self, peer: str) -> _Address:
        """What is remembered of an address. When there are too many, the one silent for longest is forgotten."""
        network = _network_of(peer)
        address = self._addresses.pop(network, None)
        if address is None:
            allowed = Allowance(self._policy.failures_per_second, self._policy.failures)
            address = _Address(TokenBucket(allowed, self._time()))
        self._addresses[network] = address
        if len(self._addresses) > self._policy.max_addresses:
            del self._addresses[next(iter(self._addresses))]
        return address


def _network_of(peer: str) -> str:
    """What one person is likely to have: an IPv4 address, or the /64 that an IPv6 address is in."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _unauthenticated() -> UnauthenticatedError:
    return UnauthenticatedError("a valid API key is needed")
