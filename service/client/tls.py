"""Certificates of a client, for addresses that begin with https:// or grpcs://."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates in PEM. Files are read when a client is made.

    Attributes:
        ca_file: the authorities that the service's certificate may come from; None: those that the system trusts.
        cert_file: the client's certificate, then those between it and its authority; None: it shows none.
        key_file: the certificate's private key, not encrypted; None: it is in `cert_file`.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("a client's key needs its certificate, too")

    def context(self) -> ssl.SSLContext:
        """For REST and WebSocket.

        Raises:
            ValueError: a file cannot be read, or does not hold what it should.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except OSError as error:  # an SSLError is one
            raise ValueError(f"{self._files()}: {error.strerror or error}") from error
        return context

    def credentials(self) -> "grpc.ChannelCredentials":
        """For gRPC.

        Raises:
            ValueError: see `context`.
        """
        import grpc

        self.context()  # gRPC itself would tell of a wrong file at the first call only, and not which
        key_file = self.key_file or self.cert_file
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca_file is None else self.ca_file.read_bytes(),
            private_key=None if key_file is None else key_file.read_bytes(),
            certificate_chain=None if self.cert_file is None else self.cert_file.read_bytes(),
        )

    def _files(self) -> str:
        return ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None)
