"""Bytes that are no message, sent to every method over a real connection."""

import logging
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection

from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.servicer import SERVICE_NAME
from tests.support.gateway import Gateway, details_of, refusal_of
from tests.support.images import image_bytes

NO_MESSAGE = b"\0\0\0"


def bytes_channel(gateway: Gateway) -> Any:
    """A connection on which messages are bytes, whatever they say."""
    return gateway.channel()


@pytest.mark.parametrize(
    "method", [f"/{SERVICE_NAME}/Estimate", f"/{SERVICE_NAME}/EstimateBatch", "/grpc.health.v1.Health/Check"]
)
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    gateway: Gateway, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = bytes_channel(gateway).unary_unary(method)

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(NO_MESSAGE, metadata=(("x-request-id", "garbled-1"),))

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(failure.value)
    assert (details.info.metadata["code"], details.info.metadata["request_id"]) == ("unreadable_message", "garbled-1")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_stream_answers_what_came_before_bytes_that_are_no_message(gateway: Gateway) -> None:
    frame = pb.EstimateStreamRequest(frame=pb.Frame(image=image_bytes(), id=7)).SerializeToString()

    call = bytes_channel(gateway).stream_stream(
        f"/{SERVICE_NAME}/EstimateStream", response_deserializer=pb.EstimateStreamResponse.FromString
    )()
    await call.write(frame)
    first = await call.read()
    refusal = await refusal_of(call, NO_MESSAGE)

    assert first.frame_id == 7
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_refuses_bytes_that_are_no_message(gateway: Gateway) -> None:
    call = bytes_channel(gateway).stream_stream(f"/{reflection.SERVICE_NAME}/ServerReflectionInfo")()

    assert (await refusal_of(call, NO_MESSAGE)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watching_health_refuses_bytes_that_are_no_message(gateway: Gateway) -> None:
    call = bytes_channel(gateway).unary_stream("/grpc.health.v1.Health/Watch")(NO_MESSAGE)

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
