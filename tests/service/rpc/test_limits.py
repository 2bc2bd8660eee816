"""What gRPC receives is bounded in number, size and time, on real sockets. Time-outs are waited for, never slept."""

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.server import ServerOptions
from tests.support.gateway import Gateway, details_of, refusal_of
from tests.support.images import image_bytes
from tests.support.waiting import until

PHOTO = image_bytes()
ESTIMATE = "/handpose.v1.HandPoseService/Estimate"
CHECK = "/grpc.health.v1.Health/Check"
MESSAGE_BYTES = 64 * 1024


@asynccontextmanager
async def gateway(options: ServerOptions, **others: Any) -> AsyncIterator[Gateway]:
    with ThreadPoolExecutor(1) as workers:
        running = Gateway(workers, options=options, **others)
        await running.start()
        try:
            yield running
        finally:
            await running.stop()


def unfinished_call(gateway: Gateway) -> Any:
    """A call of `Estimate` that never sends its message, as `write` on it would."""
    return gateway.channel().stream_unary(ESTIMATE)()


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_message_that_does_not_come_is_not_waited_for() -> None:
    async with gateway(ServerOptions(port=0, message_timeout_s=1.0)) as running:
        call = unfinished_call(running)
        await call.wait_for_connection()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert details_of(caught.value).info.metadata["code"] == "body_too_slow"
        assert (await running.stub().Estimate(pb.EstimateRequest(image=PHOTO))).hands


async def test_only_so_many_messages_are_received_at_a_time() -> None:
    options = ServerOptions(port=0, max_message_bytes=MESSAGE_BYTES, message_timeout_s=1.0, turn_timeout_s=20)
    async with gateway(options, upload_bytes=2 * MESSAGE_BYTES) as running:
        slow = [unfinished_call(running) for _ in range(2)]
        for each in slow:
            await each.wait_for_connection()
        answered = await running.stub().Estimate(pb.EstimateRequest(image=PHOTO))  # has its turn when theirs are over
        assert answered.hands
        assert {await code_of(each) for each in slow} == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_messages_beyond_the_budget_are_told_to_come_back() -> None:
    async with gateway(ServerOptions(port=0, max_message_bytes=1000), upload_bytes=2000) as running:
        running.backend.hold()
        stub = running.stub()
        first = asyncio.ensure_future(stub.Estimate(pb.EstimateRequest(image=PHOTO + bytes(856 - len(PHOTO)))))
        await running.backend.arrived()
        assert running.uploads.held >= 2 * 856
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Estimate(pb.EstimateRequest(image=PHOTO + bytes(150)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(caught.value).info.metadata["code"] == "out_of_memory_budget"
        assert details_of(caught.value).retry is not None
        running.backend.release()
        assert (await first).hands
        await until(lambda: running.uploads.held == 0)


async def test_streams_are_bounded() -> None:
    async with gateway(ServerOptions(port=0, max_streams=1)) as running:
        stub = running.stub()
        first = stub.EstimateStream()
        await first.write(pb.EstimateStreamRequest(frame=pb.Frame(image=PHOTO)))
        await first.read()
        assert (await refusal_of(stub.EstimateStream())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await first.done_writing()
        assert await first.code() is grpc.StatusCode.OK


async def test_frame_beyond_the_budget_ends_its_stream() -> None:
    async with gateway(ServerOptions(port=0, max_message_bytes=1000), upload_bytes=100) as running:
        frame = pb.EstimateStreamRequest(frame=pb.Frame(image=PHOTO))
        refusal = await refusal_of(running.stub().EstimateStream(), frame)
        assert details_of(refusal).info.metadata["code"] == "out_of_memory_budget"


async def test_frame_above_the_limit_ends_its_stream() -> None:
    async with gateway(ServerOptions(port=0, max_message_bytes=1000)) as running:
        frame = pb.EstimateStreamRequest(frame=pb.Frame(image=bytes(1000)))
        refusal = await refusal_of(running.stub().EstimateStream(), frame)
        assert details_of(refusal).info.metadata["code"] == "body_too_large"


async def test_calls_that_fail_give_their_memory_back_and_say_why_once(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(ServerOptions(port=0, message_timeout_s=0.05)) as running:
        with caplog.at_level("INFO", "service.rpc"):
            await code_of(running.stub().Estimate(pb.EstimateRequest(image=PHOTO[:50])))
            await code_of(unfinished_call(running))
        assert running.uploads.held == 0
        assert [code for _, _, code in running.requests.images] == ["undecodable_image", "body_too_slow"]
        assert [vars(record)["code"] for record in caplog.records] == ["undecodable_image", "body_too_slow"]


async def test_message_far_above_the_limit_is_refused() -> None:
    async with gateway(ServerOptions(port=0, max_message_bytes=1000)) as running:
        call = running.stub().Estimate(pb.EstimateRequest(image=bytes(2_000_000)))
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_is_bounded() -> None:
    async with gateway(ServerOptions(port=0, max_head_bytes=2048)) as running:
        call = running.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=(("x-long", "x" * 5000),))
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_calls_on_one_connection_are_bounded_and_the_others_wait() -> None:
    async with gateway(ServerOptions(port=0, max_calls_per_connection=1)) as running:
        running.backend.hold()
        stub = running.stub()
        calls = [asyncio.ensure_future(stub.Estimate(pb.EstimateRequest(image=PHOTO))) for _ in range(2)]
        await running.backend.arrived()
        assert running.requests.now_in_flight == 1
        running.backend.release()
        assert all([(await each).hands for each in calls])


async def test_connection_without_calls_is_closed() -> None:
    async with gateway(ServerOptions(port=0, idle_s=0.2)) as running:
        channel = running.channel()
        await channel.channel_ready()
        state = grpc.ChannelConnectivity.READY
        async with asyncio.timeout(20):
            await channel.wait_for_state_change(state)
        assert channel.get_state() is not state


async def test_connection_that_says_nothing_is_closed() -> None:
    async with gateway(ServerOptions(port=0, handshake_timeout_s=0.2)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(20):
            while await reader.read(1024):
                pass
        writer.close()
        await writer.wait_closed()


async def test_what_is_no_http2_harms_nobody() -> None:
    async with gateway(ServerOptions(port=0)) as running:

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(1000))
                return client.recv(1024)

        await asyncio.to_thread(talk)
        assert (await running.stub().Estimate(pb.EstimateRequest(image=PHOTO))).hands


# Health checks, which need no key


def health(gateway: Gateway) -> Any:  # its types are those of the synchronous API
    return health_pb2_grpc.HealthStub(gateway.channel())


async def test_silent_health_checks_keep_neither_calls_nor_probes_waiting() -> None:
    async with gateway(ServerOptions(port=0)) as running:
        channels: list[Any] = [running.channel() for _ in range(4)]
        silent = [channel.stream_unary(CHECK)() for channel in channels for _ in range(90)]
        await asyncio.gather(*(each.wait_for_connection() for each in silent))
        async with asyncio.timeout(10):  # half of what the message of a call is waited for
            assert (await running.stub().Estimate(pb.EstimateRequest(image=PHOTO))).hands
            answer = await health(running).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for each in silent:
            each.cancel()


async def test_question_that_does_not_come_is_not_waited_for() -> None:
    async with gateway(ServerOptions(port=0, message_timeout_s=0.05)) as running:
        call: Any = running.channel().stream_unary(CHECK)()
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_many_health_checks_at_once_are_all_answered() -> None:
    async with gateway(ServerOptions(port=0)) as running:
        stub = health(running)
        answers = await asyncio.gather(*(stub.Check(health_pb2.HealthCheckRequest()) for _ in range(40)))
        assert {each.status for each in answers} == {health_pb2.HealthCheckResponse.SERVING}


async def test_long_question_is_refused() -> None:
    async with gateway(ServerOptions(port=0)) as running:
        call = health(running).Check(health_pb2.HealthCheckRequest(service="x" * 600))
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_watches_are_bounded_and_leave_room_for_calls() -> None:
    async with gateway(ServerOptions(port=0, max_concurrent_calls=66)) as running:
        stub = health(running)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(64)]
        for each in watches:
            await each.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(caught.value).retry is not None
        assert (await running.stub().Estimate(pb.EstimateRequest(image=PHOTO))).hands
        watches[0].cancel()

        async def there_is_room() -> bool:
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            try:
                return (await watch.read()) is not grpc.aio.EOF
            except grpc.aio.AioRpcError:
                return False

        await until(there_is_room)
        for each in watches:
            each.cancel()
