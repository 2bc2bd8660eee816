"""The TensorFlow Serving backend against the stand-in, over real sockets."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from deploy.stand_in.process import ROOT, StandIn
from deploy.stand_in.repository import add_version, config_text, without_detector
from service.backends.tensorflow_serving.backend import TensorFlowServingBackend
from service.backends.tensorflow_serving.catalogue import PollPolicy
from service.backends.tensorflow_serving.client import Endpoint, RetryPolicy
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.errors import (
    DeadlineExceededError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.models import VARIANTS, Kind, ModelReference
from service.pose.heatmaps import decode
from tests.support.models import DETECTOR_SIZE, INPUT_SIZE
from tests.support.waiting import until

LIGHTWEIGHT = ModelReference("lightweight")
STANDARD = ModelReference("standard")
POLL = PollPolicy(every_s=0.05, timeout_s=2.0, warm_up_timeout_s=5.0, stale_after_s=2.0)


Models = Mapping[Kind, tuple[Sequence[int], Mapping[str, int]]]


def coloured_crop(red: int, green: int = 128) -> NDArray[np.uint8]:
    return np.full((INPUT_SIZE, INPUT_SIZE, 3), (red, green, 0), np.uint8)


def marks(maps: NDArray[np.float32]) -> list[int]:
    """The red that each crop had, as the stand-in's answer tells it."""
    return [round(float(x)) for x in decode(maps).in_heatmap[:, 0, 0] * 8 * 256 / INPUT_SIZE]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in with lightweight 1 (stable), 2 (canary) and 3, and standard 1 without labels."""
    repository = tmp_path_factory.mktemp("model_repo")
    for version in (1, 2, 3):
        add_version(repository, "lightweight", version)
    add_version(repository, "standard", 1)
    config = config_text(repository, {"lightweight": ((1, 2, 3), {"stable": 1, "canary": 2}), "standard": ((1,), {})})
    with StandIn(repository, config, arguments=("--max-batch-size", "8", "--max-enqueued-batches", "1")) as running:
        yield running


@pytest.fixture
def stand_in(shared: StandIn) -> Iterator[StandIn]:
    """The shared one, with all faults mended afterwards."""
    yield shared
    shared.order(slow_s=0.0, loading_s=0.0, hang="", unavailable=False, labels_unknown=False, out_of_memory=False)


@asynccontextmanager
async def connected(
    *servers: StandIn,
    poll: PollPolicy = POLL,
    retry: RetryPolicy | None = None,
    ready: bool = True,
    versions: int = 1,
    **options: Any,
) -> AsyncIterator[TensorFlowServingBackend]:
    """A backend of these servers, when it is ready and has checked so many versions."""
    backend = TensorFlowServingBackend(
        [server.address for server in servers],
        repository=servers[0].config_file.parent,
        clock=asyncio.get_running_loop(),
        poll=poll,
        retry=retry or RetryPolicy(first_wait_s=0.01),
        **options,
    )
    async with backend:
        if ready:
            await until(lambda: is_ready(backend))
            await until(lambda: len(backend.models()) >= versions)
        yield backend


async def is_ready(backend: TensorFlowServingBackend) -> bool:
    return await backend.not_ready() is None


async def test_each_crop_of_a_batch_gets_its_own_maps_in_order(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        model = backend.resolve(LIGHTWEIGHT)
        maps = await backend.predict(model, [coloured_crop(red) for red in (40, 200, 90)], timeout_s=5)

    assert maps.shape == (3, INPUT_SIZE // 8, INPUT_SIZE // 8, 22)
    assert marks(maps) == [40, 200, 90]


@pytest.mark.parametrize(
    ("asked_for", "version", "labels"),
    [
        ("lightweight", 1, ("stable",)),
        ("lightweight@stable", 1, ("stable",)),
        ("lightweight@canary", 2, ("canary",)),
        ("lightweight@3", 3, ()),
        ("standard", 1, ()),  # no label stable: the newest
    ],
)
async def test_a_reference_means_an_exact_version(
    stand_in: StandIn, asked_for: str, version: int, labels: tuple[str, ...]
) -> None:
    async with connected(stand_in, versions=4) as backend:
        model = backend.resolve(ModelReference.parse(asked_for))
        maps = await backend.predict(model, [coloured_crop(100)], timeout_s=5)

    assert (model.version, model.labels) == (version, labels)
    tenth = decode(maps).in_heatmap[0, -1, 0] * 8 / INPUT_SIZE * 10
    assert round(float(tenth)) == version + 1  # keypoint 20 tells which version really answered


@pytest.mark.parametrize("asked_for", ["lightweight@9", "lightweight@nightly", "standard@canary"])
async def test_a_version_or_label_that_no_server_has_is_unknown(stand_in: StandIn, asked_for: str) -> None:
    async with connected(stand_in, versions=4) as backend:
        with pytest.raises(UnknownModelError, match=r"of .* there is"):
            backend.resolve(ModelReference.parse(asked_for))


async def test_the_detectors_stable_version_finds_a_hand_in_each_picture(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    add_version(tmp_path, "detector", 2)
    models: Models = {"lightweight": ((1,), {}), "standard": ((1,), {}), "detector": ((1, 2), {"stable": 1})}
    with StandIn(tmp_path, config_text(tmp_path, models)) as server:
        async with connected(server, versions=2) as backend:
            detector = backend.detector()
            pictures = [np.full((DETECTOR_SIZE, DETECTOR_SIZE, 3), 200, np.uint8)] * 3
            rows = await backend.predict(detector, pictures, timeout_s=5)
            listed = {each.name for each in backend.models()}

    assert (detector.version, detector.labels) == (1, ("stable",))
    assert rows.shape == (3, 16, 7)
    assert rows[:, :, 0].tolist() == [[1.0] + [0.0] * 15] * 3, "one hand in each"
    assert listed == {"cpm_lightweight", "cpm_standard"}, "only what finds keypoints"


async def test_without_a_detector_keypoints_are_found_and_the_service_is_not_ready(tmp_path: Path) -> None:
    add_version(tmp_path, "lightweight", 1)
    add_version(tmp_path, "standard", 1)
    models: Models = {"lightweight": ((1,), {}), "standard": ((1,), {})}
    with StandIn(tmp_path, without_detector(config_text(tmp_path, models))) as server:
        async with connected(server, ready=False) as backend:
            await until(lambda: len(backend.models()) == 2)
            maps = await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(90)], timeout_s=5)
            with pytest.raises(UnavailableError) as caught:
                backend.detector()
            reason = await backend.not_ready() or ""

    assert marks(maps) == [90]
    assert caught.value.code == "no_detector"
    assert "no version of detector can be asked" in reason
    assert "has hand_detector not at all" in reason


async def test_a_newer_detector_is_taken_up_and_a_bad_one_is_not(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    models: Models = {"lightweight": ((1,), {}), "standard": ((1,), {}), "detector": ((1, 2, 3), {})}
    with StandIn(tmp_path, config_text(tmp_path, models)) as server:
        async with connected(server) as backend:
            assert backend.detector().version == 1
            add_version(tmp_path, "detector", 2)
            await until(lambda: backend.detector().version == 2)

            folder = add_version(tmp_path, "detector", 3)
            card = json.loads((folder / "model_card.json").read_text())
            (folder / "model_card.json").write_text(json.dumps(card | {"columns": card["columns"][::-1]}))
            await until(lambda: "columns" in (backend.refusal(ModelReference("detector", version=3)) or ""))
            assert backend.detector().version == 2
            assert await is_ready(backend)


async def test_all_models_are_listed_with_their_labels(stand_in: StandIn) -> None:
    async with connected(stand_in, versions=4) as backend:
        found = {(each.variant, each.version): each.labels for each in backend.models()}

    assert found == {
        ("standard", 1): (),
        ("lightweight", 1): ("stable",),
        ("lightweight", 2): ("canary",),
        ("lightweight", 3): (),
    }


async def test_traceparent_goes_along_as_metadata(stand_in: StandIn) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with connected(stand_in, traceparent=lambda: trace) as backend:
        await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(10)], timeout_s=5)

    assert stand_in.report()["traceparents"][-1] == trace


# Failures, by the table


async def failure_of(backend: TensorFlowServingBackend, crops: int = 1, timeout_s: float = 2.0) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(1)] * crops, timeout_s=timeout_s)
    assert caught.value.__cause__ is not None
    return caught.value


async def test_a_server_out_of_memory_is_unavailable(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        stand_in.order(out_of_memory=True)
        failure = await failure_of(backend)

    assert isinstance(failure, UnavailableError)
    assert failure.retry_after_s


async def test_an_answer_that_comes_too_late_is_a_deadline(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        stand_in.order(hang="predict")
        failure = await failure_of(backend, timeout_s=0.1)

    assert isinstance(failure, DeadlineExceededError)


async def test_no_call_is_made_when_the_time_is_up_already(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        before = stand_in.report()["counts"]["Predict"]
        with pytest.raises(DeadlineExceededError):
            await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(1)], timeout_s=0.0)

    assert stand_in.report()["counts"]["Predict"] == before


async def test_a_full_queue_is_tried_again_and_then_overloaded(stand_in: StandIn) -> None:
    async with connected(stand_in, retry=RetryPolicy(attempts=3, first_wait_s=0.01)) as backend:
        stand_in.order(slow_s=0.5)
        before = stand_in.report()["counts"].get("Predict:UNAVAILABLE", 0)
        model = backend.resolve(LIGHTWEIGHT)
        # One batch runs and one has room to wait.
        answers = await asyncio.gather(
            *(backend.predict(model, [coloured_crop(50 + each)] * 8, timeout_s=10) for each in range(5)),
            return_exceptions=True,
        )
        assert await is_ready(backend)  # a full queue does not count against the server

    refused = [each for each in answers if isinstance(each, OverloadedError)]
    assert len(refused) >= 2
    assert all(each.retry_after_s for each in refused)
    assert stand_in.report()["counts"]["Predict:UNAVAILABLE"] - before >= 3 * len(refused)
    for index, answer in enumerate(answers):
        if not isinstance(answer, OverloadedError):
            assert not isinstance(answer, BaseException), answer
            assert marks(answer) == [50 + index] * 8


async def test_a_batch_that_expired_in_the_servers_queue_is_a_deadline(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        stand_in.order(slow_s=0.5)
        model = backend.resolve(LIGHTWEIGHT)
        first = asyncio.create_task(backend.predict(model, [coloured_crop(1)] * 8, timeout_s=5))
        with pytest.raises(DeadlineExceededError):
            await backend.predict(model, [coloured_crop(1)], timeout_s=0.2)
        await first


# Down and up again


async def test_a_refusing_server_is_tried_again_only_within_the_deadline(stand_in: StandIn) -> None:
    async with connected(stand_in, retry=RetryPolicy(attempts=1000, first_wait_s=0.01, longest_wait_s=0.02)) as backend:
        model = backend.resolve(LIGHTWEIGHT)
        stand_in.order(unavailable=True)
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(UnavailableError):
            await backend.predict(model, [coloured_crop(1)], timeout_s=0.5)
        assert loop.time() - start < 5.0


async def test_a_short_refusal_is_not_seen_by_the_caller(stand_in: StandIn) -> None:
    patient = RetryPolicy(attempts=100, first_wait_s=0.05, longest_wait_s=0.1)
    async with connected(stand_in, poll=PollPolicy(every_s=30.0), retry=patient) as backend:
        model = backend.resolve(LIGHTWEIGHT)
        before = stand_in.report()["counts"].get("Predict:UNAVAILABLE", 0)
        stand_in.order(unavailable=True)
        answer = asyncio.create_task(backend.predict(model, [coloured_crop(77)], timeout_s=15))
        await until(lambda: stand_in.report()["counts"].get("Predict:UNAVAILABLE", 0) > before)
        stand_in.order(unavailable=False)

        assert marks(await answer) == [77]


async def test_readiness_follows_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    server = StandIn(tmp_path, config_text(tmp_path, {"lightweight": ((1,), {}), "standard": ((1,), {})})).start()
    loop = asyncio.get_running_loop()
    async with connected(server) as backend:
        model = backend.resolve(LIGHTWEIGHT)

        server.kill()
        died = loop.time()
        await until(lambda: is_down(backend))
        assert loop.time() - died < 10.0
        with pytest.raises(UnavailableError):
            await backend.predict(model, [coloured_crop(1)], timeout_s=1)
        with pytest.raises(UnavailableError):
            backend.resolve(LIGHTWEIGHT)

        await asyncio.to_thread(server.start)
        returned = loop.time()
        await until(lambda: is_ready(backend))
        assert loop.time() - returned < 10.0
        assert marks(await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(55)], timeout_s=5)) == [55]
    server.stop()


async def is_down(backend: TensorFlowServingBackend) -> bool:
    return "does not answer" in (await backend.not_ready() or "")


async def test_a_server_that_is_known_to_be_down_is_not_called_until_it_answers_polls_again(stand_in: StandIn) -> None:
    one_try = RetryPolicy(attempts=1)
    async with connected(stand_in, poll=PollPolicy(every_s=0.5), retry=one_try) as backend:
        model = backend.resolve(LIGHTWEIGHT)
        stand_in.order(unavailable=True)
        await until(lambda: is_down(backend))
        before = stand_in.report()["counts"]["Predict"]
        for _ in range(20):
            with pytest.raises(UnavailableError):
                await backend.predict(model, [coloured_crop(1)], timeout_s=1)
        assert stand_in.report()["counts"]["Predict"] == before

        stand_in.order(unavailable=False)
        await until(lambda: is_ready(backend))
        await backend.predict(backend.resolve(LIGHTWEIGHT), [coloured_crop(1)], timeout_s=5)


async def test_a_silent_server_is_not_ready(stand_in: StandIn) -> None:
    async with connected(stand_in, poll=PollPolicy(every_s=0.05, timeout_s=0.2, stale_after_s=0.5)) as backend:
        stand_in.order(hang="all")
        await until(lambda: is_down(backend))
        with pytest.raises(UnavailableError):
            await until(lambda: backend.resolve(LIGHTWEIGHT) is None)


async def test_two_servers_share_the_work_and_one_carries_it_alone(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    config = config_text(tmp_path, {"lightweight": ((1,), {}), "standard": ((1,), {})})
    with StandIn(tmp_path, config) as first, StandIn(tmp_path, config) as second:
        async with connected(first, second) as backend:
            await until(lambda: all(each.report()["counts"].get("Predict", 0) >= 2 for each in (first, second)))
            model = backend.resolve(LIGHTWEIGHT)

            async def share_of(predictions: int) -> list[int]:
                before = [each.report()["counts"]["Predict"] for each in (first, second)]
                for _ in range(predictions):
                    await backend.predict(model, [coloured_crop(5)], timeout_s=5)
                after = [each.report()["counts"]["Predict"] for each in (first, second)]
                return [b - a for a, b in zip(before, after, strict=True)]

            async def both_take_part() -> bool:
                return await share_of(2) == [1, 1]

            await until(both_take_part)  # both have warmed up; the gateway may have heard of one only
            assert await share_of(10) == [5, 5]

            first.kill()
            for red in range(100, 120):
                assert marks(await backend.predict(model, [coloured_crop(red)], timeout_s=5)) == [red]
            assert await is_ready(backend)


async def test_labels_that_are_not_known_yet_make_no_request_fail(stand_in: StandIn) -> None:
    async with connected(stand_in) as backend:
        stand_in.order(labels_unknown=True)
        await until(lambda: is_down(backend))
        stand_in.order(labels_unknown=False)
        await until(lambda: is_ready(backend) if len(backend.models()) == 4 else False)
        assert backend.resolve(ModelReference.parse("lightweight@canary")).version == 2


# Versions


async def test_a_new_version_is_served_once_it_is_loaded(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    config = config_text(tmp_path, {"lightweight": ((1, 2), {}), "standard": ((1,), {})})
    with StandIn(tmp_path, config) as server:
        async with connected(server) as backend:
            assert backend.resolve(LIGHTWEIGHT).version == 1
            server.order(loading_s=3.0)
            add_version(tmp_path, "lightweight", 2)

            def version_2() -> str:
                try:
                    return str(backend.resolve(ModelReference.parse("lightweight@2")).version)
                except ServiceError as error:
                    return error.kind

            await until(lambda: version_2() == "unavailable")  # it is loading
            assert backend.resolve(LIGHTWEIGHT).version == 1
            await until(lambda: version_2() == "2")
            assert backend.resolve(LIGHTWEIGHT).version == 2


async def test_a_version_unloaded_behind_our_back_is_a_retry_not_a_wrong_answer(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    add_version(tmp_path, "lightweight", 2)
    latest = config_text(tmp_path, {"lightweight": ((1,), {}), "standard": ((1,), {})})
    with StandIn(tmp_path, latest.replace("versions: 1", "versions: 2", 1)) as server:
        async with connected(server, poll=PollPolicy(every_s=30.0)) as backend:
            model = backend.resolve(LIGHTWEIGHT)
            assert model.version == 2
            endpoint = Endpoint(server.address)
            request = wire.ReloadConfigRequest(config=text_format.Parse(latest, wire.ModelServerConfig()))
            await endpoint.reload(request, 5)
            await endpoint.aclose()

            async def gone() -> bool:
                try:
                    await backend.predict(model, [coloured_crop(1)], timeout_s=5)
                except UnavailableError as error:
                    return error.retry_after_s is not None
                return False

            def back_at_1() -> bool:
                try:
                    return backend.resolve(LIGHTWEIGHT).version == 1
                except UnavailableError:  # it is loading
                    return False

            await until(gone)
            await until(back_at_1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda card: card.update(keypoints=card["keypoints"][::-1]), "keypoints"),
        (lambda card: card.update(version=7), "cpm_lightweight/7"),
        (lambda card: card.update(input_size=100), "input_size"),
    ],
)
async def test_a_version_whose_card_does_not_fit_is_never_served(
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    folder = add_version(tmp_path, "lightweight", 1)
    card = json.loads((folder / "model_card.json").read_text())
    spoil(card)
    (folder / "model_card.json").write_text(json.dumps(card))
    add_version(tmp_path, "standard", 1)
    with StandIn(tmp_path, config_text(tmp_path, {"lightweight": ((1,), {}), "standard": ((1,), {})})) as server:
        async with connected(server, ready=False) as backend:

            async def both_are_checked() -> bool:
                said = await backend.not_ready() or ""
                return reason in said and "standard" not in said

            await until(both_are_checked)
            with pytest.raises(UnavailableError):
                backend.resolve(LIGHTWEIGHT)
            assert backend.resolve(STANDARD).version == 1


async def test_an_address_where_nobody_listens_is_not_ready_and_says_so(tmp_path: Path) -> None:
    nobody = StandIn(tmp_path, "", port=1)
    async with connected(nobody, ready=False) as backend:
        await until(lambda: is_down(backend))
        assert "127.0.0.1:1" in (await backend.not_ready() or "")
        with pytest.raises(UnavailableError):
            backend.resolve(LIGHTWEIGHT)


def test_the_gateways_side_imports_no_tensorflow() -> None:
    code = (
        "import sys, service.backends.tensorflow_serving.backend;"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'tensorflow_serving', 'keras')])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Limits that contradict each other


async def test_a_batch_larger_than_the_server_takes_is_sent_in_parts_from_then_on(stand_in: StandIn) -> None:
    refused: list[int] = []
    async with connected(stand_in, on_batch_too_large=lambda: refused.append(1)) as backend:
        model = backend.resolve(LIGHTWEIGHT)
        reds = list(range(40, 240, 10))
        first = await backend.predict(model, [coloured_crop(red) for red in reds], timeout_s=5)
        second = await backend.predict(model, [coloured_crop(red) for red in reversed(reds)], timeout_s=5)

    assert (marks(first), marks(second)) == (reds, reds[::-1])
    assert len(refused) == 2, "20 and 10 are more than 8, 5 is not"
