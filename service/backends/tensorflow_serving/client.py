"""The connections to the model servers: one channel an address, kept open, balanced, retried and broken off.

An address may be a DNS name with several servers behind it; gRPC then balances over all of them. Several addresses are
balanced here, in turn, leaving out those whose circuit breaker is open. Nothing here knows what a model is.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from service.backends.tensorflow_serving.breaker import CircuitBreaker
from service.backends.tensorflow_serving.failures import is_queue_full, is_unavailable
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.ports import Clock

Metadata = tuple[tuple[str, str], ...]
Reply = TypeVar("Reply", bound=Message)

_PREDICTION: Final = "/tensorflow.serving.PredictionService"
_MODEL: Final = "/tensorflow.serving.ModelService"

_ROUND_ROBIN: Final = '{"loadBalancingConfig": [{"round_robin": {}}]}'


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a call that found no server is sent again.

    Attributes:
        attempts: calls in all, the first included.
        first_wait_s: the longest wait before the second attempt; it doubles with each further one. What is waited is
            drawn between half of it and all of it, so that many gateways do not come back at once.
        longest_wait_s: where the doubling ends.
    """

    attempts: int = 4
    first_wait_s: float = 0.05
    longest_wait_s: float = 0.5

    def wait_after(self, attempt: int, chance: float) -> float:
        """Seconds to wait after the attempt with this number (from 1); `chance` is drawn from [0, 1)."""
        longest = min(self.first_wait_s * 2.0 ** (attempt - 1), self.longest_wait_s)
        return longest * (0.5 + chance / 2)


def channel_options(max_message_bytes: int) -> list[tuple[str, str | int]]:
    """gRPC's settings for one channel to a model server."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),  # gRPC's own limit is 4 MB: 46 images' maps
        ("grpc.service_config", _ROUND_ROBIN),
        ("grpc.enable_retries", 0),  # retries are ours, so that they are bounded once
        # gRPC would wait up to two minutes between attempts to connect; readiness follows the truth faster.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # how long one attempt may take
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # A peer that has vanished without a word is noticed, and its calls fail, before the deadlines pile up.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]


def target_of(address: str) -> str:
    """gRPC's name for an address: "host:port" is looked up in DNS; "ipv4:…" and other schemes stay as they are."""
    scheme = address.partition(":")[0]
    return address if scheme in ("dns", "ipv4", "ipv6", "unix") else f"dns:///{address}"


class Endpoint:
    """One address: its channel, its calls, its circuit breaker."""

    def __init__(self, address: str, *, max_message_bytes: int, breaker: CircuitBreaker) -> None:
        self.address = address
        self.breaker = breaker
        self._channel = grpc.aio.insecure_channel(target_of(address), options=channel_options(max_message_bytes))

    async def predict(self, request: wire.PredictRequest, timeout_s: float, metadata: Metadata) -> wire.PredictResponse:
        path = f"{_PREDICTION}/Predict"
        return await self._call(path, request, wire.PredictResponse.FromString, timeout_s, metadata)

    async def metadata(self, request: wire.GetModelMetadataRequest, timeout_s: float) -> wire.GetModelMetadataResponse:
        path = f"{_PREDICTION}/GetModelMetadata"
        return await self._call(path, request, wire.GetModelMetadataResponse.FromString, timeout_s)

    async def status(self, request: wire.GetModelStatusRequest, timeout_s: float) -> wire.GetModelStatusResponse:
        path = f"{_MODEL}/GetModelStatus"
        return await self._call(path, request, wire.GetModelStatusResponse.FromString, timeout_s)

    async def reload(self, request: wire.ReloadConfigRequest, timeout_s: float) -> wire.ReloadConfigResponse:
        path = f"{_MODEL}/HandleReloadConfigRequest"
        return await self._call(path, request, wire.ReloadConfigResponse.FromString, timeout_s)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(
        self,
        path: str,
        request: Message,
        parse: Callable[[bytes], Reply],
        timeout_s: float,
        metadata: Metadata = (),
    ) -> Reply:
        """One call. Raises grpc.aio.AioRpcError, translated by whoever knows what was asked."""
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=parse
        )
        return await call(request, timeout=timeout_s, metadata=metadata)


class Pool:
    """All endpoints, and the way a prediction takes through them.

    Args:
        endpoints: at least one.
        clock: its time limits the retries.
        retry: how often and how soon.
        on_unreachable: is called when a server could not be reached, so that its state is looked at at once.
        chance: draws from [0, 1) for the waits.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        clock: Clock,
        retry: RetryPolicy,
        on_unreachable: Callable[[], object] = lambda: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not endpoints:
            raise ValueError("at least one model server's address is needed")
        self.endpoints = tuple(endpoints)
        self._clock = clock
        self._retry = retry
        self._on_unreachable = on_unreachable
        self._chance = chance
        self._turn = 0

    async def predict(
        self,
        request: wire.PredictRequest,
        *,
        among: Sequence[Endpoint],
        timeout_s: float,
        metadata: Metadata = (),
    ) -> wire.PredictResponse:
        """Run a prediction on one of these endpoints; on UNAVAILABLE go on to the next, after a wait.

        Raises:
            grpc.aio.AioRpcError: the last attempt's failure.
            NoEndpointError: every circuit breaker is open, so nothing was tried.
        """
        deadline = self._clock.time() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            endpoint = self._next(among)
            try:
                reply = await endpoint.predict(request, max(deadline - self._clock.time(), 0.001), metadata)
            except grpc.aio.AioRpcError as error:
                if not is_unavailable(error):
                    # Whatever it is, a server is there that said it. A hung one says nothing: leave the count alone.
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        endpoint.breaker.call_succeeded()
                    raise
                if not is_queue_full(error):
                    endpoint.breaker.call_failed()
                    self._on_unreachable()
                wait_s = self._retry.wait_after(attempt, self._chance())
                if attempt >= self._retry.attempts or self._clock.time() + wait_s >= deadline:
                    raise
                if not any(each.breaker.lets_through for each in among):
                    raise
            else:
                endpoint.breaker.call_succeeded()
                return reply
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    def _next(self, among: Sequence[Endpoint]) -> Endpoint:
        self._turn += 1
        for offset in range(len(among)):
            endpoint = among[(self._turn + offset) % len(among)]
            if endpoint.breaker.lets_through:
                return endpoint
        raise NoEndpointError


class NoEndpointError(Exception):
    """Every model server that could answer is known to be down."""
