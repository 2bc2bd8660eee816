"""What a call says of itself before its message: metadata, key, address and request id."""

from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import unquote

import grpc

from service.inference.errors import FieldError, InvalidInputError

Context = grpc.aio.ServicerContext[Any, Any]

_NAMES: Final = ("x-model-variant", "x-client-id", "x-request-id", "traceparent", "authorization")
_OF_OURS: Final = ("x-model-", "x-request-timeout")  # no proxy's names begin so

REQUEST_ID: Final[ContextVar[str]] = ContextVar("handpose_rpc_request_id")
"""The id of the current call, chosen once by the guard."""


def metadata_of(context: Context) -> dict[str, str]:
    """The call's metadata, without binary entries."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def check_names(metadata: dict[str, str]) -> None:
    """Raises InvalidInputError for a name that looks like one of ours and is not read."""
    for name in metadata:
        if name.startswith(_OF_OURS) and name not in _NAMES:
            message = f"is not read; what is: {', '.join(_NAMES)}, and the call's deadline"
            raise InvalidInputError(f"{name} {message}", code="unknown_metadata", errors=[FieldError(name, message)])


def key_in(metadata: dict[str, str]) -> str | None:
    """The API key that the call shows, if any."""
    scheme, _, key = metadata.get("authorization", "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, "ipv4:192.0.2.1:50000" or "ipv6:%5B::1%5D:50000"; else the name itself."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
