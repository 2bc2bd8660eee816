"""POST /v1/hand-pose:batch: each image for itself."""

import asyncio
from concurrent.futures import Executor
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from service.inference.model_queue import BatchingPolicy
from service.rest.policy import RestPolicy
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.backend import FakeBackend, hand_where_crop_is_marked
from tests.support.clock import settle
from tests.support.images import image_bytes, marked_picture

PATH = "/v1/hand-pose:batch"


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{index}.png", image)) for index, image in enumerate(images)]


async def test_every_image_gets_its_own_result_or_problem(workers: Executor) -> None:
    def marked(x: int) -> bytes:
        return image_bytes(marked_picture(200, 200, (x - 10, 90, x + 10, 110)))

    async with running_gateway(workers, backend=FakeBackend(answer=hand_where_crop_is_marked)) as gateway:
        images = form(marked(60), b"no image", marked(140), b"", marked(100)[:60])
        answer = await gateway.client.post(PATH, files=images, headers={"X-Request-Id": "abc"})
    body = answer.json()
    assert (answer.status_code, body["request_id"]) == (200, "abc")
    results = body["results"]
    assert [each["index"] for each in results] == [0, 1, 2, 3, 4]
    assert [each["status"] for each in results] == [200, 415, 200, 400, 422]
    assert [set(each) - {"index", "status"} for each in results] == [
        {"result"},
        {"problem"},
        {"result"},
        {"problem"},
        {"problem"},
    ]
    assert [each["problem"]["code"] for each in results if "problem" in each] == [
        "unsupported_image_format",
        "empty_image",
        "undecodable_image",
    ]
    wrists = [each["result"]["hands"][0]["keypoints"][0]["x"] for each in results if "result" in each]
    np.testing.assert_allclose(wrists, [60, 140], atol=0.5)


async def test_one_defect_leaves_the_other_images_alone(workers: Executor) -> None:
    calls = 0

    def second_call_fails(crops: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("secret")
        return hand_where_crop_is_marked(crops)

    batching = BatchingPolicy(max_batch_size=1)
    async with running_gateway(workers, backend=FakeBackend(answer=second_call_fails), batching=batching) as gateway:
        answer = await gateway.client.post(PATH, files=form(*[image_bytes()] * 3))
    assert sorted(each["status"] for each in answer.json()["results"]) == [200, 200, 500]
    assert "secret" not in answer.text


async def test_more_images_than_there_is_room_for_are_told_to_come_back(workers: Executor) -> None:
    async with running_gateway(workers, batching=BatchingPolicy(max_queue=2)) as gateway:
        answer = await gateway.client.post(PATH, files=form(*[image_bytes()] * 4))
    results = answer.json()["results"]
    assert sorted(each["status"] for each in results) == [200, 200, 429, 429]
    assert all(each["problem"]["retry_after_ms"] > 0 for each in results if each["status"] == 429)


async def test_batches_wait_behind_single_images(workers: Executor) -> None:
    async with running_gateway(workers, batching=BatchingPolicy(max_batch_size=1)) as gateway:
        gateway.backend.hold()
        first = asyncio.ensure_future(gateway.client.post("/v1/hand-pose", content=image_bytes()))
        await gateway.backend.arrived()
        batch = asyncio.ensure_future(gateway.client.post(PATH, files=form(image_bytes())))
        await settle()
        single = asyncio.ensure_future(gateway.client.post("/v1/hand-pose", content=image_bytes()))
        await settle()
        gateway.backend.release()
        await asyncio.wait((batch, single), return_when=asyncio.FIRST_COMPLETED)
        assert single.done()
        assert not batch.done()
        await asyncio.gather(first, batch, single)


async def test_too_many_images_are_refused_as_a_whole(workers: Executor) -> None:
    async with running_gateway(workers, policy=RestPolicy(max_batch_images=2)) as gateway:
        answer = await gateway.client.post(PATH, files=form(*[image_bytes()] * 3))
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")
        assert not gateway.backend.calls


async def test_batch_has_to_be_a_form(gateway: Gateway) -> None:
    for request in ({"content": image_bytes(), "headers": {"Content-Type": "image/png"}}, {"json": {"image": ""}}, {}):
        answer = await gateway.client.post(PATH, **request)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert "multipart/form-data" in answer.json()["detail"]


async def test_rois_are_not_read_in_a_batch(gateway: Gateway) -> None:
    answer = await gateway.client.post(PATH, files=form(image_bytes()), data={"roi": "0,0,5,5"})
    assert (answer.status_code, answer.json()["code"]) == (400, "unexpected_field")


async def test_every_image_of_a_batch_is_counted(gateway: Gateway) -> None:
    await gateway.client.post(PATH, files=form(image_bytes(), b"no image"))
    await gateway.client.post(PATH, content=b"")
    metrics = text_string_to_metric_families((await gateway.client.get("/metrics")).text)
    counted = {
        sample.labels["code"]: sample.value
        for family in metrics
        for sample in family.samples
        if sample.name == "handpose_requests_total"
    }
    assert counted == {"ok": 1, "unsupported_image_format": 1, "unsupported_media_type": 1}
