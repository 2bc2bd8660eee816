"""The clients against a real gateway, over REST and over gRPC: the same calls, the same answers, the same errors."""

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncHandPoseClient,
    Box,
    ConnectionFailedError,
    Estimate,
    Frame,
    HandPoseClient,
    HandPoseError,
    ImageLike,
    OneEuro,
    RejectedError,
    RetryPolicy,
    StreamOptions,
    TimedOutError,
    TryAgainError,
    draw,
)
from service.inference.errors import OverloadedError
from service.pose.images import decode_image
from service.pose.keypoints import KEYPOINT_NAMES
from tests.support.backend import spread_keypoints
from tests.support.gateway import Gateway
from tests.support.images import PNG_MODES, as_png, image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.running_service import Service

PICTURE = picture(INPUT_SIZE, INPUT_SIZE)
PHOTO = image_bytes(PICTURE)
ONCE = RetryPolicy(attempts=1)
KEYPOINTS = spread_keypoints(INPUT_SIZE)
"""In the picture, all of which is shown to the model."""

both = pytest.mark.parametrize("protocol", ["rest", "grpc"])


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def client(service: Service, protocol: str) -> Iterator[HandPoseClient]:
    with HandPoseClient(service.urls[protocol]) as client:
        yield client


@both
@pytest.mark.parametrize("kind", ["bytes", "path", "array", "grey array", "Pillow image"])
def test_whatever_holds_a_picture_gets_its_keypoints(client: HandPoseClient, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hand.png"
    path.write_bytes(PHOTO)
    image = {
        "bytes": PHOTO,
        "path": path,
        "array": np.asarray(PICTURE),
        "grey array": np.asarray(PICTURE.convert("L")),
        "Pillow image": PICTURE.convert("RGBA"),
    }[kind]

    estimate = client.estimate(image)  # type: ignore[arg-type]

    (hand,) = estimate.hands
    assert [point.name for point in hand.keypoints] == list(KEYPOINT_NAMES)
    np.testing.assert_allclose(hand.points, KEYPOINTS, atol=0.2)
    assert hand.scores.shape == (21,)
    assert (estimate.image_size, estimate.model.name) == ((INPUT_SIZE, INPUT_SIZE), "cpm_lightweight")


@both
@pytest.mark.parametrize("mode", PNG_MODES)
def test_a_picture_is_the_same_to_the_model_however_it_is_handed_over(
    service: Service, client: HandPoseClient, mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "hand.png"
    for orientation in range(1, 9):
        path.write_bytes(as_png(mode, (40, 24), orientation, orientation))
        upright = decode_image(path.read_bytes()).pixels
        with Image.open(path) as opened:
            doors: list[ImageLike] = [path, str(path), path.read_bytes(), opened, upright, np.asarray(upright)]
            service.do(lambda gateway: gateway.backend.calls.clear())
            results = [client.estimate(path, whole=True), *client.estimate_batch(doors, whole=True)]
        crops = service.do(lambda gateway: [crop for call in gateway.backend.calls for crop in call.crops])

        assert [each.image_size for each in results if isinstance(each, Estimate)] == 7 * [upright.size]
        assert len(crops) == 7
        for crop in crops[1:]:
            np.testing.assert_array_equal(crop, crops[0])


@both
def test_rois_variant_and_request_id_reach_the_service(client: HandPoseClient) -> None:
    roi = Box(10.25, 20.5, 60.125, 50.75)

    estimate = client.estimate(PHOTO, rois=[roi], variant="standard", request_id="photo-1")

    assert (estimate.hands[0].box, estimate.model.variant, estimate.request_id) == (roi, "standard", "photo-1")


@both
def test_a_wrong_request_is_rejected_with_the_services_words(client: HandPoseClient) -> None:
    with pytest.raises(RejectedError) as caught:
        client.estimate(PHOTO, rois=[Box(1000, 0, 60, 60)], request_id="wrong-1")

    error = caught.value
    assert (error.code, error.request_id, error.errors[0].field) == ("invalid_roi", "wrong-1", "roi[0]")
    assert "outside the image" in str(error)


@both
def test_a_busy_service_is_asked_again_after_the_time_it_named(service: Service, protocol: str) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "failure", OverloadedError("busy", retry_after_s=3.0)))
    pauses: list[float] = []

    def recover(seconds: float) -> None:
        pauses.append(seconds)
        service.do(lambda gateway: setattr(gateway.backend, "failure", None))

    with HandPoseClient(service.urls[protocol], sleep=recover) as client:
        assert client.estimate(PHOTO).hands

    (pause,) = pauses
    assert 3.0 <= pause <= 3.3


@both
def test_a_service_that_stays_busy_is_given_up(service: Service, protocol: str) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "failure", OverloadedError("busy", retry_after_s=0.5)))
    pauses: list[float] = []

    with (
        HandPoseClient(service.urls[protocol], retries=RetryPolicy(attempts=3), sleep=pauses.append) as client,
        pytest.raises(TryAgainError) as caught,
    ):
        client.estimate(PHOTO)

    assert len(pauses) == 2
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 0.5)


@both
def test_no_pause_reaches_beyond_the_calls_time(service: Service, protocol: str) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "failure", OverloadedError("busy", retry_after_s=60.0)))
    pauses: list[float] = []

    with HandPoseClient(service.urls[protocol], sleep=pauses.append) as client, pytest.raises(TryAgainError):
        client.estimate(PHOTO, timeout_s=5.0)

    assert pauses == []


@both
def test_a_call_ends_when_its_time_is_up(service: Service, protocol: str) -> None:
    service.do(lambda gateway: gateway.backend.hold())

    with HandPoseClient(service.urls[protocol]) as client, pytest.raises(TimedOutError):
        client.estimate(PHOTO, timeout_s=1.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
def test_a_service_that_is_not_there_is_a_failed_connection(url: str) -> None:
    with HandPoseClient(url, retries=ONCE) as client, pytest.raises(ConnectionFailedError):
        client.estimate(PHOTO, timeout_s=5.0)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        HandPoseClient(url)


@both
async def test_a_folder_of_large_photos_is_sent_in_batches_that_the_service_reads(
    service: Service, protocol: str
) -> None:
    photo = PHOTO + bytes(3 * 1024 * 1024)  # what lies behind a picture's end is ignored

    with HandPoseClient(service.urls[protocol]) as client:
        results = list(client.estimate_batch(8 * [photo], batch_size=8))
    async with AsyncHandPoseClient(service.urls[protocol]) as other:
        results += [each async for each in other.estimate_batch(8 * [photo], batch_size=8)]

    assert [type(each) for each in results] == 16 * [Estimate]


@both
async def test_a_batch_that_is_too_large_is_sent_image_by_image(protocol: str, workers: ThreadPoolExecutor) -> None:
    gateway = Gateway(workers, max_body_bytes=2 * len(PHOTO))
    await gateway.start()
    await gateway.start_rest()
    images = [PHOTO, PHOTO, PHOTO + bytes(3 * len(PHOTO)), PHOTO]
    url = gateway.rest_url if protocol == "rest" else gateway.rpc_url
    async with AsyncHandPoseClient(url, retries=ONCE) as client:
        results = [each async for each in client.estimate_batch(images)]
        alone = [each async for each in client.estimate_batch(images[2:3])]

    def ask() -> list[Estimate | HandPoseError]:
        with HandPoseClient(url, retries=ONCE) as client:
            return list(client.estimate_batch(images))

    blocking = await asyncio.to_thread(ask)
    await gateway.stop()

    assert [getattr(each, "code", "ok") for each in results] == ["ok", "ok", "body_too_large", "ok"]
    assert [getattr(each, "code", "ok") for each in blocking] == ["ok", "ok", "body_too_large", "ok"]
    assert [getattr(each, "code", "ok") for each in alone] == ["body_too_large"]


@both
def test_a_batch_gives_each_image_its_estimate_or_its_error(client: HandPoseClient) -> None:
    results = list(client.estimate_batch([PHOTO, b"no image", PHOTO], batch_size=2))

    assert isinstance(results[0], Estimate)
    assert isinstance(results[1], RejectedError)
    assert results[1].code == "unsupported_image_format"
    assert isinstance(results[2], Estimate)


@both
async def test_an_image_that_cannot_be_read_takes_no_other_with_it(
    service: Service, client: HandPoseClient, protocol: str, tmp_path: Path
) -> None:
    images: list[ImageLike] = [tmp_path / "missing.jpg", PHOTO, np.zeros((2, 2, 9), np.uint8), PHOTO, tmp_path]
    expected = ["unreadable_file", "ok", "no_image", "ok", "unreadable_file"]

    blocking = list(client.estimate_batch(images, batch_size=2))
    async with AsyncHandPoseClient(service.urls[protocol]) as other:
        results = [each async for each in other.estimate_batch(images)]

    assert [getattr(each, "code", "ok") for each in blocking] == expected
    assert [getattr(each, "code", "ok") for each in results] == expected
    with pytest.raises(RejectedError, match=r"missing\.jpg"):  # as documented: raise the result to stop at it
        raise next(each for each in blocking if isinstance(each, HandPoseError))


@both
def test_the_images_of_a_batch_that_were_turned_away_are_sent_again(service: Service, protocol: str) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "failure", OverloadedError("busy", retry_after_s=0.5)))

    def recover(seconds: float) -> None:
        service.do(lambda gateway: setattr(gateway.backend, "failure", None))

    with HandPoseClient(service.urls[protocol], sleep=recover) as client:
        results = list(client.estimate_batch([PHOTO, b"no image"]))

    assert isinstance(results[0], Estimate)
    assert isinstance(results[1], RejectedError)


@both
def test_a_stream_answers_frames_in_order_and_follows_the_hand(client: HandPoseClient) -> None:
    frames = [np.asarray(PICTURE), Frame(PHOTO, id=70, time_s=0.0), Frame(b"torn", id=71), PICTURE]
    options = StreamOptions(smoothing=OneEuro())

    answers = list(client.stream(frames[1:], options=options))  # type: ignore[arg-type]

    assert [answer.frame_id for answer in answers] == [70, 71, 2]
    assert [answer.error.code if answer.error else None for answer in answers] == [
        None,
        "unsupported_image_format",
        None,
    ]
    assert answers[2].tracked
    assert answers[2].track_ids == answers[0].track_ids


@both
def test_a_stream_of_an_unknown_model_is_rejected(client: HandPoseClient) -> None:
    with pytest.raises(RejectedError) as caught:
        list(client.stream([PHOTO], variant="enormous"))

    assert caught.value.code == "unknown_variant"


@both
def test_frames_that_cannot_be_had_end_the_stream_with_their_own_error(client: HandPoseClient) -> None:
    def frames() -> Iterator[bytes]:
        yield PHOTO
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.stream(frames()))


@both
def test_a_stream_can_be_left_in_the_middle(service: Service, client: HandPoseClient) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield PHOTO

    answers = client.stream(endless())
    assert next(answers).estimate is not None
    answers.close()

    service.drain_streams()
    assert service.do(lambda gateway: gateway.streams.number_open) == 0


@both
def test_frames_are_not_taken_far_ahead_of_the_answers(service: Service, client: HandPoseClient) -> None:
    taken = 0

    def frames() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            yield PHOTO

    ahead = [taken - answered for answered, _ in enumerate(client.stream(frames(), max_under_way=4))]

    assert len(ahead) == 30
    assert max(ahead) <= 4 + 1, "one more is taken as soon as an answer is there"


@both
def test_a_service_that_shuts_down_ends_streams_with_advice_to_come_back(
    service: Service, client: HandPoseClient
) -> None:
    def frames() -> Iterator[bytes]:
        yield PHOTO
        service.drain_streams()

    with pytest.raises(TryAgainError) as caught:
        list(client.stream(frames()))

    assert (caught.value.code, caught.value.retry_after_s) == ("unavailable", 1.0)


@both
def test_models_are_listed(client: HandPoseClient) -> None:
    models = client.models()

    assert [(model.name, model.version, model.labels) for model in models] == [
        ("cpm_lightweight", 1, ("stable",)),
        ("cpm_standard", 1, ("stable",)),
    ]


@both
async def test_the_async_client_offers_the_same(service: Service, protocol: str) -> None:
    async def frames() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield PHOTO

    async with AsyncHandPoseClient(service.urls[protocol], variant="standard") as client:
        estimate = await client.estimate(PHOTO)
        batch = [type(each) async for each in client.estimate_batch([PHOTO, b"x"])]
        answers = [answer.frame_id async for answer in client.stream(frames())]
        models = await client.models()
        with pytest.raises(RejectedError):
            await client.estimate(b"no image")

    assert estimate.model.variant == "standard"
    assert batch == [Estimate, RejectedError]
    assert answers == [0, 1, 2]
    assert len(models) == 2


@both
async def test_the_async_client_obeys_the_time_to_retry(service: Service, protocol: str) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "failure", OverloadedError("busy", retry_after_s=0.7)))
    pauses: list[float] = []

    async def recover(seconds: float) -> None:
        pauses.append(seconds)
        service.do(lambda gateway: setattr(gateway.backend, "failure", None))

    async with AsyncHandPoseClient(service.urls[protocol], sleep=recover) as client:
        assert (await client.estimate(PHOTO)).hands

    assert len(pauses) == 1
    assert 0.7 <= pauses[0] <= 0.77


@pytest.mark.parametrize("protocol", ["rest"])
def test_draw_puts_the_hand_on_the_upright_picture(client: HandPoseClient) -> None:
    turned = image_bytes(picture(160, 100), "JPEG", orientation=6)

    overlay = draw(turned, client.estimate(turned))

    assert overlay.size == (100, 160)
    assert overlay.tobytes() != Image.open(io.BytesIO(turned)).transpose(Image.Transpose.ROTATE_270).tobytes()
    with pytest.raises(ValueError, match="the estimate is of an image"):
        draw(PHOTO, client.estimate(turned))


def test_the_client_imports_neither_the_service_nor_tensorflow() -> None:
    script = "import sys; import service.client; print(*sorted(sys.modules))"

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    modules = result.stdout.split()
    unwanted = (
        "tensorflow",
        "fastapi",
        "uvicorn",
        "prometheus_client",
        "pydantic",
        "service.inference",
        "service.rest",
    )
    assert "service.client" in modules
    assert not [module for module in modules if module.startswith(unwanted)]
