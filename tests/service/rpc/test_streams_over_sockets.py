"""Streams on real connections: memory, clients that vanish, the end of the service; over gRPC and over WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from service.inference.streaming import StreamLimits
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.support.gateway import Gateway
from tests.support.images import image_bytes, picture
from tests.support.waiting import until

PHOTO = image_bytes(picture(64, 64))


@pytest.fixture
async def gateway(workers: ThreadPoolExecutor) -> AsyncIterator[Gateway]:
    gateway = Gateway(workers, stream_limits=StreamLimits(max_streams=2))
    await gateway.start()
    await gateway.start_rest()
    yield gateway
    await gateway.stop()


def socket_to(gateway: Gateway, query: str = "") -> connect:
    return connect(f"ws://127.0.0.1:{gateway.rest_port}/v1/hand-pose/stream{query}", compression=None, close_timeout=1)


async def ended(socket: ClientConnection) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        await socket.recv()
    return caught.value


async def test_a_websocket_answers_in_order_and_closes_normally_after_the_last(gateway: Gateway) -> None:
    async with socket_to(gateway, "?tracking=true&smoothing=on") as socket:
        await socket.send(json.dumps({"id": 40, "time_s": 0.5}))
        await socket.send(PHOTO)
        await socket.send(PHOTO[:50])
        await socket.send(PHOTO)
        await socket.send('{"end": true}')
        answers = [json.loads(await socket.recv()) for _ in range(3)]
        end = await ended(socket)

    assert [answer["frame"] for answer in answers] == [40, 1, 2]
    assert ["result" in answer for answer in answers] == [True, False, True]
    assert answers[1]["problem"]["code"] == "undecodable_image"
    assert answers[2]["tracked"]
    assert end.rcvd is not None
    assert end.rcvd.code == 1000


@pytest.mark.parametrize(
    ("query", "text", "code"),
    [
        ("?tracking=perhaps", None, "invalid_options"),
        ("?beta=-1&smoothing=on", None, "invalid_options"),
        ("?no_such=1", None, "invalid_options"),
        ("", "no JSON", "invalid_frame_description"),
        ("", '{"rois": [{"x": 1}]}', "invalid_frame_description"),
    ],
)
async def test_a_websocket_that_is_used_wrongly_is_told_so_and_closed(
    gateway: Gateway, query: str, text: str | None, code: str
) -> None:
    async with socket_to(gateway, query) as socket:
        if text is not None:
            await socket.send(text)
        problem = json.loads(await socket.recv())["problem"]
        end = await ended(socket)

    assert problem["code"] == code
    assert problem["errors"]
    assert end.rcvd is not None
    assert (end.rcvd.code, end.rcvd.reason) == (1008, code)


async def test_a_websocket_client_that_vanishes_is_forgotten_within_a_second(gateway: Gateway) -> None:
    gateway.backend.hold()
    async with socket_to(gateway) as socket:
        await socket.send(PHOTO)
        await gateway.backend.arrived()
        assert gateway.streams.number_open == 1

        socket.transport.abort()  # no goodbye
        await until(lambda: gateway.streams.number_open == 0, timeout_s=10.0)

    await until(lambda: gateway.requests.now_in_flight == 0 and gateway.observer.depths[-1][1] == 0, timeout_s=10.0)


async def test_drain_ends_a_websocket_as_a_restart_after_its_last_answer(gateway: Gateway) -> None:
    gateway.backend.hold()
    async with socket_to(gateway) as socket:
        await socket.send(PHOTO)
        await gateway.backend.arrived()
        draining = asyncio.create_task(gateway.streams.drain())
        await asyncio.sleep(0)
        gateway.backend.release()
        answer, goodbye = json.loads(await socket.recv()), json.loads(await socket.recv())
        end = await ended(socket)
        await draining

    assert "result" in answer
    assert goodbye["problem"]["code"] == "unavailable"
    assert goodbye["problem"]["retry_after_ms"] > 0
    assert end.rcvd is not None
    assert end.rcvd.code == 1012


async def test_a_stream_too_many_is_told_to_come_back_over_both_protocols(gateway: Gateway) -> None:
    async with socket_to(gateway) as one, socket_to(gateway) as two:
        for socket in (one, two):
            await socket.send(PHOTO)
            await socket.recv()
        async with socket_to(gateway) as third:
            problem = json.loads(await third.recv())["problem"]
            end = await ended(third)
        status = await gateway.stub().EstimateStream().code()  # a client that writes may learn only of the broken call

    assert problem["code"] == "overloaded"
    assert end.rcvd is not None
    assert end.rcvd.code == 1013
    assert status.name == "RESOURCE_EXHAUSTED"


async def test_a_sender_that_runs_ahead_of_a_slow_reader_is_held_back(gateway: Gateway) -> None:
    """Large frames, of which the buffers on the way can hold few; nothing is read for a while, then everything."""
    photo = PHOTO + bytes(400_000)  # what follows the picture is ignored
    sent = 0

    async def send(socket: ClientConnection) -> None:
        nonlocal sent
        for _ in range(200):
            await socket.send(photo)
            sent += 1
        await socket.send('{"end": true}')

    gateway.backend.hold()
    async with socket_to(gateway) as socket:
        sending = asyncio.create_task(send(socket))
        await gateway.backend.arrived()
        seen = -1
        while seen != sent:  # until the sender stands still
            seen = sent
            await asyncio.sleep(0.1)
        assert sent < 60
        gateway.backend.release()
        answers = 0
        async for _ in socket:
            answers += 1
        await sending

    assert answers == 200


async def test_ten_thousand_frames_of_one_stream_are_answered_and_give_their_memory_back(gateway: Gateway) -> None:
    """The frames do not decode, which is all that makes this quick."""
    message = pb.EstimateStreamRequest(frame=pb.Frame(image=b"no picture"))

    async def messages() -> AsyncIterator[pb.EstimateStreamRequest]:
        for _ in range(10_000):
            yield message

    call = gateway.stub().EstimateStream(messages())
    answers = 0
    async for answer in call:
        answers += 1
        assert answer.problem.code == "unsupported_image_format"

    assert answers == 10_000
    assert gateway.uploads.held == 0
