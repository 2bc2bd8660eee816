"""The images' health check, on a real socket."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import trustme

from deploy.image.healthcheck import readiness


@contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers /readyz with a status, and everything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [200, 503])
def test_it_learns_what_readyz_answers(status: int) -> None:
    with answering(status) as port:
        assert readiness({"HANDPOSE_REST_PORT": str(port)}) == status


def test_it_asks_the_admin_listener_where_there_is_one_because_that_one_has_no_tls() -> None:
    with answering(200) as port:
        environment = {"HANDPOSE_ADMIN_PORT": str(port), "HANDPOSE_REST_PORT": "1", "HANDPOSE_TLS_CERT_FILE": "a.pem"}
        assert readiness(environment) == 200


def test_with_tls_it_does_not_mind_that_the_certificate_is_another_names() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("hands.example").configure_cert(context)
    with answering(200, context) as port:
        assert readiness({"HANDPOSE_REST_PORT": str(port), "HANDPOSE_TLS_CERT_FILE": "server.pem"}) == 200


def test_nobody_who_answers_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        readiness({"HANDPOSE_REST_PORT": str(port)})
