"""TLS of the gRPC server: the certificate of the moment for each new connection."""

from collections.abc import Callable
from typing import Protocol

import grpc


class Certificates(Protocol):
    """What a TLS server needs, in PEM."""

    @property
    def certificate_chain(self) -> bytes: ...

    @property
    def private_key(self) -> bytes: ...

    @property
    def client_ca(self) -> bytes | None:
        """Authorities of which clients must show a certificate; None: they need none. Stays what it is."""
        ...


def server_credentials(current: Callable[[], Certificates]) -> grpc.ServerCredentials:
    """Credentials that follow the certificates. gRPC takes TLS 1.2 and 1.3.

    Args:
        current: the certificates now; called from gRPC's threads at each new connection.
    """
    first = given = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        before, given = given, current()
        return None if given is before else _configuration(given)  # None: what it has

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        fetch,  # type: ignore[arg-type]  # None is allowed, which its type does not say
        require_client_authentication=first.client_ca is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.private_key, certificates.certificate_chain)], root_certificates=certificates.client_ca
    )
