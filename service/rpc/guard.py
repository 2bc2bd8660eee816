"""What a gRPC call passes before and after its method: one interceptor for access, time, memory, form and status.

    authenticate → wait for a turn to receive → receive in time → hold the bytes → parse → call the method → answer

gRPC receives a message as a whole before its size is known. So only as many are received at a time as there is memory
for if each had the largest size; further calls wait for a turn, and their bytes stay with their senders. A received
message counts against the upload budget until the call has its answer.

Health checks need no key, so they have bounds of their own and take nothing from other calls. Their message follows
directly behind the call's metadata. A call that does not send it loses its turn soon, and the newest call is the next
to have one: silent calls, however many are open, do not keep a probe from its answer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from service.inference.access import Doorkeeper, asked_by
from service.inference.byte_budget import ByteBudget
from service.inference.errors import InvalidInputError, ServiceError, TooLargeError, TooSlowError
from service.inference.requests import RequestObserver, request_id_from
from service.rpc.metadata import REQUEST_ID, Context, check_names, host_of, key_in, metadata_of
from service.rpc.status import Ending, ending_of
from service.rpc.turns import NewestFirst, Slots, turn

Handler = Any  # grpc.RpcMethodHandler, which has no parameters at run time

_HEALTH: Final = "/grpc.health.v1.Health/"
_COSTS_AN_IMAGE: Final = ("/Estimate", "/EstimateBatch")
"""Methods that cost an image before it is known what they hold; the frames of streams are counted one by one."""

_COPIES: Final = 2  # the bytes and the message parsed from them, then the message and the image taken from it

HEALTH_TURNS: Final = 4
"""Health checks that are received at a time, each perhaps as large as the largest message."""

_HEALTH_MESSAGE_BYTES: Final = 512  # it holds a name
_HEALTH_TURN_S: Final = 1.0
_HEALTH_MESSAGE_S: Final = 0.5
_HEALTH_MESSAGE_BUSY_S: Final = 0.1  # while all turns are taken
_MAX_CHECKS: Final = 64
_MAX_WATCHES: Final = 64

_log = logging.getLogger(__name__)


class CallGuard(grpc.aio.ServerInterceptor):
    """Guards every method of a server, and ends calls whose method raises a `ServiceError` with its status.

    Args:
        uploads: what messages may hold, from their arrival to the call's answer.
        observer: is told of refused calls.
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
        self._max_message_bytes = max_message_bytes
        self._message_timeout_s = message_timeout_s
        self._turn_timeout_s = turn_timeout_s
        self._turns = asyncio.Semaphore(max(1, uploads.limit // max_message_bytes))
        self._health_turns = NewestFirst(HEALTH_TURNS)
        self._streams = Slots(max_streams, "streams")
        self._checks = Slots(_MAX_CHECKS, "health checks")
        self._watches = Slots(_MAX_WATCHES, "health watches")

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, guarded."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None

        async def guarded(_messages: AsyncIterator[bytes], context: Context) -> None:
            ending: Ending | None = None
            REQUEST_ID.set(request_id_from(metadata_of(context).get("x-request-id")))
            try:
                await self._serve(handler, method, context)
            except ServiceError as error:
                ending = ending_of(error.with_traceback(None), REQUEST_ID.get())
            # The message is freed with the call only if no exception leads to it. So the error loses its traceback,
            # and `abort`, whose exception gRPC keeps, is not called in the `except`.
            if ending is not None:
                await context.abort(*ending)

        # gRPC does not read by itself from a method whose requests are a stream; a call with one message looks alike.
        return grpc.stream_stream_rpc_method_handler(guarded, response_serializer=handler.response_serializer)

    async def _serve(self, handler: Handler, method: str, context: Context) -> None:
        async with AsyncExitStack() as held:
            if method.startswith(_HEALTH):
                request = await self._health_request(handler, context, held)
            else:
                request = await self._request(handler, method, context, held)
            await _answer(handler, request, context)

    async def _request(self, handler: Handler, method: str, context: Context, held: AsyncExitStack) -> Any:
        """The parsed message, or the stream of them."""
        metadata, began = metadata_of(context), time.monotonic()
        try:
            if self._doorkeeper is not None:
                caller = self._doorkeeper.admit(key_in(metadata), host_of(context.peer()))
                if method.endswith(_COSTS_AN_IMAGE):
                    caller.take()
                held.enter_context(asked_by(caller))
            check_names(metadata)
            if handler.request_streaming:
                await held.enter_async_context(self._streams)
                return _ParsedStream(context, lambda data: self._parse(handler, data))
            async with turn(self._turns, self._turn_timeout_s):
                data = await _only_message(context, self._message_timeout_s)
            held.enter_context(self._uploads.hold(_COPIES * len(data)))
            return self._parse(handler, data)
        except ServiceError as error:
            seconds = time.monotonic() - began
            self._observer.image_answered(None, metadata.get("x-model-variant"), error.code, seconds)
            more = {"code": error.code, "request_id": REQUEST_ID.get(), "client": context.peer()}
            _log.info("refused %s", method, extra=more)
            raise

    async def _health_request(self, handler: Handler, context: Context, held: AsyncExitStack) -> Any:
        async with turn(self._health_turns, _HEALTH_TURN_S):
            timeout_s = _HEALTH_MESSAGE_BUSY_S if self._health_turns.locked() else _HEALTH_MESSAGE_S
            data = await _only_message(context, min(timeout_s, self._message_timeout_s))
        if len(data) > _HEALTH_MESSAGE_BYTES:
            raise TooLargeError(
                f"a health check's message has {len(data)} bytes, and at most {_HEALTH_MESSAGE_BYTES} are allowed"
            )
        await held.enter_async_context(self._watches if handler.response_streaming else self._checks)
        return self._parse(handler, data)

    def _parse(self, handler: Handler, data: bytes) -> Any:
        most = self._max_message_bytes
        if len(data) > most:
            raise TooLargeError(f"the message has {len(data)} bytes; at most {most} are allowed", code="body_too_large")
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:
            detail = "the message is not of the type that this method takes"
            raise InvalidInputError(detail, code="unreadable_message") from error


class _ParsedStream:
    """The messages of a stream. An unreadable one is an error in the method's stream, after those before it."""

    def __init__(self, context: Context, parse: Callable[[bytes], Any]) -> None:
        self._context = context
        self._parse = parse

    def __aiter__(self) -> "_ParsedStream":
        return self

    async def __anext__(self) -> Any:
        data = await self._context.read()
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._parse(data)


async def _only_message(context: Context, timeout_s: float) -> bytes:
    # Not by gRPC's iterator, which would hold the message longer than the call.
    try:
        async with asyncio.timeout(timeout_s):
            data: object = await context.read()
    except TimeoutError as error:
        raise TooSlowError(
            f"the message was not complete within {timeout_s:g} seconds", code="body_too_slow"
        ) from error
    if not isinstance(data, bytes):  # EOF
        raise InvalidInputError("the call holds no message", code="empty_body")
    return data


async def _answer(handler: Handler, request: Any, context: Context) -> None:
    """Have a handler of any kind answer: it returns a message, yields messages, or writes them itself."""
    method = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    answers = method(request, context)
    if hasattr(answers, "__aiter__"):
        async for answer in answers:
            await context.write(answer)
    else:
        answer = await answers
        if not handler.response_streaming:
            await context.write(answer)
