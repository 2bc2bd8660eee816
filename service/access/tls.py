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

from service.files import FileError, follow, read_at_most

_log = logging.getLogger(__name__)

_TELL_BEFORE_DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files hold.

    Attributes:
        certificate_chain: PEM; the server's certificate first.
        private_key: PEM, the certificate's.
        client_ca: PEM; a client must show a certificate from one of these. None: clients need none.
    """

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None


class TlsFiles:
    """The files as they are now, or as they last were right.

    Args:
        cert_file: PEM; the server's certificate, then those between it and its authority.
        key_file: PEM; its private key, not encrypted.
        client_ca_file: PEM; authorities whose certificates clients must show. None: they need none.

    Raises:
        FileError: the files are wrong.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None = None) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._current = self._contents()
        self._inner = self._context(self._current)
        self._outer = self._context(self._current)

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that lives as long as this object, and whose certificate changes with the files."""

        def choose(connection: ssl.SSLObject, _name: str | None, _outer: ssl.SSLContext) -> None:
            connection.context = self._inner

        # Loading other files into a context that is in use would not do: for a moment certificate and key would not
        # fit, and an authority cannot be taken out of it again. So each handshake is handed to a complete context.
        self._outer.sni_callback = choose
        return self._outer

    def now(self) -> TlsMaterial:
        """What the files hold now; the same object until they change."""
        return self._current

    def load(self) -> bool:
        """Read the files; returns whether they have changed. Wrong files raise FileError and change nothing."""
        contents = self._contents()
        if contents == self._current:
            return False
        self._inner = self._context(contents)
        self._current = contents
        self.warn()
        return True

    async def watch(self, every_s: float = 2.0) -> None:
        """Follow the files for ever. Files that are wrong change nothing, and are logged once."""
        await follow(lambda: asyncio.to_thread(self.load), every_s=every_s, what=f"certificate in {self._cert_file}")

    def warn(self, now: datetime | None = None) -> None:
        """Log a warning if the certificate has expired, or soon will."""
        valid_until = self._valid_until(self._current)
        left = valid_until - (now or datetime.now(UTC))
        if left.days < _TELL_BEFORE_DAYS:
            verb = "expired" if left.total_seconds() <= 0 else "expires"
            _log.warning("the certificate in %s %s on %s", self._cert_file, verb, valid_until.date())

    def _context(self, contents: TlsMaterial) -> ssl.SSLContext:
        """A context made from these contents of the files."""
        self._valid_until(contents)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            files = f"{self._cert_file} and {self._key_file}"
            raise FileError(f"{files}: not a certificate and its own key in PEM, not encrypted: {error}") from error
        if contents.client_ca is not None:
            try:
                context.load_verify_locations(cadata=contents.client_ca.decode("ascii"))
            except (OSError, ValueError) as error:
                raise FileError(f"{self._client_ca_file}: cannot be used: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed shows no certificate again: an authority that was removed would still count.
            # TLS 1.3 resumes by tickets only, and none is given. TLS 1.2 also resumes from the server's memory, which
            # Python's ssl cannot turn off.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        if self._contents() != contents:
            raise FileError(f"{self._cert_file} or {self._key_file} changed while it was read")
        return context

    def _valid_until(self, contents: TlsMaterial) -> datetime:
        try:
            return x509.load_pem_x509_certificates(contents.certificate_chain)[0].not_valid_after_utc
        except Exception as error:  # ValueError, UnsupportedAlgorithm, and what else a parser meets
            raise FileError(f"{self._cert_file}: no certificate in PEM") from error

    def _contents(self) -> TlsMaterial:
        client_ca = None if self._client_ca_file is None else read_at_most(self._client_ca_file)
        return TlsMaterial(read_at_most(self._cert_file), read_at_most(self._key_file), client_ca)
