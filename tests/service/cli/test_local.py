"""The model in the command's own process gives the answers of a service, behind the client's interface."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import Run
from service.backends.repository import Servable
from service.bootstrap import StartError
from service.cli.local import LocalTransport
from service.client import Box, Estimate, HandPoseClient, RejectedError, ServerFailedError, StreamOptions
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


def settings(repository: Path) -> Settings:
    """One look: this model finds the same hand in every crop."""
    return Settings.from_environment({"HANDPOSE_MODEL_REPO": str(repository), "HANDPOSE_SECOND_LOOK": "false"})


@pytest.fixture
def client(tmp_path: Path) -> Iterator[HandPoseClient]:
    for variant in ("standard", "lightweight"):
        write_card(tmp_path, variant, version=1)
    transport = LocalTransport(settings(tmp_path), open_servable=open_as_function)
    with HandPoseClient(transport=transport) as client:
        yield client


def test_a_picture_gets_its_keypoints(client: HandPoseClient) -> None:
    estimate = client.estimate(PHOTO, variant="standard")

    assert (estimate.model.variant, estimate.image_size) == ("standard", (INPUT_SIZE, INPUT_SIZE))
    np.testing.assert_allclose(estimate.hands[0].points, spread_keypoints(INPUT_SIZE), atol=0.1)


def test_mistakes_and_failures_are_the_clients_errors(client: HandPoseClient) -> None:
    with pytest.raises(RejectedError) as rejected:
        client.estimate(PHOTO, rois=[Box(1000, 0, 60, 60)])
    with pytest.raises(ServerFailedError) as failed:
        client.estimate(image_bytes(picture(INPUT_SIZE, INPUT_SIZE, (0, 0, 0))))

    assert (rejected.value.code, rejected.value.errors[0].field) == ("invalid_roi", "roi[0]")
    assert failed.value.code == "internal"


def test_a_batch_gives_each_picture_its_outcome(client: HandPoseClient) -> None:
    results = [type(each) for each in client.estimate_batch([PHOTO, b"no picture", PHOTO])]

    assert results == [Estimate, RejectedError, Estimate]


def test_a_stream_follows_the_hand(client: HandPoseClient) -> None:
    first, second = client.stream([PHOTO, PHOTO], options=StreamOptions())

    assert (first.tracked, second.tracked) == (False, True)


def test_a_stream_of_an_unknown_model_is_rejected(client: HandPoseClient) -> None:
    with pytest.raises(RejectedError):
        list(client.stream([PHOTO], variant="enormous"))


def test_a_stream_can_be_left_in_the_middle(client: HandPoseClient) -> None:
    answers = client.stream(PHOTO for _ in range(100))

    assert next(answers).frame_id == 0
    answers.close()


def test_a_stream_that_is_left_while_its_answers_wait_leaves_nothing_behind(
    client: HandPoseClient, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Semaphore(0)

    def frames() -> Iterator[bytes]:
        while True:
            answered.release()
            yield PHOTO

    answers = client.stream(frames(), options=StreamOptions(tracking=False), max_under_way=64)
    next(answers)
    for _ in range(14):  # more than are held for a reader that takes none
        assert answered.acquire(timeout=10)
    answers.close()
    client.close()
    gc.collect()

    assert "Task was destroyed" not in caplog.text


def test_models_are_listed(client: HandPoseClient) -> None:
    assert [model.name for model in client.models()] == ["cpm_lightweight", "cpm_standard"]


def test_an_empty_repository_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError):
        LocalTransport(settings(tmp_path), open_servable=open_as_function)
