"""Connections that send slowly, endlessly or too much, and readers that do not read, on real sockets.

Time-outs are a few hundredths of a second here, and every test waits for what they lead to, never for time to pass.
"""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from service.rest.policy import ConnectionLimits, TransferRate
from service.rest.uvicorn_limits import bound_send_buffer
from tests.support.gateway import Gateway
from tests.support.images import image_bytes
from tests.support.waiting import until

PATH = "/v1/hand-pose"
PHOTO = image_bytes()
POST = f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nContent-Type: image/png\r\n"
PATIENT = ConnectionLimits(head_timeout_s=30, rate=TransferRate(30))
SOON = 0.05
IN_TIME = 1.0  # for a good request's head to arrive on a busy machine


@asynccontextmanager
async def gateway(limits: ConnectionLimits = PATIENT, **others: Any) -> AsyncIterator[Gateway]:
    with ThreadPoolExecutor(1) as workers:
        running = Gateway(workers, connections=limits, **others)
        await running.start()
        await running.start_rest()
        try:
            yield running
        finally:
            await asyncio.gather(*(client.close() for client in Client.opened))
            Client.opened.clear()
            await running.stop()


@dataclass
class Answered:
    """What a connection got until it was closed or complete."""

    status: int
    headers: dict[str, str]
    problem: dict[str, Any] = field(default_factory=dict)


@dataclass
class Client:
    """A bare connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    opened: ClassVar["list[Client]"] = []

    @classmethod
    async def to(cls, gateway: Gateway, sending: str | bytes = b"") -> "Client":
        client = cls(*await asyncio.open_connection("127.0.0.1", gateway.rest_port))
        cls.opened.append(client)
        await client.send(sending)
        return client

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def send_for_ever(self, data: bytes) -> None:
        while True:
            await self.send(data)
            await asyncio.sleep(0)

    async def answer(self) -> Answered:
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        is_problem = headers["content-type"] == "application/problem+json"
        return Answered(int(line.split()[1]), headers, json.loads(body) if is_problem else {})

    async def is_closed(self) -> bool:
        """Waits for it."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def still_serves(gateway: Gateway) -> bool:
    async with httpx.AsyncClient(base_url=gateway.rest_url, timeout=20) as client:
        return (await client.post(PATH, content=PHOTO)).status_code == 200


def is_problem(answered: Answered, status: int, code: str) -> bool:
    """Whether it is this one, in full."""
    assert (answered.status, answered.problem["code"]) == (status, code)
    assert answered.problem["status"] == status
    assert answered.problem["type"].startswith("urn:handpose:")
    assert answered.problem["title"]
    assert answered.problem["detail"]
    return bool(answered.problem["request_id"] == answered.headers["x-request-id"])


# Heads


@pytest.mark.parametrize("sent", ["", "POST ", POST, "\r\n\r\n", "GET / HTTP/1.1\r\nX: "])
async def test_head_that_does_not_come_is_not_waited_for(sent: str) -> None:
    async with gateway(ConnectionLimits(head_timeout_s=IN_TIME)) as running:
        client = await Client.to(running, sent)
        answered = await client.answer()
        assert is_problem(answered, 408, "head_too_slow")
        assert answered.headers["connection"] == "close"
        assert await client.is_closed()
        assert await still_serves(running)


async def test_second_head_on_a_connection_is_not_waited_for_either() -> None:
    async with gateway(ConnectionLimits(head_timeout_s=IN_TIME)) as running:
        client = await Client.to(running, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        await client.send("GET /livez HT")
        assert is_problem(await client.answer(), 408, "head_too_slow")
        assert await client.is_closed()


async def test_head_sent_ahead_may_wait_for_the_answer_before_it() -> None:
    async with gateway(ConnectionLimits(head_timeout_s=IN_TIME)) as running:
        running.backend.hold()
        client = await Client.to(
            running, f"{POST}Content-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO + b"GET /livez"
        )
        late = await Client.to(running, "GET")
        assert is_problem(await late.answer(), 408, "head_too_slow")  # as long ago as the other head began
        running.backend.release()
        assert (await client.answer()).status == 200


async def test_endless_head_is_cut_off() -> None:
    async with gateway(ConnectionLimits(max_head_bytes=4096)) as running:
        client = await Client.to(running, "GET / HTTP/1.1\r\nX: " + "x" * 5000)
        assert is_problem(await client.answer(), 431, "head_too_long")
        assert await client.is_closed()
        assert await still_serves(running)


async def test_long_headers_that_come_at_once_are_refused_too() -> None:
    async with gateway(ConnectionLimits(max_head_bytes=4096)) as running:
        client = await Client.to(running, f"GET / HTTP/1.1\r\nX: {'x' * 5000}\r\n\r\n")
        assert is_problem(await client.answer(), 431, "head_too_long")


async def test_many_headers_are_refused() -> None:
    async with gateway(ConnectionLimits(max_headers=10)) as running:
        client = await Client.to(running, "GET / HTTP/1.1\r\n" + "X: y\r\n" * 11 + "\r\n")
        assert is_problem(await client.answer(), 431, "too_many_headers")


async def test_long_url_is_refused() -> None:
    async with gateway(ConnectionLimits(max_url_bytes=200)) as running:
        client = await Client.to(running, f"GET /{'x' * 300} HTTP/1.1\r\nHost: x\r\n\r\n")
        answered = await client.answer()
        assert is_problem(answered, 414, "url_too_long")


async def test_head_and_body_together_may_be_longer_than_a_head() -> None:
    async with gateway(ConnectionLimits(max_head_bytes=300)) as running:
        body = PHOTO + bytes(5000)
        client = await Client.to(running, f"{POST}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("sent", ["1\r\na\r\n0\r\nX-T: ", "1;x="], ids=["trailers", "chunk extensions"])
async def test_what_comes_with_a_body_and_is_none_may_not_be_longer_than_a_head(sent: str) -> None:
    async with gateway(ConnectionLimits(max_head_bytes=4096)) as running:
        client = await Client.to(running, f"{POST}Transfer-Encoding: chunked\r\n\r\n{sent}")
        sending = asyncio.ensure_future(client.send_for_ever(b"x" * 1000))
        assert is_problem(await client.answer(), 431, "trailers_too_long")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert running.uploads.held == 0
        assert await still_serves(running)


async def test_endless_trailers_of_a_request_that_has_its_answer_are_cut_off() -> None:
    async with gateway(ConnectionLimits(max_head_bytes=4096, linger_s=SOON)) as running:
        client = await Client.to(
            running, "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: "
        )
        assert (await client.answer()).status == 200
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(client.send_for_ever(b"x" * 0x1000), 20)


async def test_short_trailers_harm_nobody() -> None:
    async with gateway(ConnectionLimits(max_head_bytes=4096)) as running:
        body = f"{len(PHOTO):x};a=b\r\n".encode() + PHOTO + b"\r\n0\r\nX-T: y\r\n\r\n"
        client = await Client.to(running, f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
        assert (await client.answer()).status == 200
        await client.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "sent", ["nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
async def test_what_is_no_http_is_told_so(sent: str) -> None:
    async with gateway() as running:
        client = await Client.to(running, sent.encode("latin-1"))
        assert is_problem(await client.answer(), 400, "invalid_http")
        assert await client.is_closed()


async def test_broken_body_that_waits_for_a_continue_is_told_so_and_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = f"{POST}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    async with gateway() as running:
        client = await Client.to(running, f"{head}zz\r\n")
        assert is_problem(await client.answer(), 400, "invalid_http")
        assert await client.is_closed()
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_requests_sent_ahead_are_bounded() -> None:
    async with gateway(ConnectionLimits(head_timeout_s=30, linger_s=0.2)) as running:
        running.backend.hold()
        first = f"{POST}Content-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO
        client = await Client.to(running, first + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert await client.is_closed()
        running.backend.release()
        assert await still_serves(running)


# Bodies


@pytest.mark.parametrize("head", [f"Content-Length: {len(PHOTO)}", "Transfer-Encoding: chunked"])
async def test_body_that_does_not_come_is_not_waited_for(head: str) -> None:
    async with gateway(ConnectionLimits(rate=TransferRate(SOON))) as running:
        client = await Client.to(running, f"{POST}{head}\r\n\r\n")
        assert is_problem(await client.answer(), 408, "body_too_slow")
        assert running.requests.images == [(None, None, "body_too_slow")]
        assert running.uploads.held == 0


async def test_body_may_take_the_time_that_its_rate_allows() -> None:
    """The first bytes, at 100 bytes a second, are worth seconds more than the time-out."""
    async with gateway(ConnectionLimits(rate=TransferRate(SOON, 100))) as running:
        half = len(PHOTO) // 2
        client = await Client.to(running, f"{POST}Content-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO[:half])
        late = await Client.to(running, f"{POST}Content-Length: {len(PHOTO)}\r\n\r\n")
        assert is_problem(await late.answer(), 408, "body_too_slow")
        await client.send(PHOTO[half:])
        assert (await client.answer()).status == 200


async def test_endless_body_is_answered_and_cut_off() -> None:
    async with gateway(ConnectionLimits(linger_s=SOON)) as running:
        client = await Client.to(
            running, f"POST {PATH} HTTP/1.1\r\nContent-Type: text/css\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert is_problem(await client.answer(), 415, "unsupported_media_type")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(client.send_for_ever(b"1000\r\n" + bytes(0x1000) + b"\r\n"), 20)


async def test_connection_is_kept_where_the_rest_of_a_refused_body_comes() -> None:
    async with gateway(ConnectionLimits(linger_s=30)) as running:
        body = b"x" * 200_000
        client = await Client.to(
            running, f"POST {PATH} HTTP/1.1\r\nContent-Type: text/css\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert (await client.answer()).status == 415
        await client.send(body + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_sender_of_a_refused_body_can_read_why_although_the_connection_is_closed_then() -> None:
    async with gateway() as running:
        body = b"x" * 1_000_000
        head = f"POST {PATH} HTTP/1.1\r\nContent-Type: text/css\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client = await Client.to(running, head.encode() + body)
        assert (await client.answer()).status == 415
        assert await client.is_closed()


async def test_body_without_end_is_cut_off_where_the_connection_is_closed_after_its_answer() -> None:
    async with gateway(ConnectionLimits(linger_s=SOON)) as running:
        head = f"POST {PATH} HTTP/1.1\r\nContent-Type: text/css\r\nConnection: close\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n"
        client = await Client.to(running, head)
        assert (await client.answer()).status == 415
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(client.send_for_ever(b"1000\r\n" + bytes(0x1000) + b"\r\n"), 20)


async def test_uploads_beyond_the_budget_are_told_to_come_back() -> None:
    async with gateway(upload_bytes=100_000) as running:
        slow = await Client.to(running, f"{POST}Content-Length: 90000\r\n\r\n".encode() + bytes(60_000))
        await until(lambda: running.uploads.held == 60_000)
        announced = await Client.to(running, f"{POST}Content-Length: 50000\r\n\r\n")
        chunked = await Client.to(running, f"{POST}Transfer-Encoding: chunked\r\n\r\nC350\r\n".encode() + bytes(50_000))
        for client in (announced, chunked):
            refused = await client.answer()
            assert is_problem(refused, 429, "out_of_memory_budget")
            assert refused.headers["retry-after"] == "1"
        assert running.uploads.held == 60_000
        await slow.send(bytes(30_000))
        assert (await slow.answer()).status == 415
        assert await still_serves(running)
        assert running.uploads.held == 0
        assert running.uploads.most_held <= 100_000


async def test_body_counts_until_its_request_has_its_answer() -> None:
    async with gateway() as running:
        running.backend.hold()
        client = await Client.to(running, f"{POST}Content-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO)
        await running.backend.arrived()
        assert running.uploads.held == len(PHOTO)
        running.backend.release()
        assert (await client.answer()).status == 200
        await until(lambda: running.uploads.held == 0)


async def test_sender_that_leaves_gives_its_memory_back() -> None:
    async with gateway() as running:
        client = await Client.to(running, f"{POST}Content-Length: 90000\r\n\r\n".encode() + bytes(60_000))
        await until(lambda: running.uploads.held == 60_000)
        await client.close()
        await until(lambda: running.uploads.held == 0)


# Connections


async def test_connections_are_bounded() -> None:
    async with gateway(ConnectionLimits(max_connections=2)) as running:
        first, _second = await Client.to(running), await Client.to(running)
        await first.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await first.answer()).status == 200
        third = await Client.to(running, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        refused = await third.answer()
        assert is_problem(refused, 503, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        assert await third.is_closed()
        await first.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await first.answer()).status == 200
        await first.close()

        async def there_is_room() -> bool:
            client = await Client.to(running, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            return (await client.answer()).status == 200

        await until(there_is_room)


async def test_reader_that_does_not_read_is_cut_off() -> None:
    """The answer is a picture of several megabytes, which no kernel buffers as a whole."""
    async with gateway(ConnectionLimits(rate=TransferRate(0.2))) as running:
        photo = image_bytes(noise(2600, 1800), "JPEG")
        head = POST.replace("image/png", "image/jpeg") + f"Accept: image/png\r\nContent-Length: {len(photo)}\r\n\r\n"
        client = await Client.to(running, head.encode() + photo)
        transport: Any = client.writer.transport
        transport.pause_reading()
        await until(lambda: bool(running.requests.images) and running.requests.images[-1][2] == "ok")
        assert await still_serves(running)
        await until(lambda: running.number_of_connections == 0)
        await client.close()


def test_kernel_takes_answers_in_lumps_that_are_small_beside_the_least_rate() -> None:
    """Larger ones would make a reader at the least rate look like one that does not read."""
    limits, sender = ConnectionLimits(), socket.socket()
    with sender:
        untouched = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        bound_send_buffer(sender)
        lump = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert lump != untouched  # which the kernel would let grow
    assert lump <= limits.rate.min_bytes_per_s * limits.rate.grace_s / 2


async def test_picture_counts_until_it_is_sent() -> None:
    async with gateway() as running:
        photo = image_bytes(noise(1300, 900), "JPEG")
        head = POST.replace("image/png", "image/jpeg") + f"Accept: image/png\r\nContent-Length: {len(photo)}\r\n\r\n"
        client = await Client.to(running, head.encode() + photo)
        transport: Any = client.writer.transport
        transport.pause_reading()
        await until(lambda: running.uploads.held > 2_000_000)  # all of the picture, which is larger than the photo
        transport.resume_reading()
        assert (await client.answer()).status == 200
        await until(lambda: running.uploads.held == 0)


async def test_picture_that_there_is_no_room_for_is_told_so() -> None:
    photo = image_bytes(noise(650, 450), "JPEG")
    async with gateway(upload_bytes=len(photo) + 1000) as running:
        head = POST.replace("image/png", "image/jpeg") + f"Accept: image/png\r\nContent-Length: {len(photo)}\r\n\r\n"
        client = await Client.to(running, head.encode() + photo)
        assert is_problem(await client.answer(), 429, "out_of_memory_budget")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


# WebSockets


async def test_frames_count_as_uploads_until_they_are_answered() -> None:
    async with gateway() as running, connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket:
        running.backend.hold()
        await socket.send(PHOTO)
        await running.backend.arrived()
        assert running.uploads.held == len(PHOTO)
        running.backend.release()
        assert "result" in json.loads(await socket.recv())
        await until(lambda: running.uploads.held == 0)


async def test_message_that_stays_unfinished_counts_and_is_not_waited_for() -> None:
    async with gateway(ConnectionLimits(rate=TransferRate(0.2))) as running:
        async with connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket:
            started = Frame(Opcode.BINARY, bytes(3000), fin=False).serialize(mask=True, extensions=[])
            socket.transport.write(started)
            await until(lambda: running.uploads.most_held == 3000)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "message_too_slow")
        await until(lambda: running.uploads.held == 0)


async def test_message_beyond_the_budget_closes_its_stream() -> None:
    async with gateway(upload_bytes=2000) as running:
        async with connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket:
            socket.transport.write(Frame(Opcode.BINARY, bytes(3000), fin=False).serialize(mask=True, extensions=[]))
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        await until(lambda: running.uploads.held == 0)


async def test_message_of_very_many_parts_closes_its_stream() -> None:
    async with gateway() as running:
        async with connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket:
            first = Frame(Opcode.BINARY, b"x", fin=False).serialize(mask=True, extensions=[])
            more = Frame(Opcode.CONT, b"x", fin=False).serialize(mask=True, extensions=[])
            socket.transport.write(first + more * 2000)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_message_that_is_too_long_closes_its_stream() -> None:
    async with gateway(max_frame_bytes=1000) as running:
        async with connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket:
            await socket.send(bytes(1001))
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_stream_that_stays_open_without_frames_is_not_closed_for_that() -> None:
    async with (
        gateway(ConnectionLimits(head_timeout_s=IN_TIME, rate=TransferRate(IN_TIME))) as running,
        connect(f"ws://127.0.0.1:{running.rest_port}{PATH}/stream") as socket,
    ):
        late = await Client.to(running, "GET")
        assert is_problem(await late.answer(), 408, "head_too_slow")  # time-outs have passed
        late = await Client.to(running, f"{POST}Content-Length: 9\r\n\r\n")
        assert is_problem(await late.answer(), 408, "body_too_slow")
        await socket.send(PHOTO)
        assert "result" in json.loads(await socket.recv())
