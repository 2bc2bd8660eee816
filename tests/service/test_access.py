"""Keys at every door: REST, gRPC and WebSocket, on real sockets."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from service.client import AsyncHandPoseClient, HandPoseError, RejectedError, RetryPolicy, TryAgainError
from service.inference.access import AccessPolicy, Allowance, ApiKey, Doorkeeper
from service.inference.keys import digest_of, new_key
from service.observability.logs import configure_logging
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.support.gateway import Gateway, details_of
from tests.support.images import image_bytes

STREAM = "/v1/hand-pose/stream"
ONCE = RetryPolicy(attempts=1)


class Guarded:
    """A gateway that asks for one of two keys."""

    def __init__(self, gateway: Gateway, doorkeeper: Doorkeeper, key: str, other: str) -> None:
        self.gateway, self.doorkeeper, self.key, self.other = gateway, doorkeeper, key, other

    def revoke(self) -> None:
        """`key` is none any more."""
        self.doorkeeper.follow([ApiKey("other", digest_of(self.other))])

    def url(self, protocol: str) -> str:
        return self.gateway.rest_url if protocol == "rest" else self.gateway.rpc_url

    def client(self, protocol: str, key: str | None) -> AsyncHandPoseClient:
        return AsyncHandPoseClient(self.url(protocol), api_key=key, retries=ONCE)

    def http(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.gateway.rest_url, headers={**authorization, **headers})


@asynccontextmanager
async def guarded_by(policy: AccessPolicy, **gateway: Any) -> AsyncIterator[Guarded]:
    doorkeeper = Doorkeeper(policy, time=asyncio.get_running_loop().time)
    key, other = new_key(), new_key()
    doorkeeper.follow([ApiKey("kiosk", digest_of(key)), ApiKey("other", digest_of(other))])
    with ThreadPoolExecutor(1) as workers:
        running = Gateway(workers, doorkeeper=doorkeeper, **gateway)
        await running.start()
        await running.start_rest()
        try:
            yield Guarded(running, doorkeeper, key, other)
        finally:
            await running.stop()


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    async with guarded_by(AccessPolicy()) as running:
        yield running


async def code_of(client: AsyncHandPoseClient, call: str) -> str:
    """How a call ends: "ok", or the code of its error."""
    image = image_bytes()

    async def frames() -> AsyncIterator[bytes]:
        yield image

    try:
        async with client:
            match call:
                case "estimate":
                    await client.estimate(image)
                case "batch":
                    return next(
                        each.code if isinstance(each, HandPoseError) else "ok"
                        for each in [result async for result in client.estimate_batch([image, image])]
                    )
                case "models":
                    await client.models()
                case _:
                    async for answer in client.stream(frames()):
                        return answer.error.code if answer.error is not None else "ok"
    except RejectedError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("call", ["estimate", "batch", "models", "stream"])
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_every_call_needs_a_key_that_is_one_and_still_is(guarded: Guarded, protocol: str, call: str) -> None:
    async def code(key: str | None) -> str:
        return await code_of(guarded.client(protocol, key), call)

    assert await code(guarded.key) == "ok"
    assert [await code(None), await code(new_key()), await code("secret")] == ["unauthenticated"] * 3
    guarded.revoke()
    assert [await code(guarded.key), await code(guarded.other)] == ["unauthenticated", "ok"]


async def test_rest_says_401_and_how_to_do_better(guarded: Guarded) -> None:
    async with guarded.http() as client:
        answers = [
            await client.post("/v1/hand-pose", content=image_bytes(), headers=headers)
            for headers in ({}, {"Authorization": f"Bearer {new_key()}"}, {"Authorization": "Basic eDp5"})
        ]
    assert {(each.status_code, each.headers["WWW-Authenticate"]) for each in answers} == {(401, "Bearer")}
    bodies = [each.json() | {"request_id": ""} for each in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert answers[0].headers["X-Request-Id"] == answers[0].json()["request_id"]
    assert [code for _, _, code in guarded.gateway.requests.images] == ["unauthenticated"] * 3


async def test_grpc_says_unauthenticated_with_the_same_details(guarded: Guarded) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.gateway.stub().Estimate(
            pb.EstimateRequest(image=image_bytes()), metadata=[("x-request-id", "mine")], timeout=10
        )
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    info = details_of(caught.value).info
    assert (info.metadata["code"], info.metadata["request_id"]) == ("unauthenticated", "mine")


async def test_health_and_pages_need_no_key_and_all_else_does(guarded: Guarded) -> None:
    async with guarded.http() as client:
        opened = ["/livez", "/readyz", "/", "/docs", "/openapi.json", "/page.json", "/static/page.js"]
        assert [(await client.get(path)).status_code for path in opened] == [200] * len(opened)
        closed = ["/metrics", "/v1/models", "/v1/skeleton", "/v1/nothing", "/static", "/livez/x"]
        assert [(await client.get(path)).status_code for path in closed] == [401] * len(closed)
    health: Any = health_pb2_grpc.HealthStub(guarded.gateway.channel())
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_answer_without_a_key_comes_before_the_body(guarded: Guarded) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.gateway.rest_port)
    writer.write(b"POST /v1/hand-pose HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in head.lower()
    await asyncio.wait_for(reader.read(), 5)  # the end: it does not wait for the rest
    writer.close()
    await writer.wait_closed()


async def test_sender_of_a_whole_body_still_gets_its_answer(guarded: Guarded) -> None:
    async with guarded.http() as client:
        answer = await client.post("/v1/hand-pose", content=bytes(900_000))
    assert answer.status_code == 401


async def test_grpc_answers_without_a_key_before_a_message_has_come(guarded: Guarded) -> None:
    call: Any = guarded.gateway.channel().stream_unary("/handpose.v1.HandPoseService/Estimate")(timeout=5)
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("scheme", "code"), [("bearer", "ok"), ("BEARER ", "ok"), ("Basic", "unauthenticated")])
async def test_key_is_shown_as_bearer_in_any_case_over_both_protocols(guarded: Guarded, scheme: str, code: str) -> None:
    shown = f"{scheme} {guarded.key}"
    async with guarded.http(Authorization=shown) as client:
        answer = await client.get("/v1/models")
    call = guarded.gateway.stub().ListModels(pb.ListModelsRequest(), metadata=[("authorization", shown)])
    assert (answer.json().get("code", "ok"), (await call.code()).name.lower()) == (code, code)


# Streams


async def test_browser_shows_its_key_as_a_subprotocol(guarded: Guarded) -> None:
    url = f"ws://127.0.0.1:{guarded.gateway.rest_port}{STREAM}"
    offered = [Subprotocol("handpose.v1"), Subprotocol(f"handpose.key.{guarded.key}")]
    async with connect(url, subprotocols=offered) as stream:
        assert stream.subprotocol == "handpose.v1"
        await stream.send(image_bytes())
        assert "result" in json.loads(await stream.recv())


@pytest.mark.parametrize("wrong", [[], ["handpose.v1"], ["handpose.v1", "handpose.key.x"], ["handpose.key."]])
async def test_stream_without_a_key_is_refused_before_it_is_opened(guarded: Guarded, wrong: list[str]) -> None:
    url = f"ws://127.0.0.1:{guarded.gateway.rest_port}{STREAM}"
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, subprotocols=[Subprotocol(each) for each in wrong] or None)
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body or b"")["code"] == "unauthenticated"


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_revoking_a_key_ends_its_streams(guarded: Guarded, protocol: str) -> None:
    more = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        yield image_bytes()
        await more.wait()
        yield image_bytes()
        await asyncio.Event().wait()  # nothing is written after the refusal

    async with guarded.client(protocol, guarded.key) as client:
        answers = client.stream(frames())
        assert (await anext(answers)).error is None
        guarded.revoke()
        more.set()
        with pytest.raises(RejectedError) as caught:
            await anext(answers)
    assert caught.value.code == "unauthenticated"


async def test_page_from_elsewhere_opens_no_stream(guarded: Guarded) -> None:
    url = f"ws://127.0.0.1:{guarded.gateway.rest_port}{STREAM}"
    authorization = {"Authorization": f"Bearer {guarded.key}"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://["):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers={**authorization, "Origin": origin})
        assert caught.value.response.status_code == 403
    async with connect(url, additional_headers={**authorization, "Origin": guarded.gateway.rest_url}):
        pass


# Rates


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_who_asks_too_much_is_told_when_to_come_back(protocol: str) -> None:
    async with guarded_by(AccessPolicy(allowance=Allowance(0.01, 4))) as guarded:
        async with guarded.client(protocol, guarded.key) as client:
            results = [each async for each in client.estimate_batch([image_bytes()] * 3)]
            assert not any(isinstance(each, HandPoseError) for each in results)
            with pytest.raises(TryAgainError) as caught:
                [each async for each in client.estimate_batch([image_bytes()] * 2)]
            assert caught.value.code == "rate_limited"
            assert caught.value.retry_after_s == pytest.approx(100, rel=0.01)
            await client.estimate(image_bytes())
            with pytest.raises(TryAgainError, match=r"0\.01 images a second"):
                await client.estimate(image_bytes())
            await client.models()  # costs nothing
        async with guarded.client(protocol, guarded.other) as client:
            await client.estimate(image_bytes())


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_frames_count_and_a_stream_outlives_a_frame_too_many(protocol: str) -> None:
    async def frames() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield image_bytes()

    policy = AccessPolicy(allowance=Allowance(0.01, 2))
    async with guarded_by(policy) as guarded, guarded.client(protocol, guarded.key) as client:
        answers = [answer async for answer in client.stream(frames())]
    assert [each.error and each.error.code for each in answers] == [None, None, "rate_limited"]


async def test_rest_says_429_with_retry_after() -> None:
    async with guarded_by(AccessPolicy(allowance=Allowance(0.1, 1))) as guarded, guarded.http(guarded.key) as client:
        assert (await client.post("/v1/hand-pose", content=image_bytes())).status_code == 200
        refused = await client.post("/v1/hand-pose", content=image_bytes())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")


# Guessing


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_guessing_from_one_address_is_slowed(protocol: str) -> None:
    async with guarded_by(AccessPolicy(failures=3, failures_per_second=0.01)) as guarded:
        assert [await code_of(guarded.client(protocol, new_key()), "models") for _ in range(3)] == [
            "unauthenticated"
        ] * 3
        with pytest.raises(TryAgainError) as caught:
            await code_of(guarded.client(protocol, guarded.key), "models")
    assert caught.value.code == "throttled"
    assert caught.value.retry_after_s == pytest.approx(100, rel=0.01)


# Where keys turn up


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root, service = logging.getLogger(), logging.getLogger("service")
    before = root.handlers[:], root.level, service.level
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers[:], level, service_level = before
    root.setLevel(level)
    service.setLevel(service_level)


async def test_key_is_in_no_log_and_no_answer_wherever_it_was_put(guarded: Guarded, log: io.StringIO) -> None:
    key, image = guarded.key, image_bytes()
    answers: list[str] = []
    async with guarded.http(key) as client:
        for path in ("/v1/hand-pose", f"/v1/{key}", f"/v1/hand-pose?roi={key}", f"/v1/hand-pose?key={key}"):
            answers += [str(answer.headers) + answer.text for answer in [await client.post(path, content=image)]]
        for headers in (
            {"X-Model-Variant": key},
            {"X-Client-Id": key},
            {"X-Request-Id": key},
            {"X-Request-Timeout-Ms": key},
            {"traceparent": key},
            {"Accept": key},
            {"Content-Type": key},
            {"Content-Type": f"multipart/form-data; boundary={key}"},
        ):
            answer = await client.post("/v1/hand-pose", content=image, headers=headers)
            answers.append(str(answer.headers) + answer.text)
        for body in (
            f'{{"image": "{key}"}}',
            f'{{"{key}": 1, "image": ""}}',
            f'{{"image": "", "rois": [{{"{key}": 1}}]}}',
            key,
        ):
            answer = await client.post("/v1/hand-pose", content=body, headers={"Content-Type": "application/json"})
            answers.append(str(answer.headers) + answer.text)
        answer = await client.post("/v1/hand-pose", files={key: (key, image)})
        answers.append(str(answer.headers) + answer.text)
        answer = await client.request(key, "/v1/models")
        answers.append(str(answer.headers) + answer.text)
    url = f"ws://127.0.0.1:{guarded.gateway.rest_port}{STREAM}?variant={key}&{key}=1"
    async with connect(url, subprotocols=[Subprotocol("handpose.v1"), Subprotocol(f"handpose.key.{key}")]) as stream:
        answers.append(str(await stream.recv()))
        await stream.wait_closed()
        answers.append(f"{stream.response and stream.response.headers} {stream.close_reason}")
    metadata = [
        ("authorization", f"Bearer {key}"),
        ("x-model-variant", key),
        ("x-request-id", key),
        ("x-client-id", key),
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.gateway.stub().Estimate(pb.EstimateRequest(image=image), metadata=metadata, timeout=10)
    answers.append(f"{caught.value!r} {caught.value.trailing_metadata()}")
    assert len(answers) >= 20
    for text in (*answers, log.getvalue()):
        assert key not in text, text[text.index(key) - 200 :]
    ours = [line for line in log.getvalue().splitlines() if '"logger": "service' in line]
    assert any('"key": "kiosk"' in line for line in ours)


def test_client_tells_nobody_its_key() -> None:
    key = "hpk_ with blanks"
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        AsyncHandPoseClient("http://127.0.0.1:1", api_key=key)
    assert key not in str(caught.value)


async def test_broken_connection_at_the_door_harms_nobody(guarded: Guarded) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", guarded.gateway.rest_port)) as left:
            left.sendall(b"POST /v1/hand-pose HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    async with guarded.http(guarded.key) as client:
        assert (await client.get("/v1/models")).status_code == 200
