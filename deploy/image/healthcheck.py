"""Whether the gateway in this container is ready: exit code 0 if /readyz says so. The images' HEALTHCHECK.

Standard library only, and no curl in the image. It asks the container's own address, where nothing can be proved
about a certificate that names the service, so with TLS the certificate is not checked. Where clients must show
certificates, HANDPOSE_ADMIN_PORT has to be set: this one has none to show.
"""

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

TIMEOUT_S = 5


def readiness(environment: Mapping[str, str]) -> int:
    """The status of /readyz.

    Raises:
        OSError: if nothing answers.
    """
    admin_port = environment.get("HANDPOSE_ADMIN_PORT")
    port = int(admin_port or environment.get("HANDPOSE_REST_PORT") or 8000)
    connection: http.client.HTTPConnection
    if environment.get("HANDPOSE_TLS_CERT_FILE") and not admin_port:
        unchecked = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=unchecked)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        status = readiness(os.environ)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"nothing answers: {error}")
    sys.exit(0 if status == http.HTTPStatus.OK else f"/readyz answers {status}")
