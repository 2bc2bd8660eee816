"""gRPC messages on a real channel: bytes of messages as they are mutated, and messages made of hostile values.

The first bytes of an input choose the method, the metadata and whether the rest is a message as it goes over the wire
or decisions from which one is made.
"""

import asyncio
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
from google.protobuf import duration_pb2

from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.servicer import SERVICE_NAME
from tests.fuzz.gateway import Gateway, running
from tests.fuzz.reading import Reader
from tests.fuzz.targets import PATIENCE, Check, FoundError
from tests.support.images import image_bytes, picture

METHODS: Final[Sequence[str]] = (
    f"/{SERVICE_NAME}/Estimate",
    f"/{SERVICE_NAME}/EstimateBatch",
    f"/{SERVICE_NAME}/EstimateStream",
    f"/{SERVICE_NAME}/ListModels",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
KEYS: Final[Sequence[str]] = (
    "x-model-variant",
    "x-client-id",
    "x-request-id",
    "traceparent",
    "authorization",
    "grpc-trace-bin",
    "x-junk-bin",
)
_STREAMING: Final = frozenset({METHODS[2], METHODS[5]})
_NEVER: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_CALL_S: Final = 80.0 * PATIENCE
_GIVEN_UP_HERE: Final = "Internal error from Core"
"""What this side's own library makes of a write to a stream that the service has ended; the service never says it."""

_MESSAGES_AT_MOST: Final = 6


@contextmanager
def opened() -> Iterator[Check]:
    """A check of gRPC calls, with a service to call."""
    with running() as gateway:

        async def connect() -> grpc.aio.Channel:
            host, port = gateway.addresses.grpc
            return grpc.aio.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

        channel = gateway.ask(connect)

        async def leave() -> None:
            await channel.close()

        def check(data: bytes) -> None:
            _check_call(gateway, channel, Reader(data))

        try:
            yield check
        finally:
            gateway.ask(leave)


def _check_call(gateway: Gateway, channel: grpc.aio.Channel, reader: Reader) -> None:
    method = reader.choice(METHODS)
    metadata = tuple(_entry(reader) for _ in range(reader.number() % 3))
    made = reader.number() % 2
    messages: list[bytes] = []
    while reader.left and len(messages) < _MESSAGES_AT_MOST:
        streaming = method in _STREAMING
        messages.append(_message(method, reader) if made else reader.short() if streaming else reader.rest())
        if not streaming:
            break

    async def call() -> tuple[grpc.StatusCode, str]:
        return await _call(channel, method, messages or [b""], metadata)

    code, details = gateway.ask(call)
    if details == _GIVEN_UP_HERE:
        return
    if code in _NEVER:
        raise FoundError(f"{method} ended with {code}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise FoundError(f"{method} had no answer after {_CALL_S:g} s")


async def _call(
    channel: Any, method: str, messages: Sequence[bytes], metadata: Sequence[tuple[str, str | bytes]]
) -> tuple[grpc.StatusCode, str]:
    """Bytes for messages, both ways: nothing of what is sent is checked on this side."""
    if method in _STREAMING:
        stream = channel.stream_stream(method)(metadata=metadata, timeout=_CALL_S)
        writing = asyncio.create_task(_write(stream, messages))
        try:
            while (answer := await stream.read()) is not grpc.aio.EOF:
                _check_answer(method, answer)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return await stream.code(), await stream.details() or ""
    try:
        _check_answer(method, await channel.unary_unary(method)(messages[0], metadata=metadata, timeout=_CALL_S))
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def _write(stream: Any, messages: Sequence[bytes]) -> None:
    """Send them all. That the service has ended the stream meanwhile shows where its answers are read."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for message in messages:
            await stream.write(message)
        await stream.done_writing()


def _check_answer(method: str, answer: bytes) -> None:
    """Failures that an answer carries, rather than ends with."""
    problems: list[pb.Problem] = []
    if method == METHODS[1]:
        problems = [each.problem for each in pb.EstimateBatchResponse.FromString(answer).results]
    elif method == METHODS[2]:
        problems = [pb.EstimateStreamResponse.FromString(answer).problem]
    for problem in problems:
        if problem.code == "internal":
            raise FoundError(f"{method} answered {problem}")


def _entry(reader: Reader) -> tuple[str, str | bytes]:
    """One entry of the metadata, with what a client can send: printable ASCII, or any bytes in a binary key."""
    key, value = reader.choice(KEYS), reader.short()
    if key.endswith("-bin"):
        return key, value
    return key, "".join(chr(each) for each in value if 32 <= each < 127)


# Messages of hostile values


def _message(method: str, reader: Reader) -> bytes:
    match METHODS.index(method):
        case 0:
            return _estimate(reader).SerializeToString()
        case 1:
            count = reader.number() % 8
            return pb.EstimateBatchRequest(requests=[_estimate(reader) for _ in range(count)]).SerializeToString()
        case 2:
            return _stream_request(reader).SerializeToString()
        case _:
            return reader.rest()


def _estimate(reader: Reader) -> pb.EstimateRequest:
    return pb.EstimateRequest(image=_image(reader), rois=_boxes(reader), **_search(reader))


def _search(reader: Reader) -> dict[str, Any]:
    if reader.number() % 2 == 0:
        return {}
    (max_hands,) = struct.unpack("<i", reader.take(4).ljust(4, b"\0"))
    return {"max_hands": max_hands, "min_score": _float(reader), "whole": bool(reader.number() % 2)}


def _stream_request(reader: Reader) -> pb.EstimateStreamRequest:
    if reader.number() % 4 == 0:
        options = pb.StreamOptions(latest_only=bool(reader.number() % 2))
        if reader.number() % 2:
            options.tracking = bool(reader.number() % 2)
        if reader.number() % 2:
            options.smoothing.CopyFrom(
                pb.OneEuro(min_cutoff_hz=_float(reader), beta=_float(reader), derivative_cutoff_hz=_float(reader))
            )
        if reader.number() % 2:
            seconds, nanoseconds = struct.unpack("<qi", reader.take(12).ljust(12, b"\0"))
            options.frame_timeout.CopyFrom(duration_pb2.Duration(seconds=seconds, nanos=nanoseconds))
        options.MergeFrom(pb.StreamOptions(**_search(reader)))
        return pb.EstimateStreamRequest(options=options)
    frame = pb.Frame(image=_image(reader), rois=_boxes(reader))
    if reader.number() % 2:
        frame.time_s = _float(reader)
    (frame.id,) = struct.unpack("<q", reader.take(8).ljust(8, b"\0"))
    return pb.EstimateStreamRequest(frame=frame)


def _image(reader: Reader) -> bytes:
    choice = reader.number() % 4
    return reader.short() if choice == 0 else image_bytes(picture(8 << choice, 24))


def _boxes(reader: Reader) -> list[pb.Box]:
    return [
        pb.Box(x=_float(reader), y=_float(reader), width=_float(reader), height=_float(reader))
        for _ in range(reader.number() % 6)
    ]


def _float(reader: Reader) -> float:
    if reader.number() % 2:
        return float(reader.number())
    value: float = struct.unpack("<d", reader.take(8).ljust(8, b"\0"))[0]
    return value
