"""POST /v1/hand-pose, when all is well."""

import base64
import io
from concurrent.futures import Executor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.pose.keypoints import KEYPOINT_NAMES
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.backend import FakeBackend, detection, hand_where_crop_is_marked, spread_keypoints
from tests.support.images import RED, image_bytes, marked_picture, picture
from tests.support.models import INPUT_SIZE, served_model

PATH = "/v1/hand-pose"


def as_raw(image: bytes) -> dict[str, Any]:
    return {"content": image, "headers": {"Content-Type": "image/png"}}


def as_bytes(image: bytes) -> dict[str, Any]:
    return {"content": image, "headers": {"Content-Type": "application/octet-stream"}}


def as_undeclared(image: bytes) -> dict[str, Any]:
    return {"content": image}


def as_form(image: bytes) -> dict[str, Any]:
    return {"files": {"image": ("hand.png", image)}}


def as_base64(image: bytes) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(image).decode()}}


def as_wrapped_base64(image: bytes) -> dict[str, Any]:
    return {"json": {"image": base64.encodebytes(image).decode()}}


def as_long_base64(image: bytes) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(image + bytes(100_001)).decode()}}  # what follows a PNG is not read


def as_data_uri(image: bytes) -> dict[str, Any]:
    return {"json": {"image": "data:image/png;base64," + base64.b64encode(image).decode()}}


@pytest.mark.parametrize(
    "in_body", [as_raw, as_bytes, as_undeclared, as_form, as_base64, as_long_base64, as_wrapped_base64, as_data_uri]
)
async def test_every_kind_of_body_gives_the_same_answer(gateway: Gateway, in_body: Any) -> None:
    answer = await gateway.client.post(PATH, **in_body(image_bytes(picture(256, 128))))
    assert answer.status_code == 200
    expected = spread_keypoints(INPUT_SIZE) * 2 - (0, 64)  # the letterbox: twice as large, and bars above and below
    np.testing.assert_allclose(points_in(answer), expected, atol=0.02)


async def test_answer_has_the_documented_form(gateway: Gateway) -> None:
    headers = {"X-Model-Variant": "standard", "X-Request-Id": "abc-1"}
    answer = await gateway.client.post(PATH, content=image_bytes(picture(256, 128)), headers=headers)
    body = answer.json()
    assert list(body) == ["request_id", "model", "image", "hands", "timings_ms"]
    assert body["request_id"] == "abc-1"
    assert body["model"] == {
        "name": "cpm_standard",
        "variant": "standard",
        "version": 1,
        "label": "stable",
        "routed_by": "header",
    }
    assert body["image"] == {"width": 256, "height": 128}
    (hand,) = body["hands"]
    assert list(hand) == ["score", "handedness", "box", "rotation_degrees", "keypoints"]
    assert hand["box"] == {"x": 64, "y": 0, "width": 128, "height": 128}
    assert hand["handedness"] == {"label": "right", "score": 1.0}
    wrist, middle_mcp = (np.array((hand["keypoints"][i]["x"], hand["keypoints"][i]["y"])) for i in (0, 9))
    upwards = middle_mcp - wrist
    assert hand["rotation_degrees"] == pytest.approx(np.degrees(np.arctan2(upwards[0], -upwards[1])), abs=0.5)
    assert [each["name"] for each in hand["keypoints"]] == list(KEYPOINT_NAMES)
    assert [each["id"] for each in hand["keypoints"]] == list(range(21))
    wrist = hand["keypoints"][0]
    assert list(wrist) == ["id", "name", "x", "y", "x_norm", "y_norm", "score", "sigma"]
    assert (wrist["x_norm"], wrist["y_norm"]) == (pytest.approx(wrist["x"] / 256), pytest.approx(wrist["y"] / 128))
    assert 0.8 < wrist["score"] <= 1
    assert wrist["sigma"] == pytest.approx(1.25 * 8 * 2, rel=0.1)  # the target's cells, in pixels of the image
    assert 0.8 < hand["score"] <= 1
    assert list(body["timings_ms"]) == ["decode", "detection", "queue", "inference", "postprocess", "total"]


async def test_a_picture_may_hold_several_hands_or_none(gateway: Gateway) -> None:
    gateway.backend.detections = (detection(0.3, 0.5, 0.3, right=0.1), detection(0.7, 0.5, 0.3, right=0.9))
    body = (await gateway.client.post(PATH, content=image_bytes(picture(256, 256)))).json()
    assert {hand["handedness"]["label"] for hand in body["hands"]} == {"left", "right"}
    gateway.backend.detections = ()
    answer = await gateway.client.post(PATH, content=image_bytes())
    assert (answer.status_code, answer.json()["hands"]) == (200, [])


@pytest.mark.parametrize("place", ["query", "form", "json"])
async def test_how_to_look_is_said_in_query_form_or_json(place: str, gateway: Gateway) -> None:
    gateway.backend.detections = tuple(detection(0.2 + 0.3 * i, 0.5, 0.2, score=s) for i, s in enumerate((0.9, 0.2)))
    picture_of_two = image_bytes(picture(256, 256))

    async def hands(**options: object) -> list[dict[str, Any]]:
        texts = {name: str(value).lower() for name, value in options.items()}
        if place == "query":
            answer = await gateway.client.post(PATH, content=picture_of_two, params=texts)
        elif place == "form":
            answer = await gateway.client.post(PATH, files={"image": ("a.png", picture_of_two)}, data=texts)
        else:
            image = base64.b64encode(picture_of_two).decode()
            answer = await gateway.client.post(PATH, json={"image": image, **options})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["hands"]
        return found

    assert len(await hands(min_score=0.0)) == 2
    assert len(await hands(min_score=0.0, max_hands=1)) == 1
    assert len(await hands(min_score=0.8)) == 1
    (whole,) = await hands(whole=True)
    assert (whole["handedness"], whole["box"]["width"]) == (None, 256)


@pytest.mark.parametrize(
    ("query", "code", "names"),
    [
        ("variant=standard", "unknown_option", ["variant", "roi, whole, max_hands, min_score"]),
        ("max_hand=2", "unknown_option", ["max_hand"]),
        ("max_hands=2&max_hands=3", "invalid_option", ["max_hands"]),
        ("max_hands=two", "invalid_option", ["max_hands", "whole number"]),
        ("max_hands=0", "invalid_option", ["max_hands", "1 to 16"]),
        ("min_score=1.5", "invalid_option", ["min_score", "0 to 1"]),
        ("min_score=nan", "invalid_option", ["min_score"]),
        ("whole=maybe", "invalid_option", ["whole", "true or false"]),
        ("whole=true&roi=0,0,9,9", "invalid_option", ["whole", "not both"]),
    ],
)
async def test_a_query_that_is_not_understood_is_refused(
    query: str, code: str, names: list[str], gateway: Gateway
) -> None:
    answer = await gateway.client.post(f"{PATH}?{query}", content=image_bytes())
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert all(name in answer.json()["detail"] for name in names), answer.text


async def test_a_batch_takes_the_same_options_and_no_rois(gateway: Gateway) -> None:
    gateway.backend.detections = ()
    files = [("image", ("a.png", image_bytes()))] * 2
    whole = await gateway.client.post(f"{PATH}:batch?whole=true", files=files)
    assert [len(each["result"]["hands"]) for each in whole.json()["results"]] == [1, 1]
    refused = await gateway.client.post(f"{PATH}:batch?roi=0,0,9,9", files=files)
    assert (refused.status_code, refused.json()["code"]) == (400, "unknown_option")


async def test_rois_are_read_in_either_spelling_everywhere(gateway: Gateway) -> None:
    box = {"x": 1, "y": 2, "width": 30, "height": 40}
    image = base64.b64encode(image_bytes()).decode()
    for answer in (
        await gateway.client.post(f"{PATH}?rois=1,2,30,40", content=image_bytes()),
        await gateway.client.post(PATH, files={"image": ("a.png", image_bytes())}, data={"rois": "1,2,30,40"}),
        await gateway.client.post(PATH, json={"image": image, "roi": [box]}),
    ):
        assert answer.json()["hands"][0]["box"] == box


async def test_header_and_body_name_what_served(workers: Executor) -> None:
    models = [served_model(version=2, labels=("canary",)), served_model(version=1)]
    async with running_gateway(workers, backend=FakeBackend(*models)) as gateway:
        for asked_for, version in (("lightweight@1", 1), ("lightweight@canary", 2), ("lightweight@stable", 1)):
            answer = await gateway.client.post(PATH, content=image_bytes(), headers={"X-Model-Variant": asked_for})
            assert answer.headers["X-Model-Variant"] == f"lightweight@{version}"
            assert answer.json()["model"]["version"] == version


async def test_answers_keep_the_order_of_the_rois(workers: Executor) -> None:
    image = marked_picture(400, 200, (40, 90, 60, 110))
    image.paste(RED, (330, 40, 350, 60))
    async with running_gateway(workers, backend=FakeBackend(answer=hand_where_crop_is_marked)) as gateway:
        for rois, expected in (
            (["0,50,100,100", "300,0,100,100"], [(50, 100), (340, 50)]),
            (["300,0,100,100", "0,50,100,100"], [(340, 50), (50, 100)]),
        ):
            answer = await gateway.client.post(PATH, params={"roi": rois}, content=image_bytes(image))
            wrists = [(hand["keypoints"][0]["x"], hand["keypoints"][0]["y"]) for hand in answer.json()["hands"]]
            np.testing.assert_allclose(wrists, expected, atol=0.5)


async def test_rois_may_come_in_the_query_in_json_or_in_a_form(gateway: Gateway) -> None:
    image = image_bytes(picture(200, 100))
    box = {"x": 20.0, "y": 10.0, "width": 50.0, "height": 60.5}
    in_json = {"image": base64.b64encode(image).decode(), "rois": [box]}
    answers = [
        await gateway.client.post(PATH, params={"roi": "20,10,50,60.5"}, content=image),
        await gateway.client.post(PATH, json=in_json),
        await gateway.client.post(PATH, files={"image": ("a.png", image)}, data={"roi": "20, 10, 50, 60.5"}),
    ]
    assert [answer.json()["hands"][0]["box"] for answer in answers] == [box] * 3
    assert len({str(answer.json()["hands"]) for answer in answers}) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_rotated_photo_is_answered_in_upright_coordinates(workers: Executor, orientation: int) -> None:
    upright = marked_picture(200, 100, (150, 20, 170, 40))
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn_back[orientation]) if orientation > 1 else upright
    async with running_gateway(workers, backend=FakeBackend(answer=hand_where_crop_is_marked)) as gateway:
        answer = await gateway.client.post(PATH, content=image_bytes(stored, orientation=orientation))
    assert answer.json()["image"] == {"width": 200, "height": 100}
    np.testing.assert_allclose(points_in(answer)[0], (160, 30), atol=1)


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
async def test_picture_with_skeleton_comes_back_on_request(gateway: Gateway, accept: str, kind: str) -> None:
    plain = picture(256, 256, (250, 250, 250))
    answer = await gateway.client.post(PATH, content=image_bytes(plain), headers={"Accept": accept})
    assert answer.headers["Content-Type"] == accept
    assert answer.headers["X-Model-Variant"] == "lightweight@1"
    drawn = Image.open(io.BytesIO(answer.content))
    assert (drawn.format, drawn.size) == (kind, (256, 256))
    x, y = (round(float(value)) for value in spread_keypoints(INPUT_SIZE)[8] * 2)
    difference = np.abs(np.asarray(drawn.convert("RGB"), int) - 250).max(axis=-1)
    assert difference[y, x] > 60
    assert difference[:20].max() < 10  # away from the hand the picture is as it was


async def test_large_photo_is_drawn_on_in_its_own_resolution(gateway: Gateway) -> None:
    photo = image_bytes(picture(1600, 1200), "JPEG")
    answer = await gateway.client.post(PATH, content=photo, headers={"Accept": "image/jpeg"})
    assert Image.open(io.BytesIO(answer.content)).size == (1600, 1200)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/jpeg", "image/jpeg"),
        ("image/png;q=0, */*", "application/json"),
        ("IMAGE/PNG", "image/png"),
    ],
)
async def test_accept_header_chooses_the_kind_of_answer(gateway: Gateway, accept: str | None, expected: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    request = gateway.client.build_request("POST", PATH, content=image_bytes(), headers=headers)
    if accept is None:
        del request.headers["Accept"]
    assert (await gateway.client.send(request)).headers["Content-Type"] == expected


async def test_one_image_is_decoded_and_run_once(gateway: Gateway) -> None:
    await gateway.client.post(PATH, content=image_bytes())
    (call,) = gateway.backend.calls
    assert [crop.shape for crop in call.crops] == [(INPUT_SIZE, INPUT_SIZE, 3)]


def points_in(answer: httpx.Response) -> list[tuple[float, float]]:
    """The first hand's keypoints."""
    return [(each["x"], each["y"]) for each in answer.json()["hands"][0]["keypoints"]]
