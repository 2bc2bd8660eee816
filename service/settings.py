"""All that can be set from outside, read once from the environment and unpacked into small values.

Every setting is an environment variable with the prefix HANDPOSE_. `service.__main__` hands the environment to
`Settings.from_environment`; nobody else reads it. What the layers below receive are their own small values
(`BatchingPolicy`, `Limits`, ...), never this class.
"""

import math
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.access.key_file import allowance_of
from service.inference.access import AccessPolicy
from service.inference.byte_budget import UPLOAD_BYTES
from service.inference.decoding import LARGE_IMAGES_BYTES, SMALL_IMAGE_BYTES
from service.inference.model_queue import BatchingPolicy
from service.inference.models import ModelReference
from service.inference.streaming import StreamLimits
from service.rest.policy import ConnectionLimits, RestPolicy, TransferRate
from service.routing_file import ModelName
from service.rpc.server import ServerOptions
from service.rpc.servicer import RpcPolicy

PREFIX: Final = "HANDPOSE_"

_OF_THE_CLIENT: Final = f"{PREFIX}API_KEY"

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["auto", "float32", "bfloat16"]

BATCHES_AT_ONCE: Final = 2
"""Batches of one model that run at the same time. A model server computes one while the next one travels; in this
process one fills the cores while the other is between two operations, or in one that does not fill them."""


class SettingsError(ValueError):
    """A setting has a value that is not allowed. The message is one line: name, value, what is allowed."""


class Settings(BaseModel):
    """The gateway's settings; each field's description says what it does and in which unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rest_host: str = Field("127.0.0.1", min_length=1, description="address that REST listens on")
    rest_port: int = Field(8000, ge=0, le=65535, description="port that REST listens on; 0 lets the system choose")
    grpc_host: str = Field("127.0.0.1", min_length=1, description="address that gRPC listens on")
    grpc_port: int | None = Field(None, ge=0, le=65535, description="port of gRPC; none: the one after REST's")

    reuse_port: bool = Field(
        False,
        description="several gateway processes may listen on the same ports; the system spreads connections over them."
        " PROMETHEUS_MULTIPROC_DIR, a folder that they share, makes each one's /metrics speak for all",
    )

    backend: Literal["embedded", "tensorflow_serving"] = Field(
        "embedded", description="what runs the models: this process, or TensorFlow Serving"
    )
    tfs_addresses: tuple[str, ...] = Field(
        ("127.0.0.1:8500",),
        min_length=1,
        description="TensorFlow Serving's gRPC addresses host:port, by commas; a DNS name may stand for many servers",
    )
    tfs_config_file: Path | None = Field(
        None,
        description="TensorFlow Serving's model configuration, for python -m service models; a"
        " gateway that can read it too tells which of its versions are not there",
    )
    tfs_batching_file: Path | None = Field(
        None,
        description="TensorFlow Serving's batching parameters; a MAX_BATCH_SIZE above theirs ends the start",
    )
    routing_file: Path | None = Field(None, description="YAML file of routing rules, followed when it changes")

    model_repo: Path = Field(Path("model_repo"), description="folder of servables: <model>/<version>/")
    versions_in_memory: int = Field(1, ge=1, le=16, description="newest versions of each model that are loaded")
    default_model: ModelName = Field(
        "lightweight", description="model of requests that name none: variant[@version|@label]"
    )

    max_batch_size: int = Field(8, ge=1, le=256, description="crops in one micro-batch at the most")
    max_wait_ms: float = Field(
        5.0,
        ge=0,
        le=10_000,
        description="how long a crop waits for company while another batch of its model runs, in milliseconds; only"
        " with backend tensorflow_serving: in this process a batch leaves beside another one when it is full",
    )
    max_queue: Count = Field(256, description="crops that may wait for one model")

    max_body_bytes: Count = Field(20 * 1024 * 1024, description="size of a request's body, in bytes")
    max_pixels: Count = Field(50_000_000, description="width x height of an image")
    max_rois: Count = Field(16, description="regions of interest in one request")
    max_batch_images: Count = Field(32, description="images in one batch request")
    max_streams: Count = Field(256, description="streams open at the same time")
    max_rpc_streams: Count = Field(
        64, description="of these, streams over gRPC, each of which may be receiving a message of MAX_BODY_BYTES"
    )
    max_frame_bytes: Count = Field(4 * 1024 * 1024, description="size of a WebSocket message, in bytes")

    upload_bytes: Count = Field(
        UPLOAD_BYTES,
        description="memory for bodies and frames from their first byte to their answer, all together, in bytes; where"
        " it is spent, requests get 429",
    )
    decode_bytes: Count = Field(
        LARGE_IMAGES_BYTES,
        description="memory for decoding large images, all together, in bytes; they wait for their turn. Images that"
        f" take less than {SMALL_IMAGE_BYTES >> 20} MiB are bounded by WORKER_THREADS instead",
    )

    max_connections: Count = Field(1000, description="REST and WebSocket connections; more get 503")
    max_head_bytes: int = Field(32 * 1024, ge=256, description="size of a request's line and headers, in bytes")
    max_url_bytes: int = Field(8 * 1024, ge=128, description="size of a request's target, in bytes")
    max_headers: int = Field(100, ge=8, description="headers in one request")
    head_timeout_s: Seconds = Field(10.0, description="time for a request's head, and for the handshake of TLS")
    body_timeout_s: Seconds = Field(
        20.0, description="time for a body or WebSocket message beyond what its size takes at MIN_BYTES_PER_S"
    )
    min_bytes_per_s: Count = Field(16 * 1024, description="least rate at which senders and readers are waited for")
    keep_alive_s: Seconds = Field(
        75.0,
        description="how long an idle connection stays open; longer than the usual 60 s of the proxies in front, so"
        " that they hang up and not we",
    )
    rpc_idle_s: Seconds = Field(300.0, description="how long a gRPC connection without calls stays open")
    max_rpc_calls: Count = Field(1024, description="gRPC calls at the same time, streams included")
    max_rpc_calls_per_connection: Count = Field(100, description="gRPC calls at the same time on one connection")

    default_deadline_ms: Milliseconds = Field(10_000, description="time for a request that sets none, in milliseconds")
    max_deadline_ms: Milliseconds = Field(60_000, description="most time that a request may ask for, in milliseconds")
    grace_period_s: float = Field(
        20.0, gt=0, le=3600, description="time to answer accepted requests after SIGTERM, in seconds"
    )

    worker_threads: int = Field(0, ge=0, le=256, description="threads that decode images; 0: one a CPU core")
    tensorflow_threads: int = Field(0, ge=0, le=256, description="threads of one inference; 0: one a CPU core")
    tensorflow_precision: Precision = Field(
        "auto",
        description="how this process multiplies in an inference; auto: in bfloat16 where the processor can do that and"
        " the first model turns out to be quicker so; it moves keypoints by a small fraction of a pixel",
    )

    trace_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+",
        description="OTLP/HTTP collector of traces, http(s)://host:port; needs the extra tracing; none: no traces",
    )
    trace_sample_ratio: float = Field(
        0.1, ge=0, le=1, description="share of requests that is traced where the caller's traceparent does not decide"
    )

    api_keys_file: Path | None = Field(None, description="YAML file of API keys, followed; none: no keys are needed")
    key_images_per_second: float = Field(
        0, ge=0, allow_inf_nan=False, description="images that one key may have estimated a second; 0: no limit"
    )
    key_burst: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="images of one key at once; none: two seconds' worth"
    )
    wrong_keys: Count = Field(10, description="wrong keys that one address may show before it has to wait")
    wrong_keys_per_minute: float = Field(
        30, gt=0, allow_inf_nan=False, description="wrong keys that one address may show in the long run, a minute"
    )
    metrics_open: bool = Field(False, description="/metrics needs no key where other calls do")
    admin_host: str = Field("127.0.0.1", min_length=1, description="address of the admin listener")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of a listener for /metrics, /livez and /readyz without keys or TLS; /metrics is there only"
        " then; none: no such listener",
    )

    tls_cert_file: Path | None = Field(None, description="certificate chain in PEM, followed; none: plain text")
    tls_key_file: Path | None = Field(None, description="the certificate's private key in PEM, not encrypted")
    tls_client_ca_file: Path | None = Field(
        None, description="authorities in PEM; clients must show a certificate of one of them; none: they need none"
    )
    hsts_max_age_s: int = Field(
        15_552_000, ge=0, description="seconds for which browsers shall use TLS only, sent where TLS is on; 0: not sent"
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="sites whose pages may ask from a browser: https://host[:port] by commas, or *; none: only ours",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="one readable line, or one JSON object, an event")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"origins are http(s)://host[:port], in lower case and without a path, got {origin!r}")
        return value

    @field_validator("tfs_addresses", "cors_origins", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("backend", "tensorflow_precision", "log_level", "log_format", mode="before")
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.default_deadline_ms > self.max_deadline_ms:
            raise ValueError(
                f"{PREFIX}DEFAULT_DEADLINE_MS={self.default_deadline_ms:g}: must not be above"
                f" {PREFIX}MAX_DEADLINE_MS={self.max_deadline_ms:g}"
            )
        if self.max_rois > self.max_queue:
            raise ValueError(
                f"{PREFIX}MAX_ROIS={self.max_rois}: must not be above {PREFIX}MAX_QUEUE={self.max_queue}, because a"
                " request's rois wait together"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(f"{PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE: set both or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError(f"{PREFIX}TLS_CLIENT_CA_FILE={self.tls_client_ca_file}: needs {PREFIX}TLS_CERT_FILE, too")
        if self.key_burst is not None and not self.key_images_per_second:
            raise ValueError(f"{PREFIX}KEY_BURST={self.key_burst:g}: needs {PREFIX}KEY_IMAGES_PER_SECOND, too")
        if 2 * max(self.max_body_bytes, self.max_frame_bytes) > self.upload_bytes:
            raise ValueError(
                f"{PREFIX}UPLOAD_BYTES={self.upload_bytes}: must be at least twice {PREFIX}MAX_BODY_BYTES="
                f"{self.max_body_bytes} and {PREFIX}MAX_FRAME_BYTES={self.max_frame_bytes}, because gRPC's requests are"
                " held twice"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings from environment variables; those that are empty count as not set.

        Raises:
            SettingsError: if one has a value that is not allowed.
        """
        given: dict[str, Any] = {
            name: text for name in cls.model_fields if (text := environment.get(f"{PREFIX}{name.upper()}", "").strip())
        }
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_in_one_line(error)) from error

    def batching(self) -> BatchingPolicy:
        return BatchingPolicy(
            max_batch_size=self.max_batch_size,
            # Small batches would only share the cores: for them it is quicker to wait and then to leave as one.
            max_wait_s=self.max_wait_ms / 1000 if self.backend == "tensorflow_serving" else math.inf,
            max_queue=self.max_queue,
            max_running=BATCHES_AT_ONCE,
        )

    def rest(self) -> RestPolicy:
        return RestPolicy(
            max_body_bytes=self.max_body_bytes,
            max_batch_images=self.max_batch_images,
            max_rois=self.max_rois,
            default_deadline_s=self.default_deadline_ms / 1000,
            max_deadline_s=self.max_deadline_ms / 1000,
            metrics=self.admin_port is None,
            metrics_open=self.metrics_open,
            cors_origins=self.cors_origins,
            hsts_s=self.hsts_max_age_s if self.tls_cert_file is not None else 0,
        )

    def access(self) -> AccessPolicy:
        return AccessPolicy(
            allowance=allowance_of(self.key_images_per_second, self.key_burst),
            failures=self.wrong_keys,
            failures_per_second=self.wrong_keys_per_minute / 60,
        )

    def listens_beyond_this_machine(self) -> bool:
        """Whether others than processes on this machine can connect."""
        return not all(_is_loopback(host) for host in (self.rest_host, self.grpc_host))

    def rpc(self) -> RpcPolicy:
        return RpcPolicy(
            max_batch_images=self.max_batch_images,
            default_deadline_s=self.default_deadline_ms / 1000,
            max_deadline_s=self.max_deadline_ms / 1000,
        )

    def rpc_server(self) -> ServerOptions:
        # A REST port that the system chooses has no fixed neighbour.
        after_rest = (self.rest_port + 1) % 65536 if self.rest_port else 0
        return ServerOptions(
            host=self.grpc_host,
            port=after_rest if self.grpc_port is None else self.grpc_port,
            max_message_bytes=self.max_body_bytes,
            reuse_port=self.reuse_port,
            max_concurrent_calls=self.max_rpc_calls,
            max_calls_per_connection=self.max_rpc_calls_per_connection,
            max_streams=self.max_rpc_streams,
            message_timeout_s=self.body_timeout_s,
            turn_timeout_s=2 * self.body_timeout_s,
            handshake_timeout_s=self.head_timeout_s,
            idle_s=self.rpc_idle_s,
            max_head_bytes=self.max_head_bytes,
        )

    def connections(self) -> ConnectionLimits:
        return ConnectionLimits(
            max_connections=self.max_connections,
            max_head_bytes=self.max_head_bytes,
            max_url_bytes=self.max_url_bytes,
            max_headers=self.max_headers,
            head_timeout_s=self.head_timeout_s,
            rate=TransferRate(self.body_timeout_s, self.min_bytes_per_s),
        )

    def streams(self) -> StreamLimits:
        return StreamLimits(max_streams=self.max_streams, frame_timeout_s=self.default_deadline_ms / 1000)

    def trace_url(self) -> str | None:
        """Where traces are sent: the endpoint with OTLP's own path, unless it has one."""
        if self.trace_endpoint is None:
            return None
        has_path = bool(urlsplit(self.trace_endpoint).path.strip("/"))
        return self.trace_endpoint if has_path else self.trace_endpoint.rstrip("/") + "/v1/traces"

    def default_reference(self) -> ModelReference:
        return ModelReference.parse(self.default_model)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings of the gateway but are none: perhaps misspelt."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {_OF_THE_CLIENT}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _in_one_line(error: ValidationError) -> str:
    """The first thing that is wrong: HANDPOSE_NAME=value: what is allowed."""
    first = error.errors(include_url=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    return f"{name}={first['input']}: {message[:1].lower()}{message[1:]}"
