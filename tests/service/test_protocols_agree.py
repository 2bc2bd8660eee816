"""The same photo and the same mistakes through every door: REST raw, multipart and JSON, gRPC, batches and streams."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from service.answers import PROBLEM_TYPES
from service.inference.errors import (
    DeadlineExceededError,
    ErrorKind,
    InternalError,
    OverloadedError,
    ServiceError,
    TooSlowError,
    UnavailableError,
)
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.status import STATUS_OF
from tests.support.backend import FakeBackend, detection, hand_where_crop_is_marked, same_hand_everywhere
from tests.support.gateway import Gateway, details_of
from tests.support.images import image_bytes, marked_picture, picture

JPEG = {"content-type": "image/jpeg"}


@dataclass(frozen=True)
class Outcome:
    """What came out of a door: keypoints, or a code and the number of its status."""

    keypoints: NDArray[np.float64] | None = None
    model: str = ""
    code: str = ""
    status: int = 0
    retry_ms: int | None = None


@dataclass(frozen=True)
class Payload:
    """What goes in through every door."""

    image: bytes
    roi: tuple[float, float, float, float] | None = None
    variant: str | None = None
    max_hands: int | None = None
    min_score: float | None = None
    whole: bool | None = None

    @property
    def search(self) -> dict[str, Any]:
        """What is said of the hands to look for."""
        said = {"max_hands": self.max_hands, "min_score": self.min_score, "whole": self.whole}
        return {name: value for name, value in said.items() if value is not None}


# One function a door. HTTP doors report HTTP's status, gRPC doors gRPC's.


def _of_json(answer: dict[str, Any], status: int = 200) -> Outcome:
    if "code" in answer:
        return Outcome(code=answer["code"], status=answer["status"], retry_ms=answer.get("retry_after_ms"))
    points = [(point["x"], point["y"]) for hand in answer["hands"] for point in hand["keypoints"]]
    return Outcome(np.array(points).reshape(-1, 2), answer["model"]["variant"], status=status)


def _of_message(answer: pb.EstimateResponse) -> Outcome:
    points = [(point.x, point.y) for hand in answer.hands for point in hand.keypoints]
    return Outcome(np.array(points).reshape(-1, 2), answer.model.variant)


def _of_problem(problem: pb.Problem) -> Outcome:
    has_retry = problem.HasField("retry_after")
    return Outcome(
        code=problem.code,
        status=problem.status,
        retry_ms=problem.retry_after.ToMilliseconds() if has_retry else None,
    )


def _headers(payload: Payload) -> dict[str, str]:
    return {"x-model-variant": payload.variant} if payload.variant else {}


def _texts(payload: Payload) -> dict[str, str]:
    """As a query or a form says it."""
    roi = {"roi": ",".join(map(str, payload.roi))} if payload.roi else {}
    return roi | {name: str(value).lower() for name, value in payload.search.items()}


async def raw(gateway: Gateway, payload: Payload) -> Outcome:
    async with httpx.AsyncClient(base_url=gateway.rest_url) as client:
        answer = await client.post(
            "/v1/hand-pose", content=payload.image, headers=_headers(payload) | JPEG, params=_texts(payload)
        )
    return _of_json(answer.json())


async def multipart(gateway: Gateway, payload: Payload) -> Outcome:
    async with httpx.AsyncClient(base_url=gateway.rest_url) as client:
        answer = await client.post(
            "/v1/hand-pose",
            files={"image": ("hand.jpg", payload.image)},
            headers=_headers(payload),
            data=_texts(payload),
        )
    return _of_json(answer.json())


async def json_body(gateway: Gateway, payload: Payload) -> Outcome:
    body: dict[str, Any] = {"image": base64.b64encode(payload.image).decode(), **payload.search}
    if payload.roi:
        body["rois"] = [dict(zip(("x", "y", "width", "height"), payload.roi, strict=True))]
    async with httpx.AsyncClient(base_url=gateway.rest_url) as client:
        answer = await client.post("/v1/hand-pose", json=body, headers=_headers(payload))
    return _of_json(answer.json())


async def rest_batch(gateway: Gateway, payload: Payload) -> Outcome:
    async with httpx.AsyncClient(base_url=gateway.rest_url) as client:
        answer = await client.post(
            "/v1/hand-pose:batch",
            files=[("image", ("hand.jpg", payload.image))],
            headers=_headers(payload),
            params=_texts(payload),
        )
    (item,) = answer.json()["results"]
    return _of_json(item.get("result") or item["problem"])


async def websocket(gateway: Gateway, payload: Payload) -> Outcome:
    query = {name: text for name, text in _texts(payload).items() if name != "roi"} | {"tracking": "false"}
    url = gateway.rest_url.replace("http", "ws") + f"/v1/hand-pose/stream?{urlencode(query)}"
    async with connect(url, additional_headers=_headers(payload)) as socket:
        if payload.roi:
            roi = dict(zip(("x", "y", "width", "height"), payload.roi, strict=True))
            await socket.send(json.dumps({"rois": [roi]}))
        await socket.send(payload.image)
        answer = json.loads(await socket.recv())
        return _of_json(answer.get("result") or answer["problem"])


def _request(payload: Payload) -> pb.EstimateRequest:
    rois = [pb.Box(**dict(zip(("x", "y", "width", "height"), payload.roi, strict=True)))] if payload.roi else []
    return pb.EstimateRequest(image=payload.image, rois=rois, **payload.search)


def _of_rpc_error(error: grpc.aio.AioRpcError) -> Outcome:
    details = details_of(error)
    return Outcome(
        code=details.info.metadata["code"],
        status=error.code().value[0],
        retry_ms=details.retry.retry_delay.ToMilliseconds() if details.retry else None,
    )


async def unary(gateway: Gateway, payload: Payload) -> Outcome:
    try:
        return _of_message(await gateway.stub().Estimate(_request(payload), metadata=tuple(_headers(payload).items())))
    except grpc.aio.AioRpcError as error:
        return _of_rpc_error(error)


async def rpc_batch(gateway: Gateway, payload: Payload) -> Outcome:
    answer = await gateway.stub().EstimateBatch(
        pb.EstimateBatchRequest(requests=[_request(payload)]), metadata=tuple(_headers(payload).items())
    )
    (result,) = answer.results
    return _of_message(result.estimate) if result.HasField("estimate") else _of_problem(result.problem)


async def stream(gateway: Gateway, payload: Payload) -> Outcome:
    call = gateway.stub().EstimateStream(metadata=tuple(_headers(payload).items()))
    await call.write(pb.EstimateStreamRequest(options=pb.StreamOptions(tracking=False, **payload.search)))
    request = _request(payload)
    await call.write(pb.EstimateStreamRequest(frame=pb.Frame(image=request.image, rois=request.rois)))
    try:
        answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return _of_rpc_error(error)
    call.cancel()
    return _of_message(answer.estimate) if answer.HasField("estimate") else _of_problem(answer.problem)


Door = Callable[[Gateway, Payload], Awaitable[Outcome]]
HTTP_DOORS: list[Door] = [raw, multipart, json_body, rest_batch, websocket]
RPC_DOORS: list[Door] = [unary, rpc_batch, stream]
DOORS = HTTP_DOORS + RPC_DOORS


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def gateway(workers: ThreadPoolExecutor) -> AsyncIterator[Gateway]:
    gateway = Gateway(workers, backend=FakeBackend(answer=hand_where_crop_is_marked), max_pixels=1_000_000)
    await gateway.start()
    await gateway.start_rest()
    yield gateway
    await gateway.stop()


PHOTO = image_bytes(marked_picture(320, 200, (210, 60, 250, 100)), "JPEG")
TURNED = image_bytes(marked_picture(320, 200, (210, 60, 250, 100)), "JPEG", orientation=6)


@pytest.mark.parametrize("variant", ["standard", "lightweight"])
@pytest.mark.parametrize(
    ("image", "roi", "centre"),
    [(PHOTO, None, (230, 80)), (PHOTO, (180, 40, 100, 100), (230, 80)), (TURNED, None, (120, 230))],
    ids=["whole", "roi", "turned by EXIF"],
)
async def test_the_same_photo_gives_the_same_keypoints_through_every_door(
    gateway: Gateway, variant: str, image: bytes, roi: tuple[float, float, float, float] | None, centre: tuple[int, int]
) -> None:
    payload = Payload(image, roi, variant)
    doors = [door for door in DOORS if roi is None or door is not rest_batch]  # REST's batch takes no rois

    outcomes = [await door(gateway, payload) for door in doors]

    reference = outcomes[0].keypoints
    assert reference is not None
    np.testing.assert_allclose(reference, np.tile(centre, (21, 1)), atol=3.0)
    for door, outcome in zip(doors, outcomes, strict=True):
        assert outcome.keypoints is not None, door.__name__
        # REST rounds to a hundredth of a pixel.
        np.testing.assert_allclose(outcome.keypoints, reference, atol=0.0101, err_msg=door.__name__)
        assert outcome.model == variant, door.__name__


@pytest.mark.parametrize(
    ("search", "hands"),
    [
        ({}, 2),
        ({"max_hands": 1}, 1),
        ({"min_score": 0.95}, 1),
        ({"min_score": 1.0}, 0),
        ({"whole": True}, 1),
        ({"whole": False, "min_score": 0.0, "max_hands": 16}, 3),
    ],
    ids=str,
)
async def test_the_same_hands_are_looked_for_through_every_door(
    gateway: Gateway, search: dict[str, Any], hands: int
) -> None:
    gateway.backend.answer = same_hand_everywhere
    gateway.backend.detections = (
        detection(0.2, 0.5, 0.2),
        detection(0.5, 0.5, 0.2, score=0.8),
        detection(0.8, 0.5, 0.2, score=0.15),
    )

    outcomes = [await door(gateway, Payload(PHOTO, **search)) for door in DOORS]

    reference = outcomes[0].keypoints
    assert reference is not None
    for door, outcome in zip(DOORS, outcomes, strict=True):
        assert outcome.keypoints is not None, door.__name__
        assert outcome.keypoints.shape == (21 * hands, 2), door.__name__
        np.testing.assert_allclose(outcome.keypoints, reference, atol=0.0101, err_msg=door.__name__)


@pytest.mark.parametrize(
    "search", [{"max_hands": 0}, {"max_hands": 17}, {"min_score": -0.5}, {"min_score": 1.5}], ids=str
)
@pytest.mark.parametrize("door", [raw, multipart, json_body, unary, rpc_batch])
async def test_what_cannot_be_looked_for_has_the_same_code_through_every_door(
    gateway: Gateway, door: Door, search: dict[str, Any]
) -> None:
    outcome = await door(gateway, Payload(PHOTO, **search))

    assert (outcome.code, outcome.status) == ("invalid_option", _status(door, ErrorKind.INVALID_INPUT))


MISTAKES = [
    (Payload(b"%PDF-1.7 no image"), ErrorKind.UNSUPPORTED_TYPE, "unsupported_image_format"),
    (Payload(PHOTO[:300]), ErrorKind.UNDECODABLE_IMAGE, "undecodable_image"),
    (Payload(image_bytes(picture(1200, 1000))), ErrorKind.TOO_LARGE, "too_many_pixels"),
    (Payload(PHOTO, roi=(3000, 0, 50, 50)), ErrorKind.INVALID_INPUT, "invalid_roi"),
    (Payload(PHOTO, variant="enormous"), ErrorKind.UNKNOWN_MODEL, "unknown_variant"),
    (Payload(PHOTO, variant="standard@9"), ErrorKind.UNKNOWN_MODEL, "unknown_version"),
]


@pytest.mark.parametrize(("payload", "kind", "code"), MISTAKES, ids=[code for _, _, code in MISTAKES])
async def test_the_same_mistake_has_the_same_code_through_every_door(
    gateway: Gateway, payload: Payload, kind: ErrorKind, code: str
) -> None:
    doors = [door for door in DOORS if payload.roi is None or door is not rest_batch]

    outcomes = {door.__name__: await door(gateway, payload) for door in doors}

    assert {name: (each.code, each.status) for name, each in outcomes.items()} == {
        door.__name__: (code, _status(door, kind)) for door in doors
    }


FAILURES: list[ServiceError] = [
    OverloadedError("busy", retry_after_s=0.5),
    UnavailableError("no model", retry_after_s=2.0),
    DeadlineExceededError("too late"),
    TooSlowError("too slow"),
    InternalError("secret"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.kind.value)
async def test_the_same_failure_has_the_same_code_and_the_same_advice_through_every_door(
    gateway: Gateway, failure: ServiceError
) -> None:
    gateway.backend.failure = failure

    outcomes = {door.__name__: await door(gateway, Payload(PHOTO)) for door in DOORS}

    retry_ms = None if failure.retry_after_s is None else round(1000 * failure.retry_after_s)
    assert {name: (each.code, each.status, each.retry_ms) for name, each in outcomes.items()} == {
        door.__name__: (failure.code, _status(door, failure.kind), retry_ms) for door in DOORS
    }


def _status(door: Door, kind: ErrorKind) -> int:
    if door in HTTP_DOORS:
        return PROBLEM_TYPES[kind].status
    status: int = STATUS_OF[kind].value[0]
    return status


def test_every_kind_of_error_is_sent_through_the_doors() -> None:
    sent = {kind for _, kind, _ in MISTAKES} | {failure.kind for failure in FAILURES}

    assert set(ErrorKind) - sent == {ErrorKind.UNAUTHENTICATED}, "nobody asks for keys yet"


async def test_a_websocket_is_closed_with_a_reason_when_no_frame_could_be_answered(gateway: Gateway) -> None:
    url = gateway.rest_url.replace("http", "ws") + "/v1/hand-pose/stream?variant=enormous"
    async with connect(url) as socket:
        await socket.send(PHOTO)
        announced = json.loads(await socket.recv())
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()

    assert announced["problem"]["code"] == "unknown_variant"
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "unknown_variant")
