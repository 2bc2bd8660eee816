"""Certificates for TLS from files: checked, and followed when the files change.

REST gets an `ssl.SSLContext`, which hands each new connection to the certificate of the moment; gRPC gets the bytes
(`TlsFiles.current`). Nothing of TLS is done here: that is OpenSSL's and BoringSSL's work.
"""

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from service.files import FileError, follow, read_at_most

_log = logging.getLogger(__name__)

_MAX_BYTES: Final = 1024 * 1024
_TELL_BEFORE_DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files hold.

    Attributes:
        certificate_chain: PEM; the server's certificate first.
        private_key: PEM, the certificate's.
        client_ca: PEM; clients must show a certificate from one of these. None: they need none.
        valid_until: when the server's certificate expires.
    """

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None
    valid_until: datetime


class TlsFiles:
    """The files as they are now, or as they last were right.

    Args:
        cert_file: PEM; the server's certificate, then those between it and its authority.
        key_file: PEM; its private key, not encrypted.
        client_ca_file: PEM; authorities whose certificates clients must show. None: they need none.

    Raises:
        FileError: they are wrong.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None = None) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self.current, self._inner = self._read()
        self._outer = _new_context(self.current)

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that lives as long as this object, and whose certificate changes with the files."""

        def choose(connection: ssl.SSLObject, _name: str | None, _outer: ssl.SSLContext) -> None:
            connection.context = self._inner

        # Loading other files into a context that is in use would not do: for a moment certificate and key would not
        # fit, and an authority cannot be taken out of it again. So each handshake is handed to a complete context.
        self._load(self._outer)
        self._outer.sni_callback = choose
        return self._outer

    def now(self) -> TlsMaterial:
        """What the files hold, as a function to call for each connection."""
        return self.current

    def load(self) -> bool:
        """Follow the files as they are now; whether they have changed since.

        Raises:
            FileError: they are wrong. What they were before stays in use.
        """
        if self._contents() == self._contents_of(self.current):
            return False
        self.current, self._inner = self._read()
        self.warn()
        return True

    async def watch(self, every_s: float = 2.0) -> None:
        """Follow the files for ever. Files that are wrong change nothing, and are logged once."""
        await follow(lambda: asyncio.to_thread(self.load), every_s=every_s, what=f"certificate in {self._cert_file}")

    def warn(self, now: datetime | None = None) -> None:
        """Log what is allowed and yet probably not meant: a certificate that has expired, or soon will."""
        left = self.current.valid_until - (now or datetime.now(UTC))
        if left.total_seconds() <= 0:
            _log.warning("the certificate in %s expired on %s", self._cert_file, self.current.valid_until.date())
        elif left.days < _TELL_BEFORE_DAYS:
            _log.warning("the certificate in %s expires on %s", self._cert_file, self.current.valid_until.date())

    def _read(self) -> tuple[TlsMaterial, ssl.SSLContext]:
        """The files' content, and a context made from the very same."""
        contents = chain, key, client_ca = self._contents()
        valid_until = _check(self._cert_file, chain, self._key_file, key)
        if client_ca is not None:
            _certificates(self._client_ca_file, client_ca)
        material = TlsMaterial(chain, key, client_ca, valid_until)
        try:
            context = _new_context(material)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise FileError(f"{self._client_ca_file}: cannot be used: {error}") from error
        self._load(context)
        if self._contents() != contents:
            raise FileError(f"{self._cert_file} or {self._key_file} changed while it was read")
        return material, context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise FileError(f"{self._cert_file} and {self._key_file} cannot be used: {error}") from error

    def _contents(self) -> tuple[bytes, bytes, bytes | None]:
        client_ca = None if self._client_ca_file is None else read_at_most(self._client_ca_file, _MAX_BYTES)
        return read_at_most(self._cert_file, _MAX_BYTES), read_at_most(self._key_file, _MAX_BYTES), client_ca

    @staticmethod
    def _contents_of(material: TlsMaterial) -> tuple[bytes, bytes, bytes | None]:
        return material.certificate_chain, material.private_key, material.client_ca


def _new_context(material: TlsMaterial) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if material.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=material.client_ca.decode("ascii"))
        # A session that is resumed shows no certificate again: an authority that was taken out would go on to count.
        # TLS 1.3 resumes by tickets only, and none is given. TLS 1.2 resumes from the server's memory, too, which
        # nothing in Python's ssl turns off: so it is not spoken.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _check(cert_file: Path, chain: bytes, key_file: Path, key: bytes) -> datetime:
    """When the certificate expires. Raises FileError if there is none, or if the key is not its key."""
    certificate = _certificates(cert_file, chain)[0]
    try:
        public = _public(certificate.public_key())
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and what else a parser meets
        raise FileError(f"{cert_file}: the certificate's key is of no kind that is known") from error
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except TypeError as error:
        raise FileError(f"{key_file}: the key is encrypted; one without a password is needed") from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and what else a parser meets
        raise FileError(f"{key_file}: no private key in PEM") from error
    if _public(private.public_key()) != public:
        raise FileError(f"{key_file}: not the key of the certificate in {cert_file}")
    return certificate.not_valid_after_utc


def _certificates(path: Path | None, content: bytes) -> list[x509.Certificate]:
    try:
        content.decode("ascii")
        return x509.load_pem_x509_certificates(content)
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and what else a parser meets
        raise FileError(f"{path}: no certificate in PEM") from error


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
