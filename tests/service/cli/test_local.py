"""The model in the command's own process gives the answers of a service, behind the client's interface."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bootstrap import LocalService, StartError, local_service
from service.cli.local import LocalTransport
from service.client import AsyncHandPoseClient, Box, Estimate, RejectedError, ServerFailedError, StreamOptions
from service.settings import Settings
from tests.support.backend import detection, spread_keypoints
from tests.support.gateway import Gateway
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.servables import run_without_model, write_card, write_detector_card

PHOTO = image_bytes(picture(INPUT_SIZE, INPUT_SIZE))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def gateway(workers: ThreadPoolExecutor) -> Gateway:
    """The use case on a fake backend; its doors stay shut."""
    return Gateway(workers)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncHandPoseClient:
    clock = asyncio.get_running_loop()
    service = LocalService(gateway.predictor, gateway.streams, gateway.backend, clock)
    return AsyncHandPoseClient(transport=LocalTransport(service))


async def photos(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield PHOTO


async def test_the_models_of_a_repository_answer(tmp_path: Path) -> None:
    for variant in ("standard", "lightweight"):
        write_card(tmp_path, variant, version=1)
    write_detector_card(tmp_path)
    settings = Settings.from_environment({"HANDPOSE_MODEL_REPO": str(tmp_path)})
    async with local_service(settings, open_servable=run_without_model) as service:
        client = AsyncHandPoseClient(transport=LocalTransport(service))
        estimate = await client.estimate(PHOTO, variant="standard", whole=True)

    assert (estimate.model.variant, estimate.image_size) == ("standard", (INPUT_SIZE, INPUT_SIZE))
    np.testing.assert_allclose(estimate.hands[0].points, spread_keypoints(INPUT_SIZE), atol=0.1)


@pytest.mark.parametrize(
    ("asked", "sides"),
    [
        ({}, ["right", "left"]),
        ({"max_hands": 1}, ["right"]),
        ({"min_score": 0.95}, ["right"]),
        ({"min_score": 1.0}, []),
        ({"whole": True}, [None]),
        ({"rois": [Box(0, 0, 60, 60)]}, [None]),
    ],
    ids=str,
)
async def test_hands_are_looked_for_as_asked(
    client: AsyncHandPoseClient, gateway: Gateway, asked: dict[str, Any], sides: list[str | None]
) -> None:
    gateway.backend.detections = (
        detection(0.25, 0.25, 0.2, right=1.0),
        detection(0.75, 0.75, 0.2, right=0.0, score=0.81),
    )

    estimate = await client.estimate(PHOTO, **asked)
    of_batch = [] if "rois" in asked else [each async for each in client.estimate_batch([PHOTO], **asked)]

    for found in (estimate, *of_batch):
        assert isinstance(found, Estimate)
        assert [hand.handedness and hand.handedness.label for hand in found.hands] == sides


async def test_a_number_of_hands_that_cannot_be_looked_for_is_rejected(client: AsyncHandPoseClient) -> None:
    with pytest.raises(RejectedError) as caught:
        await client.estimate(PHOTO, max_hands=17)

    assert (caught.value.code, caught.value.errors[0].field) == ("invalid_option", "max_hands")


async def test_mistakes_and_failures_are_the_clients_errors(client: AsyncHandPoseClient, gateway: Gateway) -> None:
    with pytest.raises(RejectedError) as rejected:
        await client.estimate(PHOTO, rois=[Box(1000, 0, 60, 60)])
    gateway.backend.failure = RuntimeError("secret")
    with pytest.raises(ServerFailedError) as failed:
        await client.estimate(PHOTO)

    assert (rejected.value.code, rejected.value.errors[0].field) == ("invalid_roi", "roi[0]")
    assert failed.value.code == "internal"
    assert "secret" not in str(failed.value)


async def test_a_batch_gives_each_picture_its_outcome(client: AsyncHandPoseClient) -> None:
    results = [type(each) async for each in client.estimate_batch([PHOTO, b"no picture", PHOTO])]

    assert results == [Estimate, RejectedError, Estimate]


async def test_a_stream_follows_the_hand(client: AsyncHandPoseClient) -> None:
    first, second = [each async for each in client.stream(photos(2), options=StreamOptions())]

    assert (first.tracked, second.tracked) == (False, True)


async def test_a_stream_of_an_unknown_model_is_rejected(client: AsyncHandPoseClient) -> None:
    with pytest.raises(RejectedError):
        async for _ in client.stream(photos(1), variant="enormous"):
            pass


async def test_frames_that_cannot_be_had_end_the_stream_with_their_own_error(client: AsyncHandPoseClient) -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield PHOTO
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async for _ in client.stream(frames()):
            pass


async def test_a_stream_can_be_left_in_the_middle_and_then_takes_no_more_frames(client: AsyncHandPoseClient) -> None:
    taken = 0

    async def frames() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield PHOTO

    answers = client.stream(frames(), options=StreamOptions(tracking=False), max_under_way=64)
    assert (await anext(answers)).frame_id == 0
    await answers.aclose()
    before = taken

    assert (await client.estimate(PHOTO)).hands
    assert taken == before


async def test_models_are_listed(client: AsyncHandPoseClient) -> None:
    assert [model.name for model in await client.models()] == ["cpm_lightweight", "cpm_standard"]


async def test_an_empty_repository_is_a_start_error(tmp_path: Path) -> None:
    settings = Settings.from_environment({"HANDPOSE_MODEL_REPO": str(tmp_path)})
    with pytest.raises(StartError):
        async with local_service(settings, open_servable=run_without_model):
            pass
