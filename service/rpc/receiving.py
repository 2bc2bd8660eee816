"""How many messages are received at a time, for how long each is waited for, and what they may hold.

gRPC receives a message as a whole before anybody here sees it, and how long it is, is not known until then. So only so
many are received at a time as there is memory for if each were of the largest size; further calls wait, and what they
send stays with their senders. What was received counts as an upload until the call has its answer. Health checks, who
need no key, have bounds of their own and share none of this: see `service.rpc.health_bounds`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import grpc

from service.inference.byte_budget import ByteBudget
from service.inference.errors import InvalidInputError, OverloadedError, ServiceError, TooSlowError
from service.inference.requests import request_id_from
from service.rpc.health_bounds import HEALTH, HealthBounds, HealthLimits
from service.rpc.messages import let_go, only_message
from service.rpc.status import abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which has no parameters at run time

_HELD_TWICE: Final = 2  # by the message and by the bytes that the use case gets from it
_RETRY_S: Final = 1.0


class ReceiveWithinBounds(grpc.aio.ServerInterceptor):
    """Bounds what calls receive. Belongs behind the interceptor that asks for keys: it reads the messages.

    Args:
        uploads: what messages may hold, from when they are received to their answer.
        max_message_bytes: the largest message.
        max_streams: calls at a time whose requests are streams: each may be receiving a message at any time.
        timeout_s: for the message of a call, once it is its turn to send it.
        turn_timeout_s: for that turn; longer, so that whoever waits behind silent calls gets in after them.
    """

    def __init__(
        self,
        uploads: ByteBudget,
        *,
        max_message_bytes: int,
        max_streams: int,
        timeout_s: float,
        turn_timeout_s: float,
    ) -> None:
        self._uploads = uploads
        self._turns = asyncio.Semaphore(max(1, uploads.limit // max_message_bytes))
        self._max_streams = max_streams
        self._streams = 0
        self._timeout_s = timeout_s
        self._turn_timeout_s = turn_timeout_s
        standard = HealthLimits()
        self._health = HealthBounds(replace(standard, timeout_s=min(standard.timeout_s, timeout_s)))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, which reads its message when it may."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner = handler
        method = handler_call_details.method
        if method.startswith(HEALTH):
            receive = self._health_watch if handler.response_streaming else self._health_check
        else:
            receive = self._stream if handler.request_streaming else self._single

        # gRPC reads no message by itself of a method whose requests are a stream; a call with one message looks alike.
        async def bounded(messages: AsyncIterator[Any], context: Context) -> None:
            try:
                await receive(inner, messages, context)
            except ServiceError as error:
                await abort(context, error, _request_id(context))

        return grpc.stream_stream_rpc_method_handler(
            bounded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _stream(self, handler: Handler, messages: AsyncIterator[Any], context: Context) -> None:
        if self._streams >= self._max_streams:
            raise OverloadedError(
                f"{self._streams} streams are open, and at most {self._max_streams} may be", retry_after_s=_RETRY_S
            )
        self._streams += 1
        try:
            await _answer(handler, messages, context)
        finally:
            self._streams -= 1
            await let_go(messages)

    async def _single(self, handler: Handler, messages: AsyncIterator[Any], context: Context) -> None:
        async with self._turn():
            message = await self._received(messages)
        with self._uploads.hold(_HELD_TWICE * _size_of(message)):
            await _answer(handler, message, context)

    async def _health_check(self, handler: Handler, messages: AsyncIterator[Any], context: Context) -> None:
        message = await self._health.received(messages)
        with self._health.answering(watch=False):
            await _answer(handler, message, context)

    async def _health_watch(self, handler: Handler, messages: AsyncIterator[Any], context: Context) -> None:
        message = await self._health.received(messages)
        with self._health.answering(watch=True):
            await _answer(handler, message, context)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._turn_timeout_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise OverloadedError("too many calls are sending their messages", retry_after_s=_RETRY_S) from error
        try:
            yield
        finally:
            self._turns.release()

    async def _received(self, messages: AsyncIterator[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await only_message(messages)
        except TimeoutError as error:
            raise TooSlowError(
                f"the message was not complete within {self._timeout_s:g} seconds", code="body_too_slow"
            ) from error
        if message is None:
            raise InvalidInputError("the call holds no message", code="empty_body")
        return message


async def _answer(handler: Handler, request: Any, context: Context) -> None:
    """Have a handler of whatever kind answer."""
    if not handler.response_streaming:
        unary: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        await context.write(await unary(request, context))
        return
    streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
    answers = streaming(request, context)
    if hasattr(answers, "__aiter__"):
        async for answer in answers:
            await context.write(answer)
    else:
        await answers


def _size_of(message: Any) -> int:
    """In bytes; what cannot be read has none that stay."""
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0


def _request_id(context: Context) -> str:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return request_id_from(metadata.get("x-request-id"))
