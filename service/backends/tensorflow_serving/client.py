"""The connections to the model servers: one channel an address, kept open. Nothing here knows what a model is.

An address may be a DNS name with several servers behind it; gRPC then balances over all of them.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from service.backends.tensorflow_serving.failures import CallError, Meaning
from service.backends.tensorflow_serving.wire import serving_pb2 as wire

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

    async def version_statuses(self, name: str, timeout_s: float) -> dict[int, wire.ModelVersionStatus]:
        """The status of each version of a model; none if the server does not know the model."""
        request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=name))
        try:
            reply = await self.status(request, timeout_s)
        except CallError as error:
            if error.meaning is Meaning.UNKNOWN_VERSION:
                return {}
            raise
        return {each.version: each for each in reply.model_version_status}

    async def status(self, request: wire.GetModelStatusRequest, timeout_s: float) -> wire.GetModelStatusResponse:
        return await self._call(f"{_MODEL}/GetModelStatus", request, wire.GetModelStatusResponse, timeout_s)

    async def reload(self, request: wire.ReloadConfigRequest, timeout_s: float) -> wire.ReloadConfigResponse:
        return await self._call(f"{_MODEL}/HandleReloadConfigRequest", request, wire.ReloadConfigResponse, timeout_s)

    async def aclose(self) -> None:
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
