"""What holds for the page as a whole: accessible, light, still where motion is unwelcome, fitting every screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.page.browser import DESKTOP, PHONE, Page
from tests.support.images import image_bytes, marked_picture

AXE: Final = Path(__file__).with_name("node_modules") / "axe-core" / "axe.min.js"
FIRST_PAINT_LIMIT: Final = 100_000
PICTURE: Final = image_bytes(marked_picture(640, 480, (200, 100, 380, 260)))


def empty(page: Page) -> None:
    assert page.find("#drop").is_displayed()


def one_answer(page: Page) -> None:
    path = page.folder / "hand.png"
    path.write_bytes(PICTURE)
    page.choose_file(path)
    page.wait_for_answer()
    page.find("#points summary").click()
    page.find("#answer summary").click()


def side_by_side_with_a_box(page: Page) -> None:
    one_answer(page)
    page.choose_model("both")
    page.wait_for("!document.getElementById('apart').hidden")
    page.find("#add-box").click()
    page.wait_for(
        "document.querySelectorAll('#boxes .box').length === 1 && !document.querySelector('#views[aria-busy]')"
    )


def problem(page: Page) -> None:
    page.expects_network_errors = True
    path = page.folder / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff nothing else")
    page.choose_file(path)
    page.wait_until(lambda: page.find("#notice").is_displayed())


def live(page: Page) -> None:
    page.find("#webcam").click()
    page.wait_for("Number(document.querySelector('.view canvas')?.dataset.frame ?? -1) >= 3")
    page.wait_until(lambda: float(page.text("[data-gauge=fps]").replace("–", "0")) > 0)


STATES: Final[tuple[Callable[[Page], None], ...]] = (empty, one_answer, side_by_side_with_a_box, problem, live)


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; tests/install_tools.sh installs it")
@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, True)], ids=["desktop light", "phone dark"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing_to_complain_about(
    page: Page, state: Callable[[Page], None], size: tuple[int, int], dark: bool
) -> None:
    page.open(size, dark=dark)
    state(page)
    page.js(AXE.read_text("utf-8"))
    found: dict[str, Any] = page.driver.execute_async_script(
        "axe.run(document, { resultTypes: ['violations'] }).then(arguments[0])"
    )
    assert len(found["passes"]) > 10
    told = [f"{each['id']}: {each['help']}: {[n['html'][:200] for n in each['nodes']]}" for each in found["violations"]]
    assert not told


def test_nothing_is_wider_than_a_small_phone(page: Page) -> None:
    page.open(PHONE)
    page.cdp("Emulation.setDeviceMetricsOverride", width=340, height=700, deviceScaleFactor=1, mobile=True)
    for state in (empty, side_by_side_with_a_box, problem, live):
        state(page)
        assert page.js("return document.scrollingElement.scrollWidth") <= 340, state.__name__


def test_first_paint_takes_less_than_100_kb(page: Page) -> None:
    page.cdp("Network.clearBrowserCache")
    page.open()
    kinds, sizes = {}, {}
    for event in page.events():
        if event["method"] == "Network.responseReceived":
            kinds[event["params"]["requestId"]] = event["params"]["type"]
        elif event["method"] == "Network.loadingFinished":
            sizes[event["params"]["requestId"]] = event["params"]["encodedDataLength"]
    loaded = {request: size for request, size in sizes.items() if kinds.get(request) != "Image"}
    assert len(loaded) >= 9  # the page, its style, its modules
    assert 50_000 < sum(loaded.values()) < FIRST_PAINT_LIMIT


def test_nothing_moves_where_motion_is_unwelcome(page: Page) -> None:
    page.open(reduced_motion=True)
    path = page.folder / "hand.png"
    path.write_bytes(PICTURE)
    page.served.do(lambda backend: backend.hold())
    page.choose_file(path)
    page.wait_for("document.querySelector('#views[aria-busy]')")
    moving = page.js("return document.getAnimations().length")
    page.served.do(lambda backend: backend.release())
    page.wait_for_answer()
    assert moving == 0


def test_page_without_a_camera_says_so_in_words(page: Page) -> None:
    page.open()
    page.js("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.find("#webcam").click()
    page.wait_until(lambda: "https" in page.text("#notice"))
