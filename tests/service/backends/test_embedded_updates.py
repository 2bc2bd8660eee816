"""New versions in the model repository are taken in while requests are answered, and old ones let go."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import EmbeddedBackend, Run
from service.backends.repository import Servable, ServableError, version_folders
from service.inference.errors import ServiceError, UnavailableError, UnknownModelError
from service.inference.models import ModelReference, served
from tests.support.clock import settle
from tests.support.executor import InlineExecutor
from tests.support.models import INPUT_SIZE
from tests.support.servables import write_card, write_detector_card

LIGHTWEIGHT = ModelReference("lightweight")
CROPS = [np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)]


class Opener:
    """Opens servables as functions that answer with their version; some do not open."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.broken: set[int] = set()
        self.failure: ServiceError | None = None

    def __call__(self, servable: Servable) -> Run:
        if servable.card.version in self.broken:
            raise ServableError(f"{servable} is broken")
        if self.failure is not None:
            raise self.failure
        self.opened.append(str(servable))

        def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.full((len(crops), *served(servable.card, ()).output_shape), servable.card.version, np.float32)

        return run


async def up(opener: Opener, root: Path, *, versions: int = 1, linger_s: float = 60.0) -> EmbeddedBackend:
    backend = EmbeddedBackend(open_servable=opener, inference=InlineExecutor(), versions=versions, linger_s=linger_s)
    await backend.load(version_folders(root))
    return backend


async def test_a_newer_version_takes_over_and_nothing_is_opened_twice(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    write_card(tmp_path, "standard", version=1)
    opener = Opener()
    backend = await up(opener, tmp_path)

    write_card(tmp_path, "lightweight", version=2)
    await backend.load(version_folders(tmp_path))

    assert backend.resolve(LIGHTWEIGHT).version == 2
    assert [(each.variant, each.version, each.labels) for each in backend.models()] == [
        ("lightweight", 2, ("stable",)),
        ("standard", 1, ("stable",)),
    ]
    assert opener.opened == ["cpm_lightweight version 1", "cpm_standard version 1", "cpm_lightweight version 2"]
    with pytest.raises(UnknownModelError):
        backend.resolve(ModelReference("lightweight", version=1))


async def test_the_label_moves_when_the_version_before_stays(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    backend = await up(Opener(), tmp_path, versions=2)

    write_card(tmp_path, "lightweight", version=2)
    await backend.load(version_folders(tmp_path))

    assert {each.version: each.labels for each in backend.models()} == {1: (), 2: ("stable",)}


async def test_a_request_that_was_routed_to_the_old_version_is_still_answered_by_it(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    backend = await up(Opener(), tmp_path)
    routed = backend.resolve(LIGHTWEIGHT)

    write_card(tmp_path, "lightweight", version=2)
    await backend.load(version_folders(tmp_path))

    assert (await backend.predict(routed, CROPS, timeout_s=1)).max() == 1


async def test_an_old_version_is_let_go_after_a_while(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    backend = await up(Opener(), tmp_path, linger_s=0.0)
    routed = backend.resolve(LIGHTWEIGHT)

    write_card(tmp_path, "lightweight", version=2)
    await backend.load(version_folders(tmp_path))
    await settle()

    with pytest.raises(UnavailableError) as caught:  # routed again, the same request has an answer
        await backend.predict(routed, CROPS, timeout_s=1)
    assert caught.value.retry_after_s is not None


async def test_a_version_that_does_not_open_leaves_everything_as_it_was(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    opener = Opener()
    backend = await up(opener, tmp_path)

    opener.broken.add(2)
    write_card(tmp_path, "lightweight", version=2)
    assert not await backend.load(version_folders(tmp_path))

    model = backend.resolve(LIGHTWEIGHT)
    assert (model.version, model.labels) == (1, ("stable",))
    assert (await backend.predict(model, CROPS, timeout_s=1)).max() == 1


async def test_a_newer_detector_takes_over(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight")
    backend = await up(Opener(), tmp_path)
    assert await backend.not_ready() is not None

    for version in (1, 2):
        write_detector_card(tmp_path, version=version)
        assert await backend.load(version_folders(tmp_path))
        assert backend.detector().version == version
        assert await backend.not_ready() is None


async def test_a_version_that_does_not_open_is_said_once_and_tried_again_when_its_folder_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(tmp_path, "lightweight")
    write_detector_card(tmp_path, version=1)
    opener = Opener()
    backend = await up(opener, tmp_path)
    opener.broken.add(2)
    folder = write_detector_card(tmp_path, version=2)
    for _ in range(3):
        await backend.load(version_folders(tmp_path))
    assert backend.detector().version == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "hand_detector version 2 cannot be served: hand_detector version 2 is broken"
    ]

    opener.broken.clear()
    await backend.load(version_folders(tmp_path))
    assert backend.detector().version == 1, "nothing has changed in its folder"
    (folder / "saved_model.pb").write_bytes(b"repaired")
    assert await backend.load(version_folders(tmp_path))
    assert backend.detector().version == 2


async def test_a_failure_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight")
    opener = Opener()
    backend = await up(opener, tmp_path)
    opener.failure = UnavailableError("out of memory")
    write_detector_card(tmp_path)
    await backend.load(version_folders(tmp_path))
    assert "out of memory" in (await backend.not_ready() or "")

    opener.failure = None
    await backend.load(version_folders(tmp_path))
    assert await backend.not_ready() is None


async def test_what_is_served_stays_when_no_version_on_disk_can_be(tmp_path: Path) -> None:
    old = write_card(tmp_path, "lightweight", version=1)
    opener = Opener()
    backend = await up(opener, tmp_path)
    opener.broken.add(2)
    write_card(tmp_path, "lightweight", version=2)
    shutil.rmtree(old)

    assert not await backend.load(version_folders(tmp_path))
    assert backend.resolve(LIGHTWEIGHT).version == 1


async def test_the_service_is_ready_and_answers_while_a_version_loads(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight", version=1)
    write_detector_card(tmp_path)
    opener = Opener()
    backend = await up(opener, tmp_path)

    write_card(tmp_path, "lightweight", version=2)
    loading = asyncio.ensure_future(backend.load(version_folders(tmp_path)))
    await asyncio.sleep(0)
    assert await backend.not_ready() is None
    assert backend.resolve(LIGHTWEIGHT).version == 1
    await loading
    assert backend.resolve(LIGHTWEIGHT).version == 2
