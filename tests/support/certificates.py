"""Certificates made on the spot, as files that TLS is told of."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme

from service.access.tls import TlsFiles
from service.client import Tls


@dataclass(frozen=True)
class TlsFolder:
    """A folder with a server's certificate and key, and perhaps the authorities of clients."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server-key.pem"

    @property
    def client_ca(self) -> Path:
        return self.folder / "client-ca.pem"

    def write_server(self, authority: trustme.CA, *, not_after: datetime | None = None) -> None:
        """A new certificate for 127.0.0.1 and localhost."""
        made = authority.issue_cert("127.0.0.1", "localhost", not_after=not_after)
        self.cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        self.key.write_bytes(made.private_key_pem.bytes())

    def write_client_ca(self, authority: trustme.CA) -> None:
        self.client_ca.write_bytes(authority.cert_pem.bytes())

    def files(self) -> TlsFiles:
        """What a server follows."""
        return TlsFiles(self.cert, self.key, self.client_ca if self.client_ca.exists() else None)

    def trusting(
        self, authority: trustme.CA, client_authority: trustme.CA | None = None, *, not_after: datetime | None = None
    ) -> Tls:
        """A client that trusts one authority, and shows a certificate of another if it has one."""
        ca_file = self.folder / f"trusted-{id(authority)}.pem"
        ca_file.write_bytes(authority.cert_pem.bytes())
        if client_authority is None:
            return Tls(ca_file)
        made = client_authority.issue_cert("client.example", not_after=not_after)
        cert_file = self.folder / f"client-{id(made)}.pem"
        cert_file.write_bytes(made.private_key_and_cert_chain_pem.bytes())
        return Tls(ca_file, cert_file)
