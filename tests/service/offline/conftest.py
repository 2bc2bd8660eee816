"""Pictures, a model repository and a job for the tests of offline work."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.support.images import image_bytes, marked_picture
from tests.support.servables import write_card


class _WithoutRay(pytest.Module):
    """A module that cannot be imported, and says why."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip("offline jobs need the extra ray", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if importlib.util.find_spec("ray") is not None and importlib.util.find_spec("pyarrow") is not None:
        return None
    module: pytest.Module = _WithoutRay.from_parent(parent, path=module_path)
    return module


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a service whose repository holds cards only."""
    for variant in ("standard", "lightweight"):
        write_card(tmp_path / "models", variant, version=1)
    return Settings.from_environment({"HANDPOSE_MODEL_REPO": str(tmp_path / "models"), "HANDPOSE_WORKER_THREADS": "1"})


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder with this many pictures, 000.png and so on, each marked in another place."""

    def make(number: int) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for index in range(number):
            left, top = 4 + 5 * (index % 10), 4 + 3 * (index % 7)
            mark = marked_picture(80, 60, (left, top, left + 12, top + 10))
            (folder / f"{index:03}.png").write_bytes(image_bytes(mark))
        return folder

    return make
