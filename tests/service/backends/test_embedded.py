"""The embedded backend, on models that are plain functions."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import EmbeddedBackend, Run
from service.backends.repository import Servable, ServableError, version_folders
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from service.inference.models import ModelReference, served
from service.inference.ports import Backend
from tests.support.clock import settle
from tests.support.executor import InlineExecutor
from tests.support.models import DETECTOR_SIZE, INPUT_SIZE, served_model
from tests.support.servables import write_card, write_detector_card

CELLS = INPUT_SIZE // 8


class Models:
    """Opens servables as functions; remembers the batches that they were run with."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.batches: list[tuple[str, tuple[int, ...]]] = []
        self.failure: Exception | None = None

    def __call__(self, servable: Servable) -> Run:
        self.opened.append(str(servable))

        def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.batches.append((str(servable), crops.shape))
            if self.failure is not None:
                raise self.failure
            return np.full((len(crops), *served(servable.card, ()).output_shape), servable.card.version, np.float32)

        return run


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_card(tmp_path, "standard", version=1)
    write_card(tmp_path, "standard", version=2)
    write_card(tmp_path, "lightweight", version=5)
    write_detector_card(tmp_path, version=3)
    return tmp_path


async def loaded(models: Models, root: Path, **options: Any) -> EmbeddedBackend:
    backend = EmbeddedBackend(open_servable=models, inference=InlineExecutor(), versions=2, **options)
    await backend.load(version_folders(root))
    return backend


def crops(number: int) -> list[NDArray[np.uint8]]:
    return [np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)] * number


async def test_every_version_is_warmed_up_at_its_sizes_before_it_answers(repository: Path) -> None:
    models = Models()
    backend: Backend = await loaded(models, repository, warm_up_sizes=(1, 2))
    assert models.opened == [
        "cpm_lightweight version 5",
        "cpm_standard version 2",
        "cpm_standard version 1",
        "hand_detector version 3",
    ]
    sides = [INPUT_SIZE, INPUT_SIZE, INPUT_SIZE, DETECTOR_SIZE]
    assert models.batches == [
        (name, (size, side, side, 3)) for name, side in zip(models.opened, sides, strict=True) for size in (1, 2)
    ]
    assert await backend.not_ready() is None


@pytest.mark.parametrize(
    ("asked_for", "version"),
    [("standard", 2), ("standard@1", 1), ("standard@2", 2), ("standard@stable", 2), ("lightweight", 5)],
)
async def test_reference_means_the_newest_version_that_fits(repository: Path, asked_for: str, version: int) -> None:
    backend = await loaded(Models(), repository)
    assert backend.resolve(ModelReference.parse(asked_for)).version == version


async def test_unknown_version_or_label_is_answered_with_what_there_is(repository: Path) -> None:
    backend = await loaded(Models(), repository)
    for asked_for in ("standard@3", "standard@canary"):
        with pytest.raises(UnknownModelError, match=r"standard@1, standard@2 = standard@stable") as caught:
            backend.resolve(ModelReference.parse(asked_for))
        assert caught.value.code == "unknown_version"


async def test_variant_without_a_servable_is_unknown(tmp_path: Path) -> None:
    write_card(tmp_path, "standard")
    backend = await loaded(Models(), tmp_path)
    with pytest.raises(UnknownModelError) as caught:
        backend.resolve(ModelReference("lightweight"))
    assert caught.value.code == "unknown_variant"


async def test_batch_runs_on_the_version_asked_for(repository: Path) -> None:
    models = Models()
    backend = await loaded(models, repository)
    model = backend.resolve(ModelReference("standard", version=1))
    maps = await backend.predict(model, crops(3), timeout_s=1)
    assert maps.shape == (3, CELLS, CELLS, 22)
    assert (maps == 1).all()
    assert models.batches[-1] == ("cpm_standard version 1", (3, INPUT_SIZE, INPUT_SIZE, 3))


async def test_pictures_are_searched_by_the_detectors_newest_version(repository: Path) -> None:
    write_detector_card(repository, version=4)
    backend = await loaded(Models(), repository)
    detector = backend.detector()
    rows = await backend.predict(detector, [np.zeros((DETECTOR_SIZE, DETECTOR_SIZE, 3), np.uint8)] * 3, timeout_s=1)
    assert (detector.version, detector.labels) == (4, ("stable",))
    assert (rows.shape, rows.max()) == ((3, 16, 7), 4)
    assert {each.name for each in backend.models()} == {"cpm_standard", "cpm_lightweight"}, "only what finds keypoints"


async def test_without_a_detector_keypoints_are_found_and_the_service_is_not_ready(tmp_path: Path) -> None:
    write_card(tmp_path, "standard")
    backend = await loaded(Models(), tmp_path)
    assert (await backend.predict(backend.resolve(ModelReference("standard")), crops(1), timeout_s=1)).max() == 1
    with pytest.raises(UnavailableError) as caught:
        backend.detector()
    assert caught.value.code == "no_detector"
    assert "there is no hand_detector" in (await backend.not_ready() or "")


async def test_newest_version_that_can_be_served_is_and_the_bad_ones_are_named(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(repository, "standard", version=3, changes={"stride": 4})
    write_card(repository, "standard", version=4)

    class FourthIsBroken(Models):
        def __call__(self, servable: Servable) -> Run:
            if servable.card.version == 4:
                raise ServableError(f"{servable.folder}: not a SavedModel that loads")
            return super().__call__(servable)

    backend = await loaded(FourthIsBroken(), repository)

    assert [each.version for each in backend.models() if each.variant == "standard"] == [1, 2]
    assert backend.resolve(ModelReference("standard", label="stable")).version == 2
    assert await backend.not_ready() is None
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert "cpm_standard version 4 cannot be served: " in said[0]
    assert "cpm_standard version 3 cannot be served: " in said[1]
    assert "stride" in said[1]


async def test_model_of_which_nothing_can_be_served_keeps_no_other_from_being_served(repository: Path) -> None:
    write_detector_card(repository, version=4, changes={"columns": ["x", "y"]})

    class NoDetector(Models):
        def __call__(self, servable: Servable) -> Run:
            if servable.card.name == "hand_detector":
                raise MemoryError
            return super().__call__(servable)

    backend = await loaded(NoDetector(), repository)

    assert {each.name for each in backend.models()} == {"cpm_standard", "cpm_lightweight"}
    reason = await backend.not_ready() or ""
    assert "no version of hand_detector can be served" in reason
    assert "columns" in reason


async def test_model_that_answers_in_another_shape_is_not_served(repository: Path) -> None:
    def narrow(servable: Servable) -> Run:
        return lambda images: np.zeros((len(images), 16, 6), np.float32)

    backend = EmbeddedBackend(open_servable=narrow, inference=InlineExecutor())
    with pytest.raises(ServableError, match=r"answers with float32 \(1, 16, 6\), expected float32 \(1, 16, 16, 22\)"):
        await backend.load(version_folders(repository))


async def test_version_that_is_not_served_is_not_run(repository: Path) -> None:
    backend = await loaded(Models(), repository)
    with pytest.raises(UnavailableError):  # it was there when the request was routed: routed again, it has an answer
        await backend.predict(served_model("standard", version=9), crops(1), timeout_s=1)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (MemoryError(), UnavailableError),
        (ValueError("shapes"), InternalError),
        (UnavailableError("no memory on the device"), UnavailableError),
    ],
)
async def test_failures_of_a_model_become_errors_of_the_tree_with_their_cause(
    repository: Path, failure: Exception, expected: type[ServiceError]
) -> None:
    models = Models()
    backend = await loaded(models, repository)
    models.failure = failure
    with pytest.raises(expected) as caught:
        await backend.predict(backend.resolve(ModelReference("standard")), crops(1), timeout_s=1)
    assert failure in (caught.value, caught.value.__cause__)


async def test_servable_that_cannot_be_opened_stops_the_start(repository: Path) -> None:
    def broken(servable: Servable) -> Run:
        raise ServableError(f"{servable} is broken")

    backend = EmbeddedBackend(open_servable=broken, inference=InlineExecutor())
    with pytest.raises(ServableError, match="cpm_lightweight version 5 is broken"):
        await backend.load(version_folders(repository))
    assert await backend.not_ready() is not None


class SlowModels(Models):
    """Models whose every run waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.running = threading.Event()
        self.may_finish = threading.Event()

    def __call__(self, servable: Servable) -> Run:
        run = super().__call__(servable)

        def slow(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.running.set()
            assert self.may_finish.wait(20)
            return run(batch)

        return slow


@pytest.fixture
def inference() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


async def test_while_models_load_the_loop_runs_and_requests_are_told_to_wait(
    repository: Path, inference: ThreadPoolExecutor
) -> None:
    models = SlowModels()
    backend = EmbeddedBackend(open_servable=models, inference=inference)
    loading = asyncio.ensure_future(backend.load(version_folders(repository)))
    await asyncio.to_thread(models.running.wait, 20)
    assert await backend.not_ready() == "loading cpm_lightweight version 5"
    with pytest.raises(UnavailableError) as caught:
        backend.resolve(ModelReference("standard"))
    assert (caught.value.code, caught.value.retry_after_s) == ("loading", 2.0)
    with pytest.raises(UnavailableError) as caught:
        backend.detector()
    assert caught.value.code == "loading"
    models.may_finish.set()
    await loading
    assert backend.resolve(ModelReference("standard")).version == 2


async def test_batch_that_takes_too_long_is_given_up_without_holding_the_loop(
    repository: Path, inference: ThreadPoolExecutor
) -> None:
    models = SlowModels()
    models.may_finish.set()
    backend = EmbeddedBackend(open_servable=models, inference=inference)
    await backend.load(version_folders(repository))
    models.may_finish.clear()
    model = backend.resolve(ModelReference("standard"))
    with pytest.raises(DeadlineExceededError):
        await backend.predict(model, crops(1), timeout_s=0.01)
    models.may_finish.set()
    assert (await backend.predict(model, crops(2), timeout_s=20)).shape[0] == 2
    await settle()
