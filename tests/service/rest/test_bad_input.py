"""Every way to ask wrongly gets a problem that says which, and what would be right. Nothing becomes a 500."""

import base64
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import pytest

from service.rest.policy import RestPolicy
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.images import image_bytes, picture

PATH = "/v1/hand-pose"
PHOTO = image_bytes(picture(200, 100), "JPEG")
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=XX"}
IMAGE_PART = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


BODIES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # what is wrong: request, status, code, words of the detail
    "not an image": ({"content": b"%PDF-1.7 no picture"}, 415, "unsupported_image_format", "JPEG, PNG"),
    "an image of a format that is not read": (
        {"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "headers": {"Content-Type": "image/svg+xml"}},
        415,
        "unsupported_image_format",
        "JPEG, PNG",
    ),
    "truncated JPEG": ({"content": PHOTO[: len(PHOTO) // 2]}, 422, "undecodable_image", "truncated or damaged"),
    "nothing but a JPEG's first bytes": ({"content": PHOTO[:4]}, 422, "undecodable_image", "truncated or damaged"),
    "no body at all": ({}, 400, "empty_body", "send an image file as the body"),
    "empty body of an image type": (
        {"content": b"", "headers": {"Content-Type": "image/jpeg"}},
        400,
        "empty_body",
        "send an image file as the body",
    ),
    "a content type that is not read": (
        {"content": PHOTO, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        415,
        "unsupported_media_type",
        "multipart/form-data",
    ),
    "broken JSON": ({"content": b'{"image": ', "headers": JSON}, 400, "invalid_json", "not JSON"),
    "JSON that is no object": ({"content": b"[1, 2]", "headers": JSON}, 400, "invalid_field", "object"),
    "JSON nested too deeply": ({"content": b"[" * 50_000, "headers": JSON}, 400, "invalid_json", "not JSON"),
    "JSON of bytes that are no text": ({"content": b'{"image": "\xff\xfe"}', "headers": JSON}, 400, "invalid_json", ""),
    "JSON without image": ({"json": {"rois": []}}, 400, "missing_image", "base64"),
    "JSON with an image that is null": ({"json": {"image": None}}, 400, "invalid_field", "image"),
    "JSON with an empty image": ({"json": {"image": ""}}, 400, "empty_image", "empty"),
    "JSON with an unknown field": ({"json": {"image": encoded(PHOTO), "roi": 1}}, 400, "invalid_field", "roi"),
    "image not in base64": ({"json": {"image": "***"}}, 400, "invalid_base64", "base64"),
    "base64 padded in its middle": ({"json": {"image": "QQ==" + "QUJD" * 20_000}}, 400, "invalid_base64", "base64"),
    "image as a link": ({"json": {"image": "https://example.com/hand.jpg"}}, 400, "link_not_fetched", "base64"),
    "image as a link to a file": (
        {"json": {"image": "file:///etc/passwd"}},
        400,
        "link_not_fetched",
        "fetches nothing",
    ),
    "image as a link without a scheme": ({"json": {"image": "//example.com/a"}}, 400, "link_not_fetched", "base64"),
    "JSON of very many values": (
        {"content": b'{"image": "AAAA", "rois": [' + b"1," * 100_000 + b"1]}", "headers": JSON},
        413,
        "json_too_complex",
        "beside the image",
    ),
    "JSON nested very deeply": (
        {"content": b"[" * 1_000_000, "headers": JSON},
        413,
        "json_too_complex",
        "beside the image",
    ),
    "form with a header of many bytes": (
        {
            "content": b"--XX\r\nX: " + b"y" * 5000 + b"\r\n" + IMAGE_PART[4:] + PHOTO + b"\r\n--XX--\r\n",
            "headers": FORM,
        },
        400,
        "invalid_multipart",
        "multipart",
    ),
    "form with a part of many headers": (
        {
            "content": b"--XX\r\n" + b"X: y\r\n" * 20 + IMAGE_PART[4:] + PHOTO + b"\r\n--XX--\r\n",
            "headers": FORM,
        },
        400,
        "invalid_multipart",
        "multipart",
    ),
    "form of 10000 parts": (
        {
            "content": b'--XX\r\nContent-Disposition: form-data; name="roi"\r\n\r\n1,1,9,9\r\n' * 10_000
            + b"--XX--\r\n",
            "headers": FORM,
        },
        413,
        "too_many_parts",
        "parts",
    ),
    "form with very many near misses of its boundary": (
        {"content": IMAGE_PART + b"\r\n--XXy" * 10_000 + b"\r\n--XX--\r\n", "headers": FORM},
        413,
        "too_many_parts",
        "parts",
    ),
    "form of 10000 files": (
        {"content": (IMAGE_PART + b"x\r\n") * 10_000 + b"--XX--\r\n", "headers": FORM},
        413,
        "too_many_parts",
        "parts",
    ),
    "data URI that is not in base64": ({"json": {"image": "data:image/png,abc"}}, 400, "invalid_base64", "base64"),
    "base64 of no image": ({"json": {"image": encoded(b"hello")}}, 415, "unsupported_image_format", "JPEG, PNG"),
    "roi of text in JSON": (
        {"json": {"image": encoded(PHOTO), "rois": [{"x": "a", "y": 0, "width": 1, "height": 1}]}},
        400,
        "invalid_field",
        "rois[0].x",
    ),
    "roi in JSON without a side": (
        {"json": {"image": encoded(PHOTO), "rois": [{"x": 0, "y": 0, "width": 1}]}},
        400,
        "invalid_field",
        "rois[0].height",
    ),
    "roi in JSON that is not finite": (
        {"content": b'{"image": "AAAA", "rois": [{"x": 1e999, "y": 0, "width": 1, "height": 1}]}', "headers": JSON},
        400,
        "invalid_field",
        "rois[0].x",
    ),
    "form without an image": ({"files": {"photo": ("a.jpg", PHOTO)}}, 400, "unexpected_field", "'photo'"),
    "form with rois only": (
        {
            "content": b'--XX\r\nContent-Disposition: form-data; name="roi"\r\n\r\n1,1,9,9\r\n--XX--\r\n',
            "headers": FORM,
        },
        400,
        "missing_image",
        '"image"',
    ),
    "form whose image is text": (
        {"content": b'--XX\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--XX--\r\n', "headers": FORM},
        400,
        "missing_image",
        "file name",
    ),
    "form with an empty file": ({"files": {"image": ("a.jpg", b"")}}, 400, "empty_image", "empty"),
    "form with two images": (
        {"files": [("image", ("a.jpg", PHOTO)), ("image", ("b.jpg", PHOTO))]},
        413,
        "too_many_images",
        "/v1/hand-pose:batch",
    ),
    "form without a boundary": (
        {"content": b"--XX", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "invalid_multipart",
        "boundary",
    ),
    "form that is none": ({"content": b"hello", "headers": FORM}, 400, "invalid_multipart", "multipart"),
    "form with a part without a name": (
        {"content": b"--XX\r\nContent-Type: image/jpeg\r\n\r\nx\r\n--XX--\r\n", "headers": FORM},
        400,
        "invalid_multipart",
        "multipart",
    ),
    "form that breaks off": ({"content": IMAGE_PART + PHOTO, "headers": FORM}, 400, "missing_image", '"image"'),
    "form whose roi is a file": (
        {"files": [("image", ("a.jpg", PHOTO)), ("roi", ("b.txt", b"1,2,3,4"))]},
        413,
        "too_many_images",
        "more than 1",
    ),
}


@pytest.mark.parametrize("wrong", BODIES)
async def test_wrong_body_is_told_apart(gateway: Gateway, wrong: str) -> None:
    request, status, code, words = BODIES[wrong]
    await expect_problem(gateway, request, status, code, words)


@pytest.mark.parametrize(
    ("rois", "words"),
    [
        (["200,0,100,50"], "lies outside the image, which is 200 x 100 pixels"),
        (["-10,0,10,10"], "lies outside the image"),
        (["10,10,0,20"], "at least 1 pixel"),
        (["10,10,20,-5"], "at least 1 pixel"),
        (["10,10,20"], "four numbers"),
        (["10,10,20,20,20"], "four numbers"),
        (["a,b,c,d"], "four numbers"),
        ([""], "four numbers"),
        (["nan,0,10,10"], "finite"),
        (["0,0,inf,10"], "finite"),
        (["0,0,50,50", "1e9,0,50,50"], "roi[1]"),
    ],
)
async def test_wrong_roi_is_named(gateway: Gateway, rois: list[str], words: str) -> None:
    body = await expect_problem(gateway, {"content": PHOTO, "params": {"roi": rois}}, 400, "invalid_roi", words)
    assert [each["field"] for each in body["errors"]] == [f"roi[{len(rois) - 1}]"]


async def test_rois_in_two_places_are_refused(gateway: Gateway) -> None:
    box = {"x": 0, "y": 0, "width": 10, "height": 10}
    request = {"json": {"image": encoded(PHOTO), "rois": [box]}, "params": {"roi": "0,0,10,10"}}
    await expect_problem(gateway, request, 400, "invalid_roi", "not in both")


HEADERS: dict[str, tuple[dict[str, str], int, str, str]] = {
    "a variant that does not exist": ({"X-Model-Variant": "huge"}, 404, "unknown_variant", "standard or lightweight"),
    "a version that does not exist": ({"X-Model-Variant": "standard@9"}, 404, "unknown_version", "standard@9"),
    "a label that does not exist": ({"X-Model-Variant": "standard@next"}, 404, "unknown_version", "standard@next"),
    "a version left out": ({"X-Model-Variant": "standard@"}, 404, "unknown_version", "@version or @label"),
    "a timeout of text": ({"X-Request-Timeout-Ms": "soon"}, 400, "invalid_timeout", "milliseconds"),
    "a timeout of zero": ({"X-Request-Timeout-Ms": "0"}, 400, "invalid_timeout", "at least 1"),
    "a negative timeout": ({"X-Request-Timeout-Ms": "-5"}, 400, "invalid_timeout", "at least 1"),
    "a timeout with a fraction": ({"X-Request-Timeout-Ms": "1.5"}, 400, "invalid_timeout", "whole number"),
    "a client id that is too long": ({"X-Client-Id": "x" * 129}, 400, "invalid_client_id", "128"),
    "an answer that is not made": ({"Accept": "application/pdf"}, 406, "not_acceptable", "image/png"),
}


@pytest.mark.parametrize("wrong", HEADERS)
async def test_wrong_header_is_told_apart(gateway: Gateway, wrong: str) -> None:
    headers, status, code, words = HEADERS[wrong]
    await expect_problem(gateway, {"content": PHOTO, "headers": headers}, status, code, words)


async def test_long_body_is_refused_by_its_announced_length(workers: Executor) -> None:
    async def never_read() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    async with running_gateway(workers, policy=RestPolicy(max_body_bytes=1000)) as gateway:
        request = {"content": never_read(), "headers": {"Content-Length": "1001", "Content-Type": "image/jpeg"}}
        await expect_problem(gateway, request, 413, "body_too_large", "1000 bytes")


@pytest.mark.parametrize("headers", [{"Content-Type": "image/jpeg"}, JSON, FORM])
async def test_long_body_is_refused_while_it_comes_in(workers: Executor, headers: dict[str, str]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield IMAGE_PART
        while True:
            sent += 100
            yield b"x" * 100

    async with running_gateway(workers, policy=RestPolicy(max_body_bytes=1000)) as gateway:
        request = {"content": endless(), "headers": headers}
        await expect_problem(gateway, request, 413, "body_too_large", "1000 bytes")
    assert sent <= 1200


async def test_body_of_exactly_the_limit_is_read(workers: Executor) -> None:
    async with running_gateway(workers, policy=RestPolicy(max_body_bytes=len(PHOTO))) as gateway:
        assert (await gateway.client.post(PATH, content=PHOTO)).status_code == 200


async def test_too_many_pixels_are_refused(workers: Executor) -> None:
    async with running_gateway(workers, max_pixels=19_999) as gateway:
        await expect_problem(gateway, {"content": PHOTO}, 413, "too_many_pixels", "19999 are allowed")


async def test_too_many_rois_are_refused(workers: Executor) -> None:
    async with running_gateway(workers, max_rois=2, policy=RestPolicy(max_rois=2)) as gateway:
        params = {"params": {"roi": ["0,0,10,10"] * 3}}
        await expect_problem(gateway, {"content": PHOTO, **params}, 413, "too_many_rois", "at most 2")
        form = {"files": {"image": ("a.jpg", PHOTO)}, "data": {"roi": ["0,0,10,10"] * 3}}
        await expect_problem(gateway, form, 413, "too_many_rois", "at most 2")


@pytest.mark.parametrize("path", ["/v1/hand-poses", "/nothing", "/static/nothing.js", "/static/../app.py", "/v1"])
async def test_unknown_path_is_a_problem(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_wrong_method_is_a_problem_that_names_the_right_one(gateway: Gateway) -> None:
    answer = await gateway.client.get(PATH)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    assert "POST" in answer.json()["detail"]


async def test_gateway_still_answers_after_all_of_it(gateway: Gateway) -> None:
    for request, *_ in BODIES.values():
        assert (await gateway.client.post(PATH, **request)).status_code < 500
    assert (await gateway.client.post(PATH, content=PHOTO)).status_code == 200


async def expect_problem(
    gateway: Gateway, request: dict[str, Any], status: int, code: str, words: str
) -> dict[str, Any]:
    """Ask, and check that the answer is this problem, in full; returns its body."""
    answer = await gateway.client.post(PATH, **request)
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in body["detail"]
    assert body["status"] == status
    assert body["type"].startswith("urn:handpose:")
    assert body["title"]
    assert body["instance"] == PATH
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert not gateway.backend.calls
    return body
