"""The model in the command's own process gives the answers of a service, behind the client's interface."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import Run
from service.backends.repository import Servable
from service.bootstrap import StartError, local_service
from service.cli.local import LocalTransport
from service.client import AsyncHandPoseClient, Box, Estimate, RejectedError, ServerFailedError, StreamOptions
from service.settings import Settings
from tests.support.backend import same_hand_everywhere, spread_keypoints
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.servables import write_card

PHOTO = image_bytes(picture(INPUT_SIZE, INPUT_SIZE))


def open_as_function(servable: Servable) -> Run:
    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(crops) and crops[0].max() == 0:  # a black picture breaks this model
            raise RuntimeError("secret")
        return same_hand_everywhere(list(crops))

    return run


@asynccontextmanager
async def client_of(repository: Path) -> AsyncIterator[AsyncHandPoseClient]:
    # One look: this model finds the same hand in every crop.
    given = {"HANDPOSE_MODEL_REPO": str(repository), "HANDPOSE_SECOND_LOOK": "false"}
    async with local_service(Settings.from_environment(given), open_servable=open_as_function) as service:
        yield AsyncHandPoseClient(transport=LocalTransport(service))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncHandPoseClient]:
    for variant in ("standard", "lightweight"):
        write_card(tmp_path, variant, version=1)
    async with client_of(tmp_path) as client:
        yield client


async def photos(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield PHOTO


async def test_a_picture_gets_its_keypoints(client: AsyncHandPoseClient) -> None:
    estimate = await client.estimate(PHOTO, variant="standard")

    assert (estimate.model.variant, estimate.image_size) == ("standard", (INPUT_SIZE, INPUT_SIZE))
    np.testing.assert_allclose(estimate.hands[0].points, spread_keypoints(INPUT_SIZE), atol=0.1)


async def test_mistakes_and_failures_are_the_clients_errors(client: AsyncHandPoseClient) -> None:
    with pytest.raises(RejectedError) as rejected:
        await client.estimate(PHOTO, rois=[Box(1000, 0, 60, 60)])
    with pytest.raises(ServerFailedError) as failed:
        await client.estimate(image_bytes(picture(INPUT_SIZE, INPUT_SIZE, (0, 0, 0))))

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
    with pytest.raises(StartError):
        async with client_of(tmp_path):
            pass
