"""The client and answers over HTTP that are not what it knows: newer ones, and those of something else."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from service.client import HandPoseClient, ServerFailedError

Serve = Callable[[Any], str]

ANSWER: dict[str, Any] = {
    "request_id": "r",
    "model": {"name": "cpm_lightweight", "variant": "lightweight", "version": 1, "label": "stable", "routed_by": "x"},
    "image": {"width": 20, "height": 10},
    "hands": [
        {
            "score": 0.5,
            "box": {"x": 0, "y": 0, "width": 20, "height": 10, "angle": 3},
            "keypoints": [
                {
                    "id": 0,
                    "name": "wrist",
                    "x": 1,
                    "y": 2,
                    "x_norm": 0.05,
                    "y_norm": 0.2,
                    "score": 1,
                    "sigma": 1,
                    "z": 4,
                }
            ],
            "grip": "open",
        }
    ],
    "timings_ms": {"decode": 1, "queue": 1, "inference": 1, "postprocess": 1, "total": 4, "render": 2},
    "new": True,
}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers everything with one JSON value; returns its address."""
    running: list[tuple[HTTPServer, threading.Thread]] = []

    def start(answer: Any) -> str:
        body = json.dumps(answer).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_later_service_adds_is_ignored(serve: Serve) -> None:
    with HandPoseClient(serve(ANSWER)) as client:
        (hand,) = client.estimate(b"photo").hands

    assert (hand.keypoints[0].x, hand.box.width) == (1, 20)


def test_what_an_earlier_service_does_not_say_of_a_hand_is_unknown(serve: Serve) -> None:
    with HandPoseClient(serve(ANSWER)) as client:
        estimate = client.estimate(b"photo")

    assert estimate.hands[0].handedness is None
    assert estimate.timings_ms.detection == 0


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ({}, "'model' is missing"),
        ([], "list"),
        (None, "None"),
        ({**ANSWER, "timings_ms": {"decode": 1}}, "'queue' is missing"),
        ({**ANSWER, "hands": 7}, "int"),
    ],
)
def test_an_answer_of_another_shape_is_the_servers_failure(serve: Serve, answer: Any, wrong: str) -> None:
    with HandPoseClient(serve(answer)) as client, pytest.raises(ServerFailedError, match=wrong) as caught:
        client.estimate(b"photo")

    assert caught.value.code == "not_understood"


@pytest.mark.parametrize("answer", [{}, {"results": []}, {"results": [{}]}, {"results": 3}])
def test_so_is_a_batch_of_another_shape(serve: Serve, answer: Any) -> None:
    with HandPoseClient(serve(answer)) as client, pytest.raises(ServerFailedError):
        list(client.estimate_batch([b"photo"]))


def test_so_is_a_list_of_models_of_another_shape(serve: Serve) -> None:
    with HandPoseClient(serve({"models": [{}]})) as client, pytest.raises(ServerFailedError):
        client.models()
