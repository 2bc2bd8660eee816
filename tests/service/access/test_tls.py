"""Certificates from files: what is told at the start, and what is followed."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from service.files import FileError
from tests.support.certificates import TlsFolder


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(tmp_path: Path, authority: trustme.CA) -> TlsFolder:
    folder = TlsFolder(tmp_path)
    folder.write_server(authority)
    return folder


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


def test_missing_file_is_told_by_its_name(folder: TlsFolder) -> None:
    folder.key.unlink()
    with pytest.raises(FileError, match=r"server-key\.pem: cannot be read: No such file"):
        folder.files()


def test_key_of_another_certificate_is_told(folder: TlsFolder, authority: trustme.CA) -> None:
    folder.key.write_bytes(authority.issue_cert("other.example").private_key_pem.bytes())
    with pytest.raises(FileError, match=r"server\.pem and .*server-key\.pem: not a certificate and its own key"):
        folder.files()


def test_encrypted_key_is_told_and_nobody_is_asked_for_a_password(folder: TlsFolder) -> None:
    folder.key.write_bytes(encrypted(folder.key.read_bytes()))
    with pytest.raises(FileError, match="not encrypted"):
        folder.files()


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"]
)
def test_file_that_holds_something_else_is_told(folder: TlsFolder, name: str, content: bytes) -> None:
    path: Path = getattr(folder, name)
    path.write_bytes(content)
    with pytest.raises(FileError, match=path.name):
        folder.files()


def test_key_of_an_unknown_kind_is_told(folder: TlsFolder) -> None:
    folder.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nMA4CAQAwBQYDKgMEBAIAAA==\n-----END PRIVATE KEY-----\n")
    with pytest.raises(FileError, match=r"server-key\.pem: not a certificate and its own key"):
        folder.files()


def test_authorities_that_only_openssl_cannot_read_are_told(folder: TlsFolder, authority: trustme.CA) -> None:
    folder.client_ca.write_bytes(authority.cert_pem.bytes().replace(b"\n", b""))
    with pytest.raises(FileError, match=r"client-ca\.pem: cannot be used"):
        folder.files()


async def test_following_goes_on_after_a_file_that_breaks_the_parser(
    folder: TlsFolder, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_client_ca(authority)
    files = folder.files()
    folder.client_ca.write_bytes(authority.cert_pem.bytes().replace(b"\n", b""))
    following = asyncio.create_task(files.watch(every_s=0))
    async with asyncio.timeout(10):
        while not following.done() and "the previous stays in use" not in caplog.text:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        folder.write_client_ca(trustme.CA())
        while not following.done() and files.now().client_ca != folder.client_ca.read_bytes():  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not following.done()
    following.cancel()


@pytest.mark.parametrize(("days", "words"), [(-1, "expired on"), (3, "expires on"), (100, None)])
def test_certificate_that_has_expired_or_soon_will_is_a_warning(
    folder: TlsFolder, authority: trustme.CA, caplog: pytest.LogCaptureFixture, days: int, words: str | None
) -> None:
    now = datetime.now(UTC)
    folder.write_server(authority, not_after=now + timedelta(days=days))
    with caplog.at_level(logging.WARNING):
        folder.files().warn(now)
    assert [words in record.getMessage() for record in caplog.records if words] == [True] * bool(words)
    assert len(caplog.records) == bool(words)


def test_new_files_are_followed_and_broken_ones_are_not(folder: TlsFolder, authority: trustme.CA) -> None:
    files = folder.files()
    first = files.now()
    assert not files.load()
    folder.write_server(authority)
    assert files.load()
    second = files.now()
    assert second.certificate_chain != first.certificate_chain
    folder.key.write_bytes(b"half of a k")
    with pytest.raises(FileError):
        files.load()
    assert files.now() is second


def test_private_key_is_not_in_the_words_for_it(folder: TlsFolder) -> None:
    assert "PRIVATE" not in repr(folder.files().now())
