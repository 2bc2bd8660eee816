"""One browser and one gateway for all tests of the page; every test gets the page afresh and watched.

Whatever a test does, afterwards the console must be empty and no request may have left the gateway's origin.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from tests.page.browser import Page, missing, start_chromium
from tests.page.served import Served
from tests.support.images import marked_picture

CAMERA_SIZE = (640, 480)
_FRAMES = 40


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered video for the camera: MJPEG, a red mark that drifts to the right and back."""
    path = tmp_path_factory.mktemp("camera") / "drifting.mjpeg"
    with path.open("wb") as file:
        for index in range(_FRAMES):
            left = 220 + min(index, _FRAMES - index) // 2
            buffer = io.BytesIO()
            frame: Image.Image = marked_picture(*CAMERA_SIZE, (left, 160, left + 170, 330))
            frame.save(buffer, "JPEG", quality=95)
            file.write(buffer.getvalue())
    return path


@pytest.fixture(scope="session")
def chromium(camera: Path) -> Iterator[webdriver.Chrome]:
    if (why := missing()) is not None:
        pytest.skip(why)
    driver = start_chromium(camera)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@pytest.fixture
def page(chromium: webdriver.Chrome, served: Served, tmp_path: Path) -> Iterator[Page]:
    page = Page(chromium, served, tmp_path)
    page.complaints()  # what is left of the test before
    page.events().clear()
    yield page
    addresses, complaints = page.addresses(), page.complaints()
    chromium.get("about:blank")
    elsewhere = {each for each in addresses if not each.startswith(_own_addresses(served))}
    assert not elsewhere
    assert not complaints


def _own_addresses(served: Served) -> tuple[str, ...]:
    return (f"{served.url}/", f"{served.url.replace('http', 'ws', 1)}/", f"blob:{served.url}/")
