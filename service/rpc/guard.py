"""What a gRPC call must pass before its method sees it: one interceptor for access, size, time, memory and form.

gRPC receives a message as a whole before its size is known. So only as many are received at a time as there is memory
for if each had the largest size; further calls wait for a turn, and their bytes stay with their senders. Messages reach
the guard as bytes: it counts them against the upload budget until the call has its answer, and parses them. Health
checks need no key, so they have bounds of their own and take nothing from other calls.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Final, Literal
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from service.inference.access import Caller, Doorkeeper, asked_by
from service.inference.byte_budget import ByteBudget
from service.inference.errors import InvalidInputError, OverloadedError, ServiceError, TooLargeError, TooSlowError
from service.inference.requests import RequestObserver, request_id_from
from service.rpc.status import abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which has no parameters at run time

_HEALTH: Final = "/grpc.health.v1.Health/"
_COSTS_AN_IMAGE: Final = ("/Estimate", "/EstimateBatch")
"""Methods that cost an image before it is known what they hold; the frames of streams are counted one by one."""

_HELD_TWICE: Final = 2  # as bytes, and as the message parsed from them
_RETRY_S: Final = 1.0
HEALTH_TURNS: Final = 8
"""Health checks that are received at a time, each perhaps as large as the largest message."""

_HEALTH_MESSAGE_S: Final = 0.1  # a question's bytes come right behind its head
_HEALTH_TURN_S: Final = 10.0
_HEALTH_MESSAGE_BYTES: Final = 512  # it holds a name
_MAX_CHECKS: Final = 64
_MAX_WATCHES: Final = 64


class CallGuard(grpc.aio.ServerInterceptor):
    """Guards every method of a server.

    Args:
        uploads: what messages may hold, from their arrival to the call's answer.
        observer: is told of calls without a valid key.
        doorkeeper: knows the keys; None: calls need none.
        max_message_bytes: the largest message.
        max_streams: calls at a time whose requests are streams: each may be receiving a message at any time.
        message_timeout_s: for the only message of a call, once it has its turn to send it.
        turn_timeout_s: for that turn; longer, so that calls behind silent ones get their turn after them.
    """

    def __init__(
        self,
        uploads: ByteBudget,
        observer: RequestObserver,
        doorkeeper: Doorkeeper | None,
        *,
        max_message_bytes: int,
        max_streams: int,
        message_timeout_s: float,
        turn_timeout_s: float,
    ) -> None:
        self._uploads = uploads
        self._observer = observer
        self._doorkeeper = doorkeeper
        self._calls = _Receiver(max(1, uploads.limit // max_message_bytes), turn_timeout_s, message_timeout_s)
        self._questions = _Receiver(HEALTH_TURNS, _HEALTH_TURN_S, min(_HEALTH_MESSAGE_S, message_timeout_s))
        self._streams = _Slots(max_streams, "streams")
        self._checks = _Slots(_MAX_CHECKS, "health checks")
        self._watches = _Slots(_MAX_WATCHES, "health watches")

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, guarded."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner, method = handler, handler_call_details.method

        async def guarded(messages: AsyncIterator[bytes], context: Context) -> None:
            metadata = metadata_of(context)
            try:
                if method.startswith(_HEALTH):
                    await self._serve_health(inner, messages, context)
                else:
                    with self._admitted(method, context, metadata):
                        await self._serve(inner, messages, context)
            except ServiceError as error:
                await abort(context, error, request_id_from(metadata.get("x-request-id")))

        # gRPC does not read by itself from a method whose requests are a stream; a call with one message looks alike.
        return grpc.stream_stream_rpc_method_handler(guarded, response_serializer=handler.response_serializer)

    async def _serve(self, handler: Handler, messages: AsyncIterator[bytes], context: Context) -> None:
        if handler.request_streaming:
            async with self._streams, aclosing(_parsed(handler, messages)) as requests:
                await _answer(handler, requests, context)
            return
        data = await self._calls.only_message(messages)
        with self._uploads.hold(_HELD_TWICE * len(data)):
            await _answer(handler, _parse(handler, data), context)

    async def _serve_health(self, handler: Handler, messages: AsyncIterator[bytes], context: Context) -> None:
        data = await self._questions.only_message(messages)
        if len(data) > _HEALTH_MESSAGE_BYTES:
            raise TooLargeError(
                f"a health check's message has {len(data)} bytes, and at most {_HEALTH_MESSAGE_BYTES} are allowed"
            )
        async with self._watches if handler.response_streaming else self._checks:
            await _answer(handler, _parse(handler, data), context)

    def _admitted(self, method: str, context: Context, metadata: dict[str, str]) -> AbstractContextManager[object]:
        """The block runs for the caller of this key. Raises UnauthenticatedError or OverloadedError."""
        if self._doorkeeper is None:
            return nullcontext()
        try:
            caller: Caller = self._doorkeeper.admit(_key_in(metadata), host_of(context.peer()))
            if method.endswith(_COSTS_AN_IMAGE):
                caller.take()
        except ServiceError as error:
            self._observer.image_answered(None, metadata.get("x-model-variant"), error.code, 0.0)
            raise
        return asked_by(caller)


class _Receiver:
    """Receives the only message of a call, a bounded number of them at a time."""

    def __init__(self, turns: int, turn_timeout_s: float, message_timeout_s: float) -> None:
        self._turns = asyncio.Semaphore(turns)
        self._turn_timeout_s = turn_timeout_s
        self._message_timeout_s = message_timeout_s

    async def only_message(self, messages: AsyncIterator[bytes]) -> bytes:
        """Raises OverloadedError, TooSlowError or InvalidInputError."""
        try:
            async with asyncio.timeout(self._turn_timeout_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise OverloadedError("too many calls are sending their messages", retry_after_s=_RETRY_S) from error
        try:
            # Closed at once, because gRPC's iterator holds the last message until it is.
            async with aclosing(aiter(messages)) as iterator, asyncio.timeout(self._message_timeout_s):  # type: ignore[type-var]
                data = await anext(iterator, None)
        except TimeoutError as error:
            raise TooSlowError(
                f"the message was not complete within {self._message_timeout_s:g} seconds", code="body_too_slow"
            ) from error
        finally:
            self._turns.release()
        if data is None:
            raise InvalidInputError("the call holds no message", code="empty_body")
        return data


class _Slots(asyncio.Semaphore):
    """At most so many at a time; further ones are refused with OverloadedError."""

    def __init__(self, most: int, what: str) -> None:
        super().__init__(most)
        self._refusal = f"{most} {what} are open, and at most {most} may be"

    async def acquire(self) -> Literal[True]:
        if self.locked():
            raise OverloadedError(self._refusal, retry_after_s=_RETRY_S)
        return await super().acquire()


def metadata_of(context: Context) -> dict[str, str]:
    """A call's metadata, without what is bytes."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, "ipv4:192.0.2.1:50000" or "ipv6:%5B::1%5D:50000"; else the name itself."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _key_in(metadata: dict[str, str]) -> str | None:
    scheme, _, key = metadata.get("authorization", "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _parse(handler: Handler, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError as error:
        detail = "the message is not of the type that this method takes"
        raise InvalidInputError(detail, code="unreadable_message") from error


async def _parsed(handler: Handler, messages: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    """The messages of a stream; an unreadable one is an error in the method's stream, after those before it."""
    async with aclosing(aiter(messages)) as iterator:  # type: ignore[type-var]
        async for data in iterator:
            yield _parse(handler, data)


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
