"""Whatever a client is told of a failure, the log and the metrics are told as well; over every protocol."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import pytest
from websockets.asyncio.client import connect

from service.client import AsyncHandPoseClient, RejectedError, RetryPolicy, ServerFailedError, TryAgainError
from service.inference.errors import UnavailableError
from service.inference.streaming import StreamLimits
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.support.executor import InlineExecutor
from tests.support.gateway import Gateway, refusal_of
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.waiting import until

PHOTO = image_bytes(picture(INPUT_SIZE, INPUT_SIZE))
PROTOCOLS = ("http", "grpc")

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def gateway(workers: ThreadPoolExecutor) -> AsyncIterator[Gateway]:
    gateway = Gateway(workers)
    await gateway.start()
    await gateway.start_rest()
    yield gateway
    await gateway.stop()


def client_of(gateway: Gateway, protocol: str) -> AsyncHandPoseClient:
    url = gateway.rest_url if protocol == "http" else gateway.rpc_url
    return AsyncHandPoseClient(url, retries=RetryPolicy(attempts=1))


async def frames(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PHOTO


async def frames_until_closed() -> AsyncIterator[bytes]:
    yield PHOTO
    await asyncio.Event().wait()


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What was logged at this level, with the traceback and the request's id."""
    return [
        f"{record.getMessage()} {record.exc_info} {vars(record).get('request_id')}"
        for record in caplog.records
        if record.levelno == level and record.name.startswith("service")
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_defect_behind_one_image_of_a_batch_is_in_the_log(
    gateway: Gateway, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.backend.failure = RuntimeError("the defect")

    async with client_of(gateway, protocol) as client:
        (answer,) = [answer async for answer in client.estimate_batch([PHOTO])]

    assert isinstance(answer, ServerFailedError)
    (line,) = logged(caplog, logging.ERROR)
    assert "None" not in line.rsplit(" ", 1)[-1]
    assert "the defect" in caplog.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_defect_behind_the_frames_of_a_stream_is_in_the_log_once(
    gateway: Gateway, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.backend.failure = RuntimeError("the defect")

    async with client_of(gateway, protocol) as client:
        answers = [answer async for answer in client.stream(frames(5))]

    assert [type(answer.error) for answer in answers] == 5 * [ServerFailedError]
    assert len(logged(caplog, logging.ERROR)) == 1
    assert "the defect" in caplog.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_made_the_service_unavailable_is_in_the_log(
    gateway: Gateway, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.backend.failure = UnavailableError("the model server cannot be reached")
    gateway.backend.failure.__cause__ = ConnectionRefusedError("port 8500")

    async with client_of(gateway, protocol) as client:
        with pytest.raises(TryAgainError):
            await client.estimate(PHOTO)

    assert "port 8500" in logged(caplog, logging.WARNING)[0]


class ForgetfulExecutor(InlineExecutor):
    """Has no memory for the first thing that it is asked to do."""

    def __init__(self) -> None:
        self._tasks = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self._tasks += 1
        if self._tasks > 1:
            return super().submit(fn, *args, **kwargs)
        future: Future[T] = Future()
        future.set_exception(MemoryError())
        return future


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_memory_that_runs_out_for_one_image_leaves_the_others_of_its_batch_alone(protocol: str) -> None:
    gateway = Gateway(ForgetfulExecutor())
    await gateway.start()
    await gateway.start_rest()
    async with client_of(gateway, protocol) as client:
        answers = [answer async for answer in client.estimate_batch(3 * [PHOTO])]
    await gateway.stop()

    assert [isinstance(answer, ServerFailedError) for answer in answers] == [True, False, False]


# Metrics


def counted(gateway: Gateway) -> list[tuple[str | None, str]]:
    return [(asked_for, code) for _, asked_for, code in gateway.requests.images]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stream_that_ends_for_want_of_its_model_is_counted_once(gateway: Gateway, protocol: str) -> None:
    async with client_of(gateway, protocol) as client:
        with pytest.raises(RejectedError):
            [answer async for answer in client.stream(frames_until_closed(), variant="standard@99")]

    await until(lambda: gateway.requests.now_in_flight == 0)
    assert counted(gateway) == [("standard@99", "unknown_version")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stream_that_is_refused_is_counted(workers: ThreadPoolExecutor, protocol: str) -> None:
    gateway = Gateway(workers, stream_limits=StreamLimits(max_streams=1))
    await gateway.start()
    await gateway.start_rest()

    async with client_of(gateway, protocol) as client:
        first = client.stream(frames_until_closed())
        await anext(first)
        with pytest.raises(TryAgainError):
            [answer async for answer in client.stream(frames(1))]
        await first.aclose()
    await gateway.stop()

    assert counted(gateway) == [(None, "ok"), (None, "overloaded")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_request_that_is_too_large_is_counted_once(workers: ThreadPoolExecutor, protocol: str) -> None:
    gateway = Gateway(workers, max_body_bytes=1000)
    await gateway.start()
    await gateway.start_rest()

    async with client_of(gateway, protocol) as client:
        with pytest.raises(RejectedError):
            await client.estimate(bytes(2000))
    await gateway.stop()

    assert counted(gateway) == [(None, "body_too_large")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("image", [b"", b"no image"])
async def test_an_image_that_fails_is_counted_once(gateway: Gateway, protocol: str, image: bytes) -> None:
    async with client_of(gateway, protocol) as client:
        with pytest.raises(RejectedError) as caught:
            await client.estimate(image)

    assert counted(gateway) == [(None, caught.value.code)]


async def test_options_of_a_stream_that_make_no_sense_are_counted(gateway: Gateway) -> None:
    options = pb.EstimateStreamRequest(options=pb.StreamOptions(smoothing=pb.OneEuro(beta=-1)))
    await refusal_of(gateway.stub().EstimateStream(), options)
    async with connect(f"ws{gateway.rest_url.removeprefix('http')}/v1/hand-pose/stream?beta=-1") as socket:
        await socket.recv()
        await socket.wait_closed()

    assert counted(gateway) == 2 * [(None, "invalid_options")]
