"""The connections to the model servers: one channel an address, kept open, balanced and retried.

An address may be a DNS name with several servers behind it; gRPC then balances over all of them. Several addresses are
balanced here, in turn. Nothing here knows what a model is.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from service.backends.tensorflow_serving.failures import CallError, Meaning
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.ports import Clock

Metadata = tuple[tuple[str, str], ...]
Reply = TypeVar("Reply", bound=Message)

_PREDICTION: Final = "/tensorflow.serving.PredictionService"
_MODEL: Final = "/tensorflow.serving.ModelService"
_MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
_ROUND_ROBIN: Final = '{"loadBalancingConfig": [{"round_robin": {}}]}'


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a call is sent again that found no server, or only busy ones.

    Attributes:
        attempts: calls in all, the first included.
        first_wait_s: the longest wait before the second attempt; it doubles with each further one. The wait is drawn
            between half of it and all of it, so that many gateways do not come back at once.
        longest_wait_s: where the doubling ends.
    """

    attempts: int = 4
    first_wait_s: float = 0.05
    longest_wait_s: float = 0.5

    def wait_after(self, attempt: int, chance: float) -> float:
        """Seconds to wait after the attempt with this number (from 1); `chance` is drawn from [0, 1)."""
        longest = min(self.first_wait_s * 2.0 ** (attempt - 1), self.longest_wait_s)
        return longest * (0.5 + chance / 2)


def channel_options() -> list[tuple[str, str | int]]:
    """gRPC's settings for one channel to a model server.

    Its transparent retries stay on: without them, a call that meets the end of a connection's age (GOAWAY) fails.
    """
    return [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),  # gRPC's own limit is 4 MB: 46 images' maps
        ("grpc.service_config", _ROUND_ROBIN),
        # gRPC would wait up to two minutes between attempts to connect; readiness follows the truth faster.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # how long one attempt may take
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # A peer that has vanished is noticed, and its calls fail, before the deadlines pile up.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]


def target_of(address: str) -> str:
    """gRPC's name for an address: "host:port" is looked up in DNS; "ipv4:…" and other schemes stay as they are."""
    scheme = address.partition(":")[0]
    return address if scheme in ("dns", "ipv4", "ipv6", "unix") else f"dns:///{address}"


class Endpoint:
    """One address: its channel and its calls. Every call raises CallError if it fails."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(target_of(address), options=channel_options())

    async def predict(self, request: wire.PredictRequest, timeout_s: float, metadata: Metadata) -> wire.PredictResponse:
        return await self._call(f"{_PREDICTION}/Predict", request, wire.PredictResponse, timeout_s, metadata)

    async def metadata(self, request: wire.GetModelMetadataRequest, timeout_s: float) -> wire.GetModelMetadataResponse:
        return await self._call(f"{_PREDICTION}/GetModelMetadata", request, wire.GetModelMetadataResponse, timeout_s)

    async def status(self, request: wire.GetModelStatusRequest, timeout_s: float) -> wire.GetModelStatusResponse:
        return await self._call(f"{_MODEL}/GetModelStatus", request, wire.GetModelStatusResponse, timeout_s)

    async def reload(self, request: wire.ReloadConfigRequest, timeout_s: float) -> wire.ReloadConfigResponse:
        return await self._call(f"{_MODEL}/HandleReloadConfigRequest", request, wire.ReloadConfigResponse, timeout_s)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(
        self, path: str, request: Message, reply: type[Reply], timeout_s: float, metadata: Metadata = ()
    ) -> Reply:
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            answer: Reply = await call(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise CallError(error.code(), error.details() or "") from error
        return answer


class Pool:
    """The way a prediction takes through the endpoints.

    Args:
        clock: its time limits the retries.
        retry: how often and how soon.
        on_unreachable: is called when a server could not be reached, so that its state is looked at at once.
        chance: draws from [0, 1) for the waits.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        retry: RetryPolicy,
        on_unreachable: Callable[[], object],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._retry = retry
        self._on_unreachable = on_unreachable
        self._chance = chance
        self._calls = 0

    async def predict(
        self,
        request: wire.PredictRequest,
        *,
        among: Callable[[], Sequence[Endpoint]],
        timeout_s: float,
        metadata: Metadata = (),
    ) -> wire.PredictResponse:
        """Run a prediction on an endpoint; if it cannot be reached or is busy, on the next one, after a wait.

        Args:
            among: the endpoints that can run it, by what is known at the time.

        Raises:
            CallError: the last attempt's failure.
            NoEndpointError: none can run it.
        """
        deadline = self._clock.time() + timeout_s
        attempt = 0
        while endpoints := among():
            attempt += 1
            self._calls += 1
            endpoint = endpoints[self._calls % len(endpoints)]
            try:
                return await endpoint.predict(request, max(deadline - self._clock.time(), 0.001), metadata)
            except CallError as error:
                if error.meaning is Meaning.UNREACHABLE:
                    self._on_unreachable()
                wait_s = self._retry.wait_after(attempt, self._chance())
                out_of_time = attempt >= self._retry.attempts or self._clock.time() + wait_s >= deadline
                if not error.worth_another_try or out_of_time:
                    raise
            await asyncio.sleep(wait_s)
        raise NoEndpointError


class NoEndpointError(Exception):
    """No model server is known to have the version, or those that had it are down."""
