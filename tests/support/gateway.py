"""The whole gateway, REST and gRPC on real sockets, put together as the service does it, on a fake backend."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
import uvicorn
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry

from service.access.tls import TlsFiles
from service.inference.access import Doorkeeper
from service.inference.byte_budget import UPLOAD_BYTES, ByteBudget
from service.inference.decoding import ImageDecoder
from service.inference.errors import RoutedTo
from service.inference.model_queue import BatchingPolicy
from service.inference.models import ModelReference
from service.inference.ports import Attribute, Observer
from service.inference.predictor import Predictor
from service.inference.requests import RequestObserver
from service.inference.routing import Router
from service.inference.streaming import StreamLimits, Streams
from service.observability.metrics import PrometheusObserver
from service.rest.app import create_app
from service.rest.policy import ConnectionLimits, RestPolicy
from service.rest.stream import stream_routes
from service.rest.uploads import UploadGuard
from service.rest.uvicorn_limits import LimitedServer, protocols
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.rpc.health import HealthServicer
from service.rpc.server import RpcServer, ServerOptions
from service.rpc.servicer import SERVICE_NAME, HandPoseServicer, RpcPolicy
from service.rpc.status import STATUS_DETAILS
from service.rpc.tls import server_credentials
from tests.support.backend import FakeBackend
from tests.support.observer import RecordingObserver
from tests.support.waiting import until


@dataclass
class RecordingRequests:
    """Implements `service.inference.requests.RequestObserver`."""

    now_in_flight: int = 0
    images: list[tuple[RoutedTo | None, str | None, str]] = field(default_factory=list)

    @contextmanager
    def request(
        self,
        name: str,
        *,
        request_id: str,
        caller: str | None,
        attributes: dict[str, Attribute],
    ) -> Iterator["Untraced"]:
        yield Untraced()

    @contextmanager
    def part(self, name: str, **attributes: Attribute) -> Iterator[None]:
        yield

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        self.now_in_flight += 1
        try:
            yield
        finally:
            self.now_in_flight -= 1

    def image_answered(self, routed_to: RoutedTo | None, asked_for: str | None, code: str, seconds: float) -> None:
        self.images.append((routed_to, asked_for, code))


class Untraced:
    """Implements `service.inference.requests.RequestTrace`."""

    def answered(self, name: str, attributes: dict[str, Attribute], *, failed: bool) -> None: ...


def no_metrics(_accept: str | None) -> tuple[bytes, str]:
    """Nothing was measured."""
    return b"", "text/plain"


class _Uvicorn(LimitedServer):
    """Leaves the test runner's signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Everything between a socket and a fake backend. `stub` is a client of it."""

    def __init__(
        self,
        workers: Executor,
        *,
        backend: FakeBackend | None = None,
        policy: RpcPolicy | None = None,
        max_body_bytes: int = 20 * 1024 * 1024,
        batching: BatchingPolicy | None = None,
        max_pixels: int = 50_000_000,
        max_rois: int = 16,
        stream_limits: StreamLimits | None = None,
        options: ServerOptions | None = None,
        tracer: Tracer | None = None,
        doorkeeper: Doorkeeper | None = None,
        tls: TlsFiles | None = None,
        cors_origins: tuple[str, ...] = (),
        connections: ConnectionLimits | None = None,
        upload_bytes: int = UPLOAD_BYTES,
        max_frame_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        clock = asyncio.get_running_loop()
        self.backend = backend or FakeBackend()
        self.observer = RecordingObserver()
        self.requests = RecordingRequests()
        use_case: Observer = self.observer
        requests: RequestObserver = self.requests
        if tracer is not None:
            use_case = requests = PrometheusObserver(CollectorRegistry(), tracer)
        self.decoder = ImageDecoder(workers, clock, max_pixels=max_pixels)
        self.predictor = Predictor(
            backend=self.backend,
            router=Router(ModelReference("lightweight")),
            decoder=self.decoder,
            observer=use_case,
            clock=clock,
            batching=batching or BatchingPolicy(),
            max_rois=max_rois,
        )
        self.connections = connections or ConnectionLimits()
        self.uploads = ByteBudget(upload_bytes)
        self.max_frame_bytes = max_frame_bytes
        self.streams = Streams(
            self.predictor.estimate, clock=clock, observer=use_case, limits=stream_limits, uploads=self.uploads
        )
        self.health = HealthServicer(
            not_ready=self.backend.not_ready, models=self.backend.models, service_names=(SERVICE_NAME,)
        )
        self.policy = policy or RpcPolicy()
        self.app = create_app(
            predictor=self.predictor,
            decoder=self.decoder,
            backend=self.backend,
            observer=requests,
            metrics=no_metrics,
            not_ready=self.backend.not_ready,
            clock=clock,
            default_model=lambda: ModelReference("lightweight"),
            policy=RestPolicy(
                max_body_bytes=max_body_bytes,
                max_batch_images=self.policy.max_batch_images,
                default_deadline_s=self.policy.default_deadline_s,
                max_deadline_s=self.policy.max_deadline_s,
                cors_origins=cors_origins,
                hsts_s=0 if tls is None else 1000,
            ),
            doorkeeper=doorkeeper,
        )
        self.app.include_router(stream_routes(streams=self.streams, observer=requests, clock=clock))
        self.server = RpcServer(
            HandPoseServicer(
                estimate=self.predictor.estimate,
                streams=self.streams,
                models=self.backend.models,
                clock=clock,
                observer=requests,
                policy=self.policy,
            ),
            self.health,
            options or ServerOptions(port=0, max_message_bytes=max_body_bytes),
            observer=requests,
            doorkeeper=doorkeeper,
            credentials=None if tls is None else server_credentials(tls.now),
            uploads=self.uploads,
        )
        self.tls = tls
        self.port = 0
        self.rest_port = 0
        self._rest: uvicorn.Server | None = None
        self._serving_rest: asyncio.Task[None] | None = None
        self._channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        """Serve gRPC."""
        self.port = await self.server.start()
        self.app.state.grpc_port = self.port

    async def start_rest(self, port: int = 0) -> None:
        """Serve REST and WebSocket, too; on a port that the system chooses, unless one is given."""
        tls, listener = self.tls, socket.create_server(("127.0.0.1", port))
        self.rest_port = listener.getsockname()[1]
        self._rest = _Uvicorn(
            uvicorn.Config(
                UploadGuard(self.app, rate=self.connections.rate, uploads=self.uploads),
                **protocols(self.connections, self.uploads, max_message_bytes=self.max_frame_bytes),
                lifespan="off",
                log_config=None,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls.server_context(),
            ),
            handshake_timeout_s=self.connections.head_timeout_s,
        )
        self._serving_rest = asyncio.create_task(self._rest.serve(sockets=[listener]))
        rest = self._rest
        await until(lambda: rest.started)

    async def stop(self) -> None:
        self.backend.release()
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0)
        if self._rest is not None and self._serving_rest is not None:
            self._rest.should_exit = self._rest.force_exit = True
            await self._serving_rest

    @property
    def number_of_connections(self) -> int:
        """REST's, WebSockets included."""
        assert self._rest is not None
        return len(self._rest.server_state.connections)

    @property
    def rest_url(self) -> str:
        return f"http{self._s}://127.0.0.1:{self.rest_port}"

    @property
    def rpc_url(self) -> str:
        return f"grpc{self._s}://{self.address}"

    @property
    def _s(self) -> str:
        return "" if self.tls is None else "s"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        channel = grpc.aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return channel

    def stub(self) -> Any:
        """A client with a connection of its own."""
        return hand_pose_pb2_grpc.HandPoseServiceStub(self.channel())  # type: ignore[no-untyped-call]  # generated


async def refusal_of(call: Any, *messages: Any) -> grpc.aio.AioRpcError:
    """The error with which the service ends a stream after these messages.

    Nothing is written once the service may have ended the stream, not even the stream's end: gRPC's client would then
    report a failed write instead of the service's error.
    """
    for message in messages:
        await call.write(message)
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the service did not refuse the stream")


def details_of(error: grpc.aio.AioRpcError) -> SimpleNamespace:
    """The rich details of an error: info, retry, bad_request; None where absent."""
    raw = dict(error.trailing_metadata() or ())[STATUS_DETAILS]
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    assert status.code == error.code().value[0]
    return SimpleNamespace(
        status=status,
        info=_unpacked(status.details, error_details_pb2.ErrorInfo()),
        retry=_unpacked(status.details, error_details_pb2.RetryInfo()),
        bad_request=_unpacked(status.details, error_details_pb2.BadRequest()),
    )


def _unpacked(details: Any, message: Any) -> Any:
    each: any_pb2.Any
    for each in details:
        if each.Unpack(message):
            return message
    return None
