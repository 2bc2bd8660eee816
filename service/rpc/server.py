"""The gRPC server: address, limits, keepalive, and its beginning and end. It runs on the same event loop as REST."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.inference.access import Doorkeeper
from service.inference.byte_budget import UPLOAD_BYTES, ByteBudget
from service.inference.requests import RequestObserver
from service.rpc.guard import CallGuard
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.rpc.health import HealthServicer
from service.rpc.servicer import SERVICE_NAME, HandPoseServicer

_MARGIN_BYTES = 256 * 1024
"""A message that is a little too large still reaches the guard, which says so; gRPC itself cuts off one far above."""

_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 10_000),  # a connection that is silent for so long is pinged,
    ("grpc.keepalive_timeout_ms", 5_000),  # and dropped, with its calls, if it does not answer for so long
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients that ping more often are sent away
)
_HEALTH_INTERVAL_S: Final = 1.0
"""How often watchers of grpc.health.v1 learn of changes."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens and how it treats connections.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        max_message_bytes: largest request message.
        max_concurrent_calls: calls at the same time, streams included; more are refused with RESOURCE_EXHAUSTED.
        max_calls_per_connection: more have to wait until others end.
        max_streams: calls at the same time whose requests are streams.
        message_timeout_s: for the only message of a call that is no stream, from when it may send it.
        turn_timeout_s: until it may, while as many others are sending theirs as there is memory for.
        handshake_timeout_s: for the handshakes of TLS and HTTP/2.
        idle_s: a connection without calls is closed after so long.
        max_head_bytes: of a call's metadata.
        reuse_port: whether other processes may listen on the same port; connections are then spread over all.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    max_message_bytes: int = 20 * 1024 * 1024
    max_concurrent_calls: int = 1024
    max_calls_per_connection: int = 100
    max_streams: int = 64
    message_timeout_s: float = 20.0
    turn_timeout_s: float = 40.0
    handshake_timeout_s: float = 10.0
    idle_s: float = 300.0
    max_head_bytes: int = 32 * 1024
    reuse_port: bool = False


class RpcServer:
    """Serves HandPoseService, grpc.health.v1 and reflection.

    Args:
        servicer: the methods.
        state: the state of the whole and of each model.
        options: address, limits, keepalive.
        observer: is told of refused calls.
        doorkeeper: knows the keys; None: calls need none.
        credentials: for TLS; None: plain text.
        uploads: what messages may hold, from when they are received to their answer; None: as many bytes as by default.
    """

    def __init__(
        self,
        servicer: HandPoseServicer,
        state: HealthServicer,
        options: ServerOptions,
        *,
        observer: RequestObserver,
        doorkeeper: Doorkeeper | None = None,
        credentials: grpc.ServerCredentials | None = None,
        uploads: ByteBudget | None = None,
    ) -> None:
        self._servicer = servicer
        self._health = state
        self._options = options
        self._credentials = credentials
        uploads = uploads or ByteBudget(max(UPLOAD_BYTES, 2 * options.max_message_bytes))
        self._guard = CallGuard(
            uploads,
            observer,
            doorkeeper,
            max_message_bytes=options.max_message_bytes,
            max_streams=options.max_streams,
            message_timeout_s=options.message_timeout_s,
            turn_timeout_s=options.turn_timeout_s,
        )
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; return the port.

        Raises:
            RuntimeError: if the address cannot be bound.
        """
        server = grpc.aio.server(
            options=_channel_arguments(self._options),
            maximum_concurrent_rpcs=self._options.max_concurrent_calls,
            interceptors=(self._guard,),
        )
        hand_pose_pb2_grpc.add_HandPoseServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            self._servicer, server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        host = self._options.host
        address = f"{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self._options.port}"
        if self._credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, self._credentials)
        await self._health.refresh()
        await server.start()
        self._server = server
        self._watching = asyncio.create_task(self._health.keep_watchers_informed(_HEALTH_INTERVAL_S))
        return port

    async def not_serving(self) -> None:
        """Tell health checks that this server is going away; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and return when those under way have ended, or were cancelled when the grace was over."""
        await self.not_serving()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(grace_s)


def _channel_arguments(options: ServerOptions) -> list[tuple[str, Any]]:
    largest = options.max_message_bytes + _MARGIN_BYTES
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        *_KEEPALIVE,
        ("grpc.max_concurrent_streams", options.max_calls_per_connection),
        ("grpc.max_connection_idle_ms", round(1000 * options.idle_s)),
        ("grpc.server_handshake_timeout_ms", round(1000 * options.handshake_timeout_s)),
        ("grpc.http2.settings_timeout", round(1000 * options.handshake_timeout_s)),
        ("grpc.max_metadata_size", options.max_head_bytes),
        ("grpc.absolute_max_metadata_size", options.max_head_bytes),
        ("grpc.so_reuseport", int(options.reuse_port)),  # unasked, a second server must fail, not share it silently
    ]
