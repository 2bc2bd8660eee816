"""Messages that are no messages: bytes that protobuf cannot read are the caller's mistake, and are answered as such.

gRPC itself would answer UNKNOWN and log a traceback, as if something had failed here. Nothing else is checked: what a
message says is the servicer's business.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from service.inference.errors import InvalidInputError
from service.inference.requests import request_id_from
from service.rpc.status import STATUS_DETAILS, STATUS_OF, rich_status

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, with the named tuple's _replace that its type does not tell of


class RefuseUnreadable(grpc.aio.ServerInterceptor):
    """Has every method answer INVALID_ARGUMENT to a message that cannot be read. Belongs last: next to the methods."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        guarded = _with_readable_stream(behaviour) if handler.request_streaming else _with_readable_message(behaviour)
        return handler._replace(request_deserializer=_deserialiser(handler.request_deserializer), **{kind: guarded})


_KINDS: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
_UNREADABLE: Final = object()
"""Stands for a message that cannot be read, on its way from where that shows to where it can be answered."""


def _deserialiser(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def deserialise(data: bytes) -> object:
        try:
            return read(data)
        except DecodeError:
            return _UNREADABLE

    return deserialise


def _with_readable_message(behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            if request is _UNREADABLE:
                await _refuse(context)
            async for answer in behaviour(request, context):
                yield answer

        return answers

    async def answer(request: Any, context: Context) -> Any:
        if request is _UNREADABLE:
            await _refuse(context)
        return await behaviour(request, context)

    return answer


def _with_readable_stream(behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
    """The method itself meets the error in its stream, after what came before; one that lets it through is ended."""
    if inspect.isasyncgenfunction(behaviour):

        async def answers(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                async for answer in behaviour(_readable(requests), context):
                    yield answer
            except InvalidInputError:
                await _refuse(context)

        return answers

    async def answer(requests: AsyncIterator[Any], context: Context) -> Any:
        return await behaviour(_readable(requests), context)

    return answer


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _UNREADABLE:
            raise _error()
        yield request


async def _refuse(context: Context) -> None:
    error = _error()
    given = dict(context.invocation_metadata() or ()).get("x-request-id")
    request_id = request_id_from(given if isinstance(given, str) else None)
    details = rich_status(error, request_id).SerializeToString()
    await context.abort(STATUS_OF[error.kind], error.detail, ((STATUS_DETAILS, details), ("x-request-id", request_id)))


def _error() -> InvalidInputError:
    return InvalidInputError("the message is not of the type that this method takes", code="unreadable_message")
