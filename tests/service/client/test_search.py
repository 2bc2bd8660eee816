"""Which hands are wanted reaches a service in its protocol's words, and those that it answers come back as values."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from service.client import Box, Estimate, HandPoseClient, StreamOptions
from service.client.types import Handedness
from service.pose.keypoints import KEYPOINT_NAMES
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc

BOX = {"x": 5.0, "y": 6.0, "width": 7.0, "height": 8.0}
SIDES = ({"label": "right", "score": 0.75}, {"label": "left", "score": 0.5}, None)
TURNS = (12.5, -170.25, 0.0)
MODEL = {"name": "cpm_lightweight", "variant": "lightweight", "version": 1, "label": "stable", "routed_by": "default"}
KEYPOINTS = [
    {"id": index, "name": name, "x": 1.0, "y": 2.0, "x_norm": 0.5, "y_norm": 0.5, "score": 0.5, "sigma": 1.0}
    for index, name in enumerate(KEYPOINT_NAMES)
]
PHASES = {"decode": 1.0, "detection": 2.0, "queue": 3.0, "inference": 4.0, "postprocess": 5.0, "total": 16.0}


class Fake:
    """A service that writes down what it was asked and answers with so many hands: over REST, WebSocket and gRPC.

    Attributes:
        hands: how many.
        asked: names and values of each question: of a query, of a message.
    """

    def __init__(self) -> None:
        self.hands = 0
        self.asked: list[dict[str, Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                fake.note(self.path)
                answer = fake.answer()
                body = json.dumps({"results": [{"result": answer}]} if ":batch" in self.path else answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        class Servicer(hand_pose_pb2_grpc.HandPoseServiceServicer):
            def Estimate(self, request: pb.EstimateRequest, _context: Any) -> pb.EstimateResponse:  # noqa: N802
                fake.note_message(request)
                return fake.message()

            def EstimateBatch(  # noqa: N802
                self, request: pb.EstimateBatchRequest, _context: Any
            ) -> pb.EstimateBatchResponse:
                fake.note_message(request.requests[0])
                return pb.EstimateBatchResponse(results=[pb.EstimateResult(estimate=fake.message())])

            def EstimateStream(  # noqa: N802
                self, requests: Iterator[pb.EstimateStreamRequest], _context: Any
            ) -> Iterator[pb.EstimateStreamResponse]:
                fake.note_message(next(requests).options)
                for each in requests:
                    yield pb.EstimateStreamResponse(frame_id=each.frame.id, estimate=fake.message())

        def frames(socket: ServerConnection) -> None:
            assert socket.request is not None
            self.note(socket.request.path)
            while (said := json.loads(socket.recv())) != {"end": True}:
                socket.recv()
                socket.send(json.dumps({"frame": said["id"], "result": self.answer()}))

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.websocket = serve_websocket(frames, "127.0.0.1", 0)
        self.rpc = grpc.server(ThreadPoolExecutor(4))
        hand_pose_pb2_grpc.add_HandPoseServiceServicer_to_server(Servicer(), self.rpc)  # type: ignore[no-untyped-call]
        self.urls = {
            "rest": f"http://127.0.0.1:{self.http.server_port}",
            "websocket": f"http://127.0.0.1:{self.websocket.socket.getsockname()[1]}",
            "grpc": f"grpc://127.0.0.1:{self.rpc.add_insecure_port('127.0.0.1:0')}",
        }
        self.rpc.start()
        self._threads = [
            threading.Thread(target=self.http.serve_forever, args=(0.01,)),
            threading.Thread(target=self.websocket.serve_forever),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.websocket.shutdown()
        self.rpc.stop(0).wait()
        for thread in self._threads:
            thread.join()
        self.http.server_close()

    def note(self, path: str) -> None:
        texts = dict(parse_qsl(urlsplit(path).query))
        named = {name: json.loads(texts[name]) for name in ("max_hands", "min_score", "whole") if name in texts}
        self.asked.append(named | ({"roi": texts["roi"]} if "roi" in texts else {}))

    def note_message(self, message: pb.EstimateRequest | pb.StreamOptions) -> None:
        said = {field.name: value for field, value in message.ListFields()}
        boxes = [f"{box.x},{box.y},{box.width},{box.height}" for box in said.pop("rois", ())]
        named = {name: said[name] for name in ("max_hands", "min_score", "whole") if name in said}
        self.asked.append(named | ({"roi": boxes[0]} if boxes else {}))

    def answer(self) -> dict[str, Any]:
        hands = [
            {"score": 0.5, "handedness": side, "box": BOX, "rotation_degrees": turn, "keypoints": KEYPOINTS}
            for side, turn in zip(SIDES, TURNS, strict=True)
        ]
        image = {"width": 20, "height": 10}
        return {
            "request_id": "r",
            "model": MODEL,
            "image": image,
            "hands": hands[: self.hands],
            "timings_ms": PHASES,
        }

    def message(self) -> pb.EstimateResponse:
        answer = self.answer()
        timings = {f"{phase}_ms": ms for phase, ms in answer.pop("timings_ms").items()}
        return pb.EstimateResponse(timings=timings, **answer)


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.close()


both = pytest.mark.parametrize("protocol", ["rest", "grpc"])
SEARCHES: list[dict[str, Any]] = [
    {},
    {"max_hands": 7},
    {"min_score": 0.25},
    {"min_score": 0.0},
    {"whole": True},
    {"max_hands": 1, "min_score": 1.0},
]


@both
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_what_is_said_of_the_hands_to_look_for_is_asked_and_nothing_else(
    fake: Fake, protocol: str, search: dict[str, Any]
) -> None:
    with HandPoseClient(fake.urls[protocol]) as client:
        client.estimate(b"photo", **search)
        list(client.estimate_batch([b"photo"], **search))
    with HandPoseClient(fake.urls["websocket" if protocol == "rest" else "grpc"]) as client:
        list(client.stream([b"photo"], options=StreamOptions(**search)))

    assert fake.asked == 3 * [search]


@both
def test_rois_may_be_given_with_a_number_of_hands(fake: Fake, protocol: str) -> None:
    with HandPoseClient(fake.urls[protocol]) as client:
        client.estimate(b"photo", rois=[Box(1.5, 2.0, 3.0, 4.0)], max_hands=2)

    assert fake.asked == [{"roi": "1.5,2.0,3.0,4.0", "max_hands": 2}]


@pytest.mark.parametrize("protocol", ["rest", "websocket", "grpc"])
@pytest.mark.parametrize("hands", [0, 1, 3])
def test_hands_come_back_with_side_and_rotation_and_may_be_none(fake: Fake, protocol: str, hands: int) -> None:
    fake.hands = hands

    with HandPoseClient(fake.urls[protocol]) as client:
        estimates: list[Any] = [] if protocol == "websocket" else [client.estimate(b"photo")]
        estimates += [] if protocol == "websocket" else client.estimate_batch([b"photo"])
        estimates += [] if protocol == "rest" else [answer.estimate for answer in client.stream([b"photo"])]

    assert len(estimates) == {"rest": 2, "websocket": 1, "grpc": 3}[protocol]
    for estimate in estimates:
        assert isinstance(estimate, Estimate)
        sides = [side and Handedness(**side) for side in SIDES]  # type: ignore[arg-type]  # a text and a number
        assert [hand.handedness for hand in estimate.hands] == sides[:hands]
        assert [hand.rotation_degrees for hand in estimate.hands] == list(TURNS[:hands])
        assert all((hand.score, hand.box, len(hand.keypoints)) == (0.5, Box(5, 6, 7, 8), 21) for hand in estimate.hands)
        assert (estimate.timings_ms.detection, estimate.timings_ms.total) == (2.0, 16.0)
