"""What the catalogue says while servers are slow, silent or out of memory; on servers without sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from deploy.stand_in.repository import add_version
from service.backends.tensorflow_serving.catalogue import Catalogue, PollPolicy
from service.backends.tensorflow_serving.client import Endpoint, Metadata
from service.backends.tensorflow_serving.failures import CallError
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.errors import UnavailableError
from service.inference.models import ModelReference
from tests.support.clock import ManualClock, settle
from tests.support.models import INPUT_SIZE
from tests.support.waiting import until

LIGHTWEIGHT = ModelReference("lightweight")
SECOND = ModelReference("lightweight", version=2)


class Server(Endpoint):
    """A model server that answers what the test says.

    Attributes:
        versions: of the lightweight model, all AVAILABLE.
        stable: the version with that label.
        held: versions whose predictions get no answer until they are taken out.
        failure: what predictions fail with.
        poll_failure: what polls fail with.
        failed: versions that did not load, and why.
    """

    def __init__(self, address: str, *versions: int, stable: int | None = None) -> None:
        self.address = address
        self.versions = list(versions)
        self.stable = stable
        self.held: set[int] = set()
        self.failure: CallError | None = None
        self.poll_failure: CallError | None = None
        self.failed: dict[int, str] = {}
        self.predictions: list[int] = []
        self.cancelled = 0
        self._released = asyncio.Condition()

    async def status(self, request: wire.GetModelStatusRequest, timeout_s: float) -> wire.GetModelStatusResponse:
        if self.poll_failure is not None:
            raise self.poll_failure
        state = wire.ModelVersionStatus.State
        statuses = [wire.ModelVersionStatus(version=each, state=state.AVAILABLE) for each in self.versions]
        for version, reason in self.failed.items():
            status = wire.StatusProto(error_code=11, error_message=reason)
            statuses.append(wire.ModelVersionStatus(version=version, state=state.END, status=status))
        return wire.GetModelStatusResponse(model_version_status=statuses)

    async def metadata(self, request: wire.GetModelMetadataRequest, timeout_s: float) -> wire.GetModelMetadataResponse:
        version = self.stable if request.model_spec.version_label else request.model_spec.version.value
        if version is None:
            raise CallError(grpc.StatusCode.NOT_FOUND)
        reply = wire.GetModelMetadataResponse()
        reply.model_spec.version.value = version
        return reply

    async def predict(self, request: wire.PredictRequest, timeout_s: float, metadata: Metadata) -> wire.PredictResponse:
        version = request.model_spec.version.value
        self.predictions.append(version)
        try:
            async with self._released:
                await self._released.wait_for(lambda: version not in self.held)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        maps = np.zeros((1, INPUT_SIZE // 8, INPUT_SIZE // 8, 22), np.float32)
        reply = wire.PredictResponse()
        reply.outputs["belief_maps"].dtype = wire.DT_FLOAT
        reply.outputs["belief_maps"].tensor_content = maps.tobytes()
        for size in maps.shape:
            reply.outputs["belief_maps"].tensor_shape.dim.add(size=size)
        return reply

    async def release(self) -> None:
        self.held.clear()
        async with self._released:
            self._released.notify_all()


class Scene:
    """A catalogue of some servers, on a clock that stands still."""

    def __init__(self, repository: Path) -> None:
        for version in (1, 2):
            add_version(repository, "lightweight", version)
        self.repository = repository
        self.clock = ManualClock()
        self._catalogues: list[Catalogue] = []

    def catalogue(self, *servers: Server) -> Catalogue:
        catalogue = Catalogue(
            servers,
            names={"lightweight": "cpm_lightweight"},
            repository=self.repository,
            labels=("stable",),
            clock=self.clock,
            policy=PollPolicy(stale_after_s=5.0, recheck_s=0.01),
        )
        self._catalogues.append(catalogue)
        return catalogue

    async def close(self) -> None:
        for catalogue in self._catalogues:
            await catalogue.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    await scene.close()


def serves(catalogue: Catalogue, version: int) -> Callable[[], bool]:
    return lambda: catalogue.not_ready() is None and catalogue.resolve(LIGHTWEIGHT).version == version


async def test_what_runs_goes_on_being_served_while_a_new_version_is_warmed_up(scene: Scene) -> None:
    slow, other = Server("slow:1", 1), Server("other:1", 1)
    catalogue = scene.catalogue(slow, other)
    await catalogue.poll()
    await until(serves(catalogue, 1))

    slow.versions.append(2)
    slow.held.add(2)
    async with asyncio.timeout(5):
        await catalogue.poll()
        await until(lambda: 2 in slow.predictions)
        for _ in range(4):
            scene.clock.advance(3.0)
            await catalogue.poll()

    model = catalogue.resolve(LIGHTWEIGHT)
    assert (model.version, catalogue.holders(model), catalogue.not_ready()) == (1, [slow, other], None)
    with pytest.raises(UnavailableError, match="not loaded yet"):
        catalogue.resolve(SECOND)
    assert slow.predictions.count(2) == 1, "one check is enough"
    await slow.release()
    await until(serves(catalogue, 2))


async def test_a_label_stays_where_it_was_until_the_version_that_it_moved_to_is_warm(scene: Scene) -> None:
    server = Server("one:1", 1, stable=1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(serves(catalogue, 1))

    server.versions, server.stable, server.held = [1, 2], 2, {2}
    await catalogue.poll()
    await until(lambda: 2 in server.predictions)
    assert catalogue.resolve(LIGHTWEIGHT).version == 1

    await server.release()
    await until(lambda: SECOND in {ModelReference("lightweight", version=each.version) for each in catalogue.models()})
    await catalogue.poll()
    assert catalogue.resolve(LIGHTWEIGHT).version == 2


async def test_the_newest_version_does_not_stand_in_for_a_labelled_one_that_is_being_checked(scene: Scene) -> None:
    server = Server("one:1", 1, 2, stable=1)
    server.held.add(1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(lambda: len(catalogue.models()) == 1)

    assert catalogue.resolve(SECOND).version == 2
    assert "being checked" in (catalogue.not_ready() or "")
    with pytest.raises(UnavailableError):
        catalogue.resolve(LIGHTWEIGHT)
    await server.release()
    await until(serves(catalogue, 1))


@pytest.mark.parametrize(
    "failure",
    [
        CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[1,64,256,256]"),
        CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        CallError(grpc.StatusCode.INVALID_ARGUMENT, "input tensor alias not found in signature: image."),
    ],
)
async def test_a_version_whose_first_inference_failed_is_tried_again(scene: Scene, failure: CallError) -> None:
    server = Server("one:1", 1)
    server.failure = failure
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(lambda: len(server.predictions) > 2)
    assert str(failure) in (catalogue.not_ready() or "")
    assert str(failure) in (catalogue.refusal(ModelReference("lightweight", version=1)) or "")

    server.failure = None

    await until(serves(catalogue, 1))
    assert catalogue.refusal(ModelReference("lightweight", version=1)) is None


async def test_a_version_whose_card_comes_late_is_served_once_it_is_there(scene: Scene) -> None:
    card = scene.repository / "cpm_lightweight" / "1" / "model_card.json"
    text = card.read_text()
    card.unlink()
    catalogue = scene.catalogue(Server("one:1", 1))
    await catalogue.poll()
    await until(lambda: "card" in (catalogue.not_ready() or ""))

    card.write_text(text)

    await until(serves(catalogue, 1))


async def test_a_server_that_has_not_answered_for_long_makes_the_gateway_not_ready(scene: Scene) -> None:
    catalogue = scene.catalogue(Server("silent:1", 1))
    await catalogue.poll()
    await until(serves(catalogue, 1))

    scene.clock.advance(5.1)

    assert "silent:1 has not answered" in (catalogue.not_ready() or "")


async def test_closing_ends_the_checks_that_are_under_way(scene: Scene) -> None:
    server = Server("one:1", 1)
    server.held.add(1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(lambda: server.predictions == [1])

    await catalogue.close()

    assert server.cancelled == 1


async def test_unloading_a_version_ends_its_check(scene: Scene) -> None:
    server = Server("one:1", 1)
    server.held.add(1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(lambda: server.predictions == [1])

    server.versions.clear()
    await catalogue.poll()
    await settle()

    assert server.cancelled == 1


async def test_one_failed_poll_forgets_nothing_and_two_in_a_row_do(scene: Scene) -> None:
    server = Server("one:1", 1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(serves(catalogue, 1))

    server.poll_failure = CallError(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
    await catalogue.poll()
    assert (catalogue.not_ready(), catalogue.resolve(LIGHTWEIGHT).version) == (None, 1)
    server.poll_failure = None
    await catalogue.poll()
    server.poll_failure = CallError(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
    await catalogue.poll()
    assert catalogue.not_ready() is None, "not two in a row"

    await catalogue.poll()
    assert "one:1 does not answer (UNAVAILABLE)" in (catalogue.not_ready() or "")


async def test_a_server_whose_threads_are_all_busy_is_what_it_was(scene: Scene) -> None:
    server = Server("one:1", 1)
    catalogue = scene.catalogue(server)
    await catalogue.poll()
    await until(serves(catalogue, 1))

    server.poll_failure = CallError(grpc.StatusCode.RESOURCE_EXHAUSTED)
    for _ in range(10):
        scene.clock.advance(3.0)
        await catalogue.poll()
        assert (catalogue.not_ready(), catalogue.resolve(LIGHTWEIGHT).version) == (None, 1)


async def test_a_detector_that_is_being_checked_is_told_from_none(tmp_path: Path) -> None:
    server = Server("one:1", 1)
    server.held.add(1)
    add_version(tmp_path, "detector", 1)
    catalogue = Catalogue(
        [server],
        names={"detector": "hand_detector"},
        repository=tmp_path,
        labels=("stable",),
        clock=ManualClock(),
        policy=PollPolicy(),
    )
    await catalogue.poll()
    with pytest.raises(UnavailableError) as loading:
        catalogue.detector()
    server.versions.clear()
    await catalogue.poll()
    with pytest.raises(UnavailableError) as missing:
        catalogue.detector()
    await catalogue.close()

    assert (loading.value.code, missing.value.code) == ("loading", "no_detector")


# What is told of versions that are not there


async def test_nothing_is_unavailable_when_every_version_can_be_asked(scene: Scene) -> None:
    catalogue = scene.catalogue(Server("one:1", 1, 2), Server("other:1", 1, 2))
    await catalogue.poll()
    await until(lambda: catalogue.unavailable({"lightweight": {1, 2}}) == set())


async def test_a_version_that_did_not_load_on_one_server_is_told_until_it_has(scene: Scene) -> None:
    fine, other = Server("fine:1", 1, 2), Server("other:1", 1)
    other.failed = {2: "no\n\t[[model]]"}
    catalogue = scene.catalogue(fine, other)
    await catalogue.poll()
    await until(lambda: catalogue.unavailable({}) == {("lightweight", 2, "load_failed")})
    assert catalogue.refusal(SECOND) == "it could not be loaded: no [[model]]", "in one line"

    other.failed, other.versions = {}, [1, 2]
    await catalogue.poll()
    await until(lambda: catalogue.unavailable({}) == set())


async def test_a_configured_version_without_any_state_is_not_available(scene: Scene) -> None:
    catalogue = scene.catalogue(Server("one:1", 1))
    await catalogue.poll()
    await until(serves(catalogue, 1))
    assert catalogue.unavailable({"lightweight": {1, 2}}) == {("lightweight", 2, "not_available")}


async def test_where_no_server_answers_nothing_is_available(scene: Scene) -> None:
    catalogue = scene.catalogue(Server("one:1", 1))
    assert catalogue.unavailable({}) == {("lightweight", None, "not_available")}
    assert catalogue.unavailable({"lightweight": {1}}) == {("lightweight", 1, "not_available")}
