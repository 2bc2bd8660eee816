"""Puts the service together: the only place that names concrete classes. What it then does is `service.lifecycle`."""

import asyncio
import errno
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from service.access.key_file import parse_keys
from service.access.tls import TlsFiles
from service.backends.embedded import EmbeddedBackend, Run
from service.backends.native_log import native_log_filtered
from service.backends.processor import multiplies_bfloat16
from service.backends.repository import Servable, ServableError, version_folders
from service.backends.tensorflow_serving.backend import MODEL_NAMES, TensorFlowServingBackend
from service.backends.tensorflow_serving.config_file import ManagementError, largest_batch
from service.backends.tensorflow_serving.management import ManagedServers
from service.files import FileError, FollowedFile, follow
from service.inference.access import ApiKey, Doorkeeper
from service.inference.byte_budget import ByteBudget
from service.inference.decoding import ImageDecoder
from service.inference.errors import ServiceError
from service.inference.models import Kind
from service.inference.ports import Backend, Clock
from service.inference.predictor import Predictor
from service.inference.routing import Router, RoutingRules
from service.inference.shadow import Shadow
from service.inference.streaming import Streams
from service.lifecycle import HangUpWhenStopping, Models, Readiness, Service
from service.observability.metrics import PrometheusObserver
from service.observability.tracing import traceparent
from service.rest.app import create_admin_app, create_app
from service.rest.stream import stream_routes
from service.rest.uploads import UploadGuard
from service.rest.uvicorn_limits import LimitedServer, protocols
from service.routing_file import parse_rules
from service.rpc.health import HealthServicer
from service.rpc.server import RpcServer
from service.rpc.servicer import SERVICE_NAME, HandPoseServicer
from service.rpc.tls import server_credentials
from service.settings import BATCHES_AT_ONCE, Precision, Settings

_BACKLOG: Final = 2048
_LOOK_FOR_MODELS_EVERY_S: Final = 2.0
_LAST_TRACES_S: Final = 2.0  # for the collector, once everything is answered
_WARM_UP_SIZES: Final = (1, 2)  # a larger size costs tenths of a second more once; all of them, seconds at each start

logger = logging.getLogger(__name__)


class StartError(Exception):
    """The service cannot start. One line for the operator."""


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[["Addresses"], None],
    open_servable: Callable[[Servable], Run] | None = None,
) -> None:
    """Run the service until SIGTERM or SIGINT; return when every accepted request has its answer.

    A second signal ends the wait for answers.

    Args:
        settings: everything that can be set.
        on_ready: called once every model answers.
        open_servable: how embedded models are opened; None: with TensorFlow.

    Raises:
        StartError: if it cannot start.
    """
    clock = _PreciseClock(asyncio.get_running_loop())
    try:
        with ExitStack() as resources:
            observer = _observer(settings, resources.enter_context(_tracer(settings)))
            models = _models(settings, clock, resources, open_servable, observer)
            access = _access(settings, clock)
            listener = resources.enter_context(
                _listen("REST", settings.rest_host, settings.rest_port, reuse_port=settings.reuse_port)
            )
            if settings.admin_port is not None:
                access.admin_listener = resources.enter_context(
                    _listen("ADMIN", settings.admin_host, settings.admin_port, reuse_port=settings.reuse_port)
                )
            workers = resources.enter_context(_threads("worker", _worker_threads(settings)))
            service = _build(settings, clock, workers, models, observer, access)
            grpc_port = await _start_rpc(service.rpc, settings)
            service.app.state.grpc_port = grpc_port  # for the code that the demo page shows
            addresses = Addresses(
                rest=listener.getsockname()[:2],
                grpc=(settings.grpc_host, grpc_port),
                admin=None if access.admin_listener is None else access.admin_listener.getsockname()[:2],
                tls=access.tls is not None,
                keys=access.doorkeeper is not None,
            )
            await service.live(listener, access.admin_listener, lambda: on_ready(addresses))
    except (ServableError, ManagementError, FileError) as error:
        raise StartError(str(error)) from error
    logger.info("stopped")


@asynccontextmanager
async def local_service(
    settings: Settings, *, open_servable: Callable[[Servable], Run] | None = None
) -> AsyncIterator["LocalService"]:
    """The use case without any server, for a command that asks it directly; every model answers.

    Args:
        settings: as for the service; addresses and ports are not used.
        open_servable: how embedded models are opened; None: with TensorFlow.

    Raises:
        StartError: if the models cannot be had.
    """
    clock = _PreciseClock(asyncio.get_running_loop())
    try:
        with ExitStack() as resources:
            observer = _observer(settings, None)
            models = _models(settings, clock, resources, open_servable, observer)
            workers = resources.enter_context(_threads("worker", _worker_threads(settings)))
            service = _build(settings, clock, workers, models, observer, _Access())
            try:
                await models.come_up()
                yield LocalService(service.predictor, service.streams, models.backend, clock)
            finally:
                await models.close()
    except (ServableError, ManagementError, FileError) as error:
        raise StartError(str(error)) from error


@dataclass(frozen=True, slots=True)
class LocalService:
    """The use case, to be asked directly. Deadlines are in the clock's time."""

    predictor: Predictor
    streams: Streams
    backend: Backend
    clock: Clock


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the service listens: one host and port for each protocol, and what it takes to be heard there."""

    rest: tuple[str, int]
    grpc: tuple[str, int]
    admin: tuple[str, int] | None = None
    tls: bool = False
    keys: bool = False


@dataclass(slots=True)
class _EmbeddedModels:
    """Models in this process."""

    backend: EmbeddedBackend
    repository: Path

    async def come_up(self) -> None:
        await self._load()

    async def follow(self) -> None:
        await follow(
            self._load,
            every_s=_LOOK_FOR_MODELS_EVERY_S,
            what="model repository",
            expected=(ServableError, ServiceError),
        )

    async def _load(self) -> bool:
        return await self.backend.load(await asyncio.to_thread(version_folders, self.repository))

    async def unavailable(self) -> Collection[tuple[str, int | None, str]]:
        return ()

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _RemoteModels:
    """Models on TensorFlow Serving."""

    backend: TensorFlowServingBackend

    async def come_up(self) -> None:
        await self.backend.start()
        await self.backend.wait_until_ready()

    async def follow(self) -> None:
        """Nothing to do: the backend has followed the model servers since it was started."""

    async def unavailable(self) -> Collection[tuple[str, int | None, str]]:
        return await self.backend.unavailable()

    async def close(self) -> None:
        await self.backend.stop()


def _models(
    settings: Settings,
    clock: Clock,
    resources: ExitStack,
    open_servable: Callable[[Servable], Run] | None,
    observer: PrometheusObserver,
) -> Models:
    if settings.backend == "tensorflow_serving":
        return _remote_models(settings, clock, observer)
    version_folders(settings.model_repo)  # an empty repository ends the start before anything listens
    backend = EmbeddedBackend(
        open_servable=open_servable or _TensorFlow(settings.tensorflow_threads, settings.tensorflow_precision),
        inference=resources.enter_context(_threads("inference", BATCHES_AT_ONCE)),
        versions=settings.versions_in_memory,
        loading=resources.enter_context(_threads("loading", 1)),
        warm_up_sizes=[size for size in _WARM_UP_SIZES if size <= settings.max_batch_size],
    )
    return _EmbeddedModels(backend, settings.model_repo)


def _remote_models(settings: Settings, clock: Clock, observer: PrometheusObserver) -> _RemoteModels:
    if settings.tfs_batching_file is not None:
        largest = largest_batch(settings.tfs_batching_file)
        if settings.max_batch_size > largest:
            raise StartError(
                f"HANDPOSE_MAX_BATCH_SIZE={settings.max_batch_size}: must not be above max_batch_size={largest} in"
                f" {settings.tfs_batching_file}, which is all that TensorFlow Serving takes"
            )
    backend = TensorFlowServingBackend(
        settings.tfs_addresses,
        repository=settings.model_repo,
        clock=clock,
        traceparent=traceparent,
        config_file=settings.tfs_config_file,
        on_batch_too_large=observer.batch_too_large,
    )
    return _RemoteModels(backend)


def managed_servers(
    addresses: tuple[str, ...], *, config_file: Path, repository: Path, patience_s: float = 300.0
) -> ManagedServers:
    """What `python -m service models` lists, promotes and rolls back; the arguments are those of `ManagedServers`."""

    def backend_on(address: str, kind: Kind) -> TensorFlowServingBackend:
        names, clock = {kind: MODEL_NAMES[kind]}, asyncio.get_running_loop()
        return TensorFlowServingBackend([address], repository=repository, clock=clock, names=names, labels=())

    return ManagedServers(addresses, config_file, repository, backend_on, patience_s)


@dataclass(slots=True)
class _Access:
    """Who is let in: keys and certificates, where there are any, and a listener for whoever runs the service."""

    doorkeeper: Doorkeeper | None = None
    key_file: FollowedFile[list[ApiKey]] | None = None
    tls: TlsFiles | None = None
    admin_listener: socket.socket | None = None


def _access(settings: Settings, clock: Clock) -> _Access:
    """Read the keys and certificates, and say what an operator may not have meant."""
    access = _Access()
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        access.tls = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
        access.tls.warn()
    if settings.api_keys_file is not None:
        access.doorkeeper = Doorkeeper(settings.access(), time=clock.time)
        access.key_file = FollowedFile(settings.api_keys_file, parse_keys, access.doorkeeper.follow, what="keys")
        access.key_file.load()
        if not access.doorkeeper.names:
            logger.warning("there is no key in %s: nobody is let in", settings.api_keys_file)
    if settings.listens_beyond_this_machine():
        if access.doorkeeper is None and settings.tls_client_ca_file is None:
            logger.warning(
                "anybody who can connect may use the service: HANDPOSE_API_KEYS_FILE names a file of keys to ask for"
            )
        elif access.doorkeeper is not None and access.tls is None:
            logger.warning("keys travel as plain text, unless something in front does TLS: see HANDPOSE_TLS_CERT_FILE")
    return access


def _build(
    settings: Settings,
    clock: Clock,
    workers: Executor,
    models: Models,
    observer: PrometheusObserver,
    access: _Access,
) -> Service:
    backend = models.backend
    router = Router(settings.default_reference())
    routing_file: FollowedFile[RoutingRules] | None = None
    if settings.routing_file is not None:
        routing_file = FollowedFile(settings.routing_file, parse_rules, router.follow, what="routing rules")
        routing_file.load()
    decoder = ImageDecoder(
        workers,
        clock,
        threads=_worker_threads(settings),
        max_pixels=settings.max_pixels,
        large_images_bytes=settings.decode_bytes,
    )
    predictor = Predictor(
        backend=backend,
        router=router,
        decoder=decoder,
        observer=observer,
        clock=clock,
        batching=settings.batching(),
        max_rois=settings.max_rois,
        shadow=Shadow(observer, clock),
    )
    readiness = Readiness(backend)
    app = create_app(
        predictor=predictor,
        decoder=decoder,
        backend=backend,
        observer=observer,
        metrics=observer.exposition,
        not_ready=readiness,
        clock=clock,
        default_model=lambda: router.default,
        policy=settings.rest(),
        doorkeeper=access.doorkeeper,
    )
    admin_app = create_admin_app(metrics=observer.exposition, not_ready=readiness, clock=clock)
    uploads = ByteBudget(settings.upload_bytes)
    streams = Streams(predictor.estimate, clock=clock, observer=observer, limits=settings.streams(), uploads=uploads)
    app.include_router(stream_routes(streams=streams, observer=observer, clock=clock))
    rpc = RpcServer(
        HandPoseServicer(
            estimate=predictor.estimate,
            streams=streams,
            models=backend.models,
            clock=clock,
            observer=observer,
            policy=settings.rpc(),
        ),
        HealthServicer(not_ready=readiness, models=backend.models, service_names=(SERVICE_NAME,)),
        settings.rpc_server(),
        observer=observer,
        doorkeeper=access.doorkeeper,
        credentials=None if access.tls is None else server_credentials(access.tls.now),
        uploads=uploads,
    )
    servers = [_server(HangUpWhenStopping(app, readiness), settings, uploads, access.tls)]
    if access.admin_listener is not None:
        servers.append(_server(admin_app, settings, uploads, None))
    files = [file for file in (routing_file, access.key_file, access.tls) if file is not None]
    return Service(
        predictor=predictor,
        streams=streams,
        models=models,
        app=app,
        rest=servers[0],
        admin=servers[1] if servers[1:] else None,
        rpc=rpc,
        watches=[file.watch for file in files],
        readiness=readiness,
        observer=observer,
        grace_period_s=settings.grace_period_s,
    )


async def _start_rpc(server: RpcServer, settings: Settings) -> int:
    """Listen for gRPC; the port. Raises StartError if that cannot be."""
    try:
        return await server.start()
    except RuntimeError as error:
        address = f"{settings.grpc_host}:{settings.rpc_server().port}"
        raise StartError(f"cannot listen for gRPC on {address}; HANDPOSE_GRPC_PORT chooses another port") from error


class _Server(LimitedServer):
    """Uvicorn without its own idea of signals: the whole service stops in order, not one server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: ASGIApp, settings: Settings, uploads: ByteBudget, tls: TlsFiles | None) -> _Server:
    limits = settings.connections()
    return _Server(
        uvicorn.Config(
            UploadGuard(app, rate=limits.rate, uploads=uploads),
            **protocols(limits, uploads, max_message_bytes=settings.max_frame_bytes),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # the application writes its own, with the request's id
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # only handed to call_later
            ssl_context_factory=None if tls is None else lambda _config, _default: tls.server_context(),
        ),
        handshake_timeout_s=limits.head_timeout_s,
    )


class _TensorFlow:
    """Opens servables. TensorFlow takes seconds to import, so that is left to the thread that opens the first."""

    def __init__(self, threads: int, precision: Precision) -> None:
        self._threads = threads
        self._precision = precision
        self._is_configured = False
        self._has_chosen = False

    def __call__(self, servable: Servable) -> Run:
        if not self._is_configured:
            logger.info("starting TensorFlow")
            with native_log_filtered():
                from service.backends import savedmodel

                savedmodel.configure(threads=self._threads, at_once=BATCHES_AT_ONCE)
            gc.freeze()  # TensorFlow's 470,000 objects stay; to search them for garbage would stop requests for 0.2 s
            self._is_configured = True
        from service.backends import savedmodel

        run = savedmodel.open_servable(servable)
        if not self._has_chosen:
            self._choose_precision(run, servable.card.input_size)
            self._has_chosen = True
        return run

    def _choose_precision(self, run: Run, input_size: int) -> None:
        from service.backends import savedmodel

        bfloat16 = self._precision == "bfloat16"
        if self._precision == "auto" and multiplies_bfloat16():
            logger.info("finding out whether inference is quicker in bfloat16")
            bfloat16 = savedmodel.bfloat16_is_quicker(run, input_size)
        savedmodel.multiply_in(bfloat16=bfloat16)
        logger.info("inference multiplies in %s", "bfloat16" if bfloat16 else "float32")


class _PreciseClock:
    """Implements `service.inference.ports.Clock` for uvloop, whose own `time()` only has milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, when - time.monotonic()), callback)


def _worker_threads(settings: Settings) -> int:
    return settings.worker_threads or os.cpu_count() or 1


@contextmanager
def _threads(name: str, number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; on leaving, what has not begun is dropped."""
    pool = ThreadPoolExecutor(number, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _tracer(settings: Settings) -> Iterator[Tracer | None]:
    """What keeps spans, if the settings ask for it; on leaving, what has not been sent is sent. Raises StartError."""
    url = settings.trace_url()
    if url is None:
        yield None
        return
    try:
        from service.observability.otlp import OtlpExport
    except ImportError as error:
        raise StartError(f"HANDPOSE_TRACE_ENDPOINT needs pip install '.[tracing]' in a checkout: {error}") from error
    export = OtlpExport(url, sample_ratio=settings.trace_sample_ratio)
    try:
        yield export.tracer
    finally:
        export.close(_LAST_TRACES_S)


def _observer(settings: Settings, tracer: Tracer | None) -> PrometheusObserver:
    try:
        observer = PrometheusObserver(CollectorRegistry(), tracer)
    except OSError as error:
        raise StartError(f"PROMETHEUS_MULTIPROC_DIR cannot be used: {error}") from error
    observer.backend_named(settings.backend, max_queue=settings.max_queue)
    return observer


@contextmanager
def _listen(setting: str, host: str, port: int, *, reuse_port: bool) -> Iterator[socket.socket]:
    """A socket that listens. Raises StartError, naming the settings HANDPOSE_<setting>_..., if that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=reuse_port)
    except OSError as error:
        hints = {
            errno.EADDRINUSE: f"the port is in use; HANDPOSE_{setting}_PORT chooses another",
            errno.EACCES: "not permitted; ports below 1024 usually need privileges",
            errno.EADDRNOTAVAIL: f"this machine has no such address; see HANDPOSE_{setting}_HOST",
        }
        reason = hints.get(error.errno or 0, error.strerror or str(error))
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from error
    with listener:
        yield listener
