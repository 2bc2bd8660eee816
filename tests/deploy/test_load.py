"""The clients that prove that no request is lost: would they notice one that is?"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.stack_check.load import Load
from tests.support.waiting import until

ENOUGH = 6


class Gateway:
    """Answers requests as told, and says when enough of them have come."""

    def __init__(self, answer: str) -> None:
        self.seen: list[tuple[str, str]] = []
        self.enough = threading.Event()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert body == b"picture"
                gateway.seen.append((self.headers["X-Request-Id"], self.headers["X-Model-Variant"]))
                if len(gateway.seen) >= ENOUGH:
                    gateway.enough.set()
                if answer == "nothing":
                    self.close_connection = True
                    return
                self.send_response(int(answer))
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}" if answer != "200" else b"[]")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.server_port


@contextmanager
def gateway(answer: str) -> Iterator[Gateway]:
    running = Gateway(answer)
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        thread.join()
        running.server.server_close()


def test_answers_are_known_by_the_id_of_their_request_and_both_variants_are_asked_for() -> None:
    with gateway("200") as running:
        load = Load(running.address, b"picture", clients=2)
        load.start()
        assert running.enough.wait(20)
        outcome = load.stop()

    assert outcome.statuses == {request_id: 200 for request_id, _ in running.seen}
    assert all(request_id.startswith(load.name) for request_id in outcome.statuses)
    assert {variant for _, variant in running.seen} == {"lightweight", "standard"}
    assert not outcome.lost
    assert not load.under_way()


def test_a_refusal_is_an_answer() -> None:
    with gateway("503") as running:
        load = Load(running.address, b"picture", clients=1)
        load.start()
        assert running.enough.wait(20)
        outcome = load.stop()

    assert set(outcome.by_status()) == {503}
    assert not outcome.lost


def test_a_request_whose_connection_is_closed_without_an_answer_is_lost() -> None:
    with gateway("nothing") as running:
        load = Load(running.address, b"picture", clients=2)
        load.start()
        assert running.enough.wait(20)
        outcome = load.stop()

    assert outcome.lost.keys() == {request_id for request_id, _ in running.seen}
    assert not outcome.statuses


async def test_who_is_not_let_in_has_lost_nothing() -> None:
    with gateway("200") as running:
        nobody = running.address
    load = Load(nobody, b"picture", clients=1)
    load.start()
    await until(lambda: load.outcome.refused > 0)
    outcome = load.stop()

    assert not outcome.lost
    assert not outcome.statuses
