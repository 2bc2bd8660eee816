"""Pictures, a model repository and a job for the tests of offline work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import Settings
from tests.support.images import image_bytes, marked_picture
from tests.support.servables import write_card, write_detector_card


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a service whose repository holds cards only."""
    for variant in ("standard", "lightweight"):
        write_card(tmp_path / "models", variant, version=1)
    write_detector_card(tmp_path / "models")
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
