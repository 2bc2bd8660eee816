"""The door of the gRPC server: who calls is found out before a message is read.

Health checks need no key, for whoever asks whether a service lives has none; `service.rpc.health_bounds` bounds them.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import unquote

import grpc

from service.inference.access import Caller, Doorkeeper, asked_by
from service.inference.errors import ServiceError
from service.inference.requests import request_id_from
from service.rpc.health_bounds import HEALTH
from service.rpc.status import abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which is generic in its type only

_ONE_IMAGE_AT_LEAST: Final = ("/Estimate", "/EstimateBatch")
"""Calls that cost an image before it is known what they hold; the frames of streams are counted one by one."""


class RefusalObserver(Protocol):
    """Is told of calls that ended at the door. Must be quick and must not raise."""

    def image_answered(self, model: None, asked_for: str | None, code: str, seconds: float) -> None: ...


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Admits calls as the doorkeeper says, and runs them in their caller's context.

    Args:
        doorkeeper: knows the keys.
        observer: is told of refused calls.
    """

    def __init__(self, doorkeeper: Doorkeeper, observer: RefusalObserver) -> None:
        self._doorkeeper = doorkeeper
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler behind the door."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(HEALTH):
            return handler
        images = 1 if method.endswith(_ONE_IMAGE_AT_LEAST) else 0

        # Whatever the method is, it is handled as one of streams: gRPC reads no message of those by itself.
        async def guarded(messages: Any, context: Context) -> None:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            try:
                caller = self._admit(metadata.get("authorization"), context, images)
            except ServiceError as error:
                self._observer.image_answered(None, metadata.get("x-model-variant"), error.code, 0.0)
                await abort(context, error, request_id_from(metadata.get("x-request-id")))
            with asked_by(caller):
                await _handle(handler, messages, context)

        return grpc.stream_stream_rpc_method_handler(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _admit(self, authorization: str | None, context: Context, images: int) -> Caller:
        caller = self._doorkeeper.admit(authorization, host_of(context.peer()))
        if images:
            caller.take(images)
        return caller


async def _handle(handler: Handler, messages: Any, context: Context) -> None:
    if handler.request_streaming:
        request = messages
    else:
        request = await anext(aiter(messages), None)
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call holds no message")
    if handler.response_streaming:
        behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        answers = behaviour(request, context)
        if hasattr(answers, "__aiter__"):
            async for answer in answers:
                await context.write(answer)
        else:
            await answers
    else:
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        await context.write(await behaviour(request, context))


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, "ipv4:192.0.2.1:50000" or "ipv6:%5B::1%5D:50000"; else the name itself."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
