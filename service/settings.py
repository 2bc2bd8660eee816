"""All that can be set from outside, read once from the environment and unpacked into small values.

Every setting is an environment variable with the prefix HANDPOSE_. `service.__main__` hands the environment to
`Settings.from_environment`; nobody else reads it. What the layers below receive are their own small values
(`BatchingPolicy`, `Limits`, ...), never this class.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.inference.batching import BatchingPolicy
from service.inference.errors import UnknownModelError
from service.inference.models import ModelReference
from service.inference.predictor import Limits
from service.inference.streaming import StreamLimits
from service.rest.policy import RestPolicy
from service.rpc.server import ServerOptions
from service.rpc.servicer import RpcPolicy

PREFIX: Final = "HANDPOSE_"

Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsError(ValueError):
    """A setting has a value that is not allowed. The message is one line: name, value, what is allowed."""


class Settings(BaseModel):
    """The gateway's settings; each field's description says what it does and in which unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rest_host: str = Field("127.0.0.1", min_length=1, description="address that REST listens on")
    rest_port: int = Field(8000, ge=0, le=65535, description="port that REST listens on; 0 lets the system choose")
    grpc_host: str = Field("127.0.0.1", min_length=1, description="address that gRPC listens on")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port that gRPC listens on; none: the one after REST's"
    )

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
        None, description="TensorFlow Serving's model configuration, for python -m service models"
    )
    routing_file: Path | None = Field(None, description="YAML file of routing rules, followed when it changes")

    model_repo: Path = Field(Path("model_repo"), description="folder of servables: <model>/<version>/")
    versions_in_memory: int = Field(1, ge=1, le=16, description="newest versions of each model that are loaded")
    default_model: str = Field("lightweight", description="model of requests that name none: variant[@version|@label]")

    max_batch_size: int = Field(8, ge=1, le=256, description="crops in one micro-batch at the most")
    max_wait_ms: float = Field(
        5.0,
        ge=0,
        le=10_000,
        description="how long a crop waits for company, in milliseconds; only where more than one batch may run at a"
        " time (backend tensorflow_serving): in this process a batch leaves once the one before it is done",
    )
    max_queue: Count = Field(256, description="crops that may wait for one model")

    max_body_bytes: Count = Field(20 * 1024 * 1024, description="size of a request's body, in bytes")
    max_pixels: Count = Field(50_000_000, description="width x height of an image")
    max_rois: Count = Field(16, description="regions of interest in one request")
    max_batch_images: Count = Field(32, description="images in one batch request")
    max_streams: Count = Field(256, description="streams open at the same time")

    default_deadline_ms: Milliseconds = Field(10_000, description="time for a request that sets none, in milliseconds")
    max_deadline_ms: Milliseconds = Field(60_000, description="most time that a request may ask for, in milliseconds")
    grace_period_s: float = Field(
        20.0, gt=0, le=3600, description="time to answer accepted requests after SIGTERM, in seconds"
    )

    worker_threads: int = Field(0, ge=0, le=256, description="threads that decode images; 0: one a CPU core")
    tensorflow_threads: int = Field(0, ge=0, le=256, description="threads of one inference; 0: one a CPU core")

    trace_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+",
        description="OTLP/HTTP collector of traces, http(s)://host:port; needs the extra tracing; none: no traces",
    )
    trace_sample_ratio: float = Field(
        0.1, ge=0, le=1, description="share of requests that is traced where the caller's traceparent does not decide"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="one readable line, or one JSON object, an event")

    @field_validator("default_model")
    @classmethod
    def _names_a_model(cls, value: str) -> str:
        try:
            ModelReference.parse(value)
        except UnknownModelError as error:
            raise ValueError(error.detail) from error
        return value

    @field_validator("tfs_addresses", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("backend", "log_level", "log_format", mode="before")
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _deadlines_fit(self) -> Self:
        if self.default_deadline_ms > self.max_deadline_ms:
            raise ValueError(
                f"{PREFIX}DEFAULT_DEADLINE_MS={self.default_deadline_ms:g}: must not be above"
                f" {PREFIX}MAX_DEADLINE_MS={self.max_deadline_ms:g}"
            )
        return self

    @model_validator(mode="after")
    def _rois_fit_the_queue(self) -> Self:
        if self.max_rois > self.max_queue:
            raise ValueError(
                f"{PREFIX}MAX_ROIS={self.max_rois}: must not be above {PREFIX}MAX_QUEUE={self.max_queue}, because a"
                " request's rois wait together"
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
            max_wait_s=self.max_wait_ms / 1000,
            max_queue=self.max_queue,
            # A model server computes one batch while the next one travels; in this process they would share the cores.
            max_running=2 if self.backend == "tensorflow_serving" else 1,
        )

    def limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, max_rois=self.max_rois)

    def rest(self) -> RestPolicy:
        return RestPolicy(
            max_body_bytes=self.max_body_bytes,
            max_batch_images=self.max_batch_images,
            max_rois=self.max_rois,
            default_deadline_s=self.default_deadline_ms / 1000,
            max_deadline_s=self.max_deadline_ms / 1000,
        )

    def rpc(self) -> RpcPolicy:
        return RpcPolicy(
            max_body_bytes=self.max_body_bytes,
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


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings of the gateway but are none: perhaps misspelt."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _in_one_line(error: ValidationError) -> str:
    """The first thing that is wrong: HANDPOSE_NAME=value: what is allowed."""
    first = error.errors(include_url=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    return f"{name}={first['input']}: {message[:1].lower()}{message[1:]}"
