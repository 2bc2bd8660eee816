"""TLS and mutual TLS over real sockets, on both protocols: who gets through, and what the others get."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from service.client import (
    AsyncHandPoseClient,
    ConnectionFailedError,
    HandPoseClient,
    RejectedError,
    RetryPolicy,
    Tls,
)
from service.inference.access import AccessPolicy, ApiKey, Doorkeeper
from service.inference.keys import digest_of, new_key
from service.rpc.handpose.v1 import hand_pose_pb2, hand_pose_pb2_grpc
from tests.support.certificates import TlsFolder
from tests.support.gateway import Gateway
from tests.support.images import image_bytes

YESTERDAY = datetime.now(UTC) - timedelta(days=1)
ONCE = RetryPolicy(attempts=1)

both_protocols = pytest.mark.parametrize("protocol", ["rest", "grpc"])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(tmp_path: Path, authority: trustme.CA) -> TlsFolder:
    folder = TlsFolder(tmp_path)
    folder.write_server(authority)
    return folder


@asynccontextmanager
async def serving(folder: TlsFolder, **more: Any) -> AsyncIterator[Gateway]:
    with ThreadPoolExecutor(1) as workers:
        gateway = Gateway(workers, tls=folder.files(), **more)
        await gateway.start()
        await gateway.start_rest()
        try:
            yield gateway
        finally:
            await gateway.stop()


def url_of(gateway: Gateway, protocol: str) -> str:
    return gateway.rest_url if protocol == "rest" else gateway.rpc_url


async def gets_through(gateway: Gateway, protocol: str, tls: Tls, url: str | None = None) -> bool:
    async with AsyncHandPoseClient(url or url_of(gateway, protocol), tls=tls, retries=ONCE, timeout_s=10) as client:
        try:
            await client.estimate(image_bytes())
        except ConnectionFailedError:
            return False
    return True


@both_protocols
async def test_client_that_trusts_the_authority_gets_answers_and_streams(
    folder: TlsFolder, authority: trustme.CA, protocol: str
) -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield image_bytes()

    async with serving(folder) as gateway:
        tls = folder.trusting(authority)
        async with AsyncHandPoseClient(url_of(gateway, protocol), tls=tls) as client:
            assert (await client.estimate(image_bytes())).hands
            assert [answer.error async for answer in client.stream(frames())] == [None]

        def blocking() -> int:
            with HandPoseClient(url_of(gateway, protocol), tls=tls) as client:
                return len(client.estimate(image_bytes()).hands) + len(list(client.stream([image_bytes()])))

        assert await asyncio.to_thread(blocking) == 2


@both_protocols
async def test_client_refuses_a_server_of_another_authority(folder: TlsFolder, protocol: str) -> None:
    async with serving(folder) as gateway:
        assert not await gets_through(gateway, protocol, folder.trusting(trustme.CA()))
        assert not await gets_through(gateway, protocol, Tls())


@both_protocols
async def test_client_refuses_a_server_whose_certificate_has_expired(
    folder: TlsFolder, authority: trustme.CA, protocol: str
) -> None:
    folder.write_server(authority, not_after=YESTERDAY)
    async with serving(folder) as gateway:
        assert not await gets_through(gateway, protocol, folder.trusting(authority))


@both_protocols
async def test_plain_text_gets_nothing_from_a_tls_port_and_the_port_stays_up(
    folder: TlsFolder, authority: trustme.CA, protocol: str
) -> None:
    async with serving(folder) as gateway:
        plain = url_of(gateway, protocol).replace("s://", "://")
        assert not await gets_through(gateway, protocol, Tls(), plain)
        assert await gets_through(gateway, protocol, folder.trusting(authority))


@both_protocols
async def test_mutual_tls_asks_for_a_certificate_of_the_right_authority_that_has_not_expired(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA, protocol: str
) -> None:
    folder.write_client_ca(client_authority)
    async with serving(folder) as gateway:
        shown = {
            "right": folder.trusting(authority, client_authority),
            **certificates_that_do_not_count(folder, authority, client_authority),
        }
        through = {what: await gets_through(gateway, protocol, tls) for what, tls in shown.items()}
    assert through == {what: what == "right" for what in shown}


def certificates_that_do_not_count(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA
) -> dict[str, Tls]:
    """What clients may show that is not right, where `client_authority` is asked for."""
    return {
        "none": folder.trusting(authority),
        "of another authority": folder.trusting(authority, trustme.CA()),
        "of the server's authority": folder.trusting(authority, authority),
        "expired": folder.trusting(authority, client_authority, not_after=YESTERDAY),
    }


async def test_grpc_is_unavailable_to_plain_text_and_to_certificates_that_do_not_count(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA
) -> None:
    folder.write_client_ca(client_authority)
    right = folder.trusting(authority, client_authority).credentials()
    async with serving(folder) as gateway:
        address = f"127.0.0.1:{gateway.port}"
        assert await status_of(grpc.aio.secure_channel(address, right)) is grpc.StatusCode.OK
        wrong = certificates_that_do_not_count(folder, authority, client_authority)
        refused = {what: grpc.aio.secure_channel(address, tls.credentials()) for what, tls in wrong.items()}
        refused["plain text"] = grpc.aio.insecure_channel(address)
        statuses = {what: await status_of(channel) for what, channel in refused.items()}
        assert statuses == dict.fromkeys(refused, grpc.StatusCode.UNAVAILABLE)
        assert await status_of(grpc.aio.secure_channel(address, right)) is grpc.StatusCode.OK


async def status_of(channel: grpc.aio.Channel) -> grpc.StatusCode:
    async with channel:
        stub: Any = hand_pose_pb2_grpc.HandPoseServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            await stub.ListModels(hand_pose_pb2.ListModelsRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_rest_answers_nothing_to_plain_text_and_to_certificates_that_do_not_count(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA
) -> None:
    folder.write_client_ca(client_authority)
    right = folder.trusting(authority, client_authority).context()
    async with serving(folder) as gateway:
        assert (await answer_to(gateway.rest_port, right)).startswith(b"HTTP/1.1 200 ")
        wrong = certificates_that_do_not_count(folder, authority, client_authority)
        refused = {"plain text": None, **{what: tls.context() for what, tls in wrong.items()}}
        answers = {what: await answer_to(gateway.rest_port, context) for what, context in refused.items()}
        assert answers == dict.fromkeys(refused, b"")
        assert (await answer_to(gateway.rest_port, right)).startswith(b"HTTP/1.1 200 ")


async def answer_to(port: int, context: ssl.SSLContext | None) -> bytes:
    """What comes back for a request until the other end closes the connection."""
    with suppress(ssl.SSLError, ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
    return b""


KEY_CODES = {"none": "unauthenticated", "wrong": "unauthenticated", "revoked": "unauthenticated", "right": "ok"}


@both_protocols
async def test_keys_count_behind_tls_as_they_do_without(
    folder: TlsFolder, authority: trustme.CA, protocol: str
) -> None:
    right, revoked = new_key(), new_key()
    doorkeeper = Doorkeeper(AccessPolicy(), time=asyncio.get_running_loop().time)
    doorkeeper.follow([ApiKey("right", digest_of(right)), ApiKey("revoked", digest_of(revoked))])
    async with serving(folder, doorkeeper=doorkeeper) as gateway:

        async def code(key: str | None) -> str:
            async with AsyncHandPoseClient(
                url_of(gateway, protocol), api_key=key, tls=folder.trusting(authority), retries=ONCE
            ) as client:
                try:
                    await client.estimate(image_bytes())
                except RejectedError as error:
                    return error.code
            return "ok"

        assert await code(revoked) == "ok"
        doorkeeper.follow([ApiKey("right", digest_of(right))])
        shown = {"none": None, "wrong": new_key(), "revoked": revoked, "right": right}
        assert {what: await code(key) for what, key in shown.items()} == KEY_CODES


@both_protocols
async def test_new_connections_get_the_new_certificate_without_a_restart(
    folder: TlsFolder, authority: trustme.CA, protocol: str
) -> None:
    other = trustme.CA()
    async with serving(folder) as gateway:
        assert gateway.tls is not None
        url = url_of(gateway, protocol)
        async with AsyncHandPoseClient(url, tls=folder.trusting(authority), retries=ONCE) as old:
            await old.estimate(image_bytes())
            folder.write_server(other)
            gateway.tls.load()
            await old.estimate(image_bytes())  # its connection goes on
        assert await gets_through(gateway, protocol, folder.trusting(other))
        assert not await gets_through(gateway, protocol, folder.trusting(authority))


@both_protocols
async def test_authority_that_was_taken_out_opens_no_door(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA, protocol: str
) -> None:
    folder.write_client_ca(client_authority)
    new = trustme.CA()
    async with serving(folder) as gateway:
        assert gateway.tls is not None
        before = folder.trusting(authority, client_authority)
        assert await gets_through(gateway, protocol, before)
        folder.write_client_ca(new)
        gateway.tls.load()
        assert not await gets_through(gateway, protocol, before)
        assert await gets_through(gateway, protocol, folder.trusting(authority, new))


@pytest.mark.parametrize("port", ["rest_port", "port"])
@pytest.mark.parametrize(("version", "spoken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_1_2_is_the_least_that_is_spoken(
    folder: TlsFolder, authority: trustme.CA, port: str, version: str, spoken: bool
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or the client itself would not offer the old one
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    async with serving(folder) as gateway:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", getattr(gateway, port), ssl=context)
        except (ssl.SSLError, ConnectionError):
            assert not spoken
            return
        assert spoken
        writer.transport.abort()


@pytest.mark.parametrize(
    ("port", "version", "spoken"),
    [
        ("rest_port", "TLSv1_2", False),
        ("rest_port", "TLSv1_3", True),
        ("port", "TLSv1_2", True),
        ("port", "TLSv1_3", True),
    ],
)
async def test_session_of_an_authority_that_was_taken_out_is_not_resumed(
    folder: TlsFolder, authority: trustme.CA, client_authority: trustme.CA, port: str, version: str, spoken: bool
) -> None:
    folder.write_client_ca(client_authority)
    context = folder.trusting(authority, client_authority).context()
    context.maximum_version = ssl.TLSVersion[version]
    hello = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
    if port == "port":
        context.set_alpn_protocols(["h2"])
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    async with serving(folder) as gateway:
        assert gateway.tls is not None
        address = ("127.0.0.1", getattr(gateway, port))
        answered, session = await asyncio.to_thread(says, context, address, hello, None)
        assert answered == spoken
        folder.write_client_ca(trustme.CA())
        gateway.tls.load()
        assert await asyncio.to_thread(says, context, address, hello, session) == (False, None)


def says(
    context: ssl.SSLContext, address: tuple[str, int], hello: bytes, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """Whether a server answers, and the session by which to come back."""
    try:
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=address[0], session=session) as connection,
        ):
            connection.sendall(hello)
            return (True, connection.session) if connection.recv(100) else (False, None)
    except (ssl.SSLError, ConnectionError):
        return False, None


async def test_answers_over_tls_tell_browsers_to_come_back_with_it(folder: TlsFolder, authority: trustme.CA) -> None:
    async with serving(folder) as gateway, httpx.AsyncClient(verify=folder.trusting(authority).context()) as client:
        answer = await client.get(f"{gateway.rest_url}/livez")
    assert answer.headers["Strict-Transport-Security"] == "max-age=1000"


@pytest.mark.parametrize("wrong", ["ca_file", "cert_file"])
def test_client_tells_which_file_is_wrong(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "wrong.pem"
    for content in (None, b"not PEM"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"wrong\.pem: "):
            HandPoseClient("https://127.0.0.1:1", tls=Tls(**{wrong: path}))
        with pytest.raises(ValueError, match=r"wrong\.pem: "):
            HandPoseClient("grpcs://127.0.0.1:1", tls=Tls(**{wrong: path}))


def test_client_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its certificate"):
        Tls(key_file=tmp_path / "key.pem")
