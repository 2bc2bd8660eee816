"""Chromium, and the page in it as the tests speak of it. Everything that a person does is done with real input."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.page.served import Served

DESKTOP: Final = (1280, 900)
PHONE: Final = (390, 844)

_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
_PATIENCE_S: Final = 20.0

_DRAWN_KEYPOINTS: Final = """
const view = document.querySelector(`.view[data-model="${arguments[0]}"]`);
const media = view.querySelector("img, canvas");
const frame = media.getBoundingClientRect();
const { width, height } = view.querySelector("svg").viewBox.baseVal;
const mirrored = view.querySelector(".stage").classList.contains("mirrored");
const hands = [...view.querySelectorAll(".hand")].map((hand) =>
  [...hand.querySelectorAll(".keypoint")].map((circle) => {
    const box = circle.getBoundingClientRect();
    const across = ((box.left + box.right) / 2 - frame.left) / frame.width;
    return [(mirrored ? 1 - across : across) * width, ((box.top + box.bottom) / 2 - frame.top) / frame.height * height];
  }));
return { hands, frame: media.dataset.frame ?? null };
"""
"""Where the circles are on the screen, measured against the picture on the screen, in pixels of the image."""


def missing() -> str | None:
    """Why no browser can be started here, or None."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return "Chromium and its driver are not installed; as root, tests/install_tools.sh installs them"
    return None


def start_chromium(camera: Path) -> webdriver.Chrome:
    """A browser of its own, whose camera shows this file (MJPEG or Y4M) in a loop."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tempfile.mkdtemp(prefix="handpose-chromium-", dir=camera.parent)
    for flag in (*_FLAGS, f"--use-file-for-fake-video-capture={camera}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))


class Page:
    """The gateway's page in a browser."""

    def __init__(self, driver: webdriver.Chrome, served: Served, folder: Path) -> None:
        self.driver = driver
        self.served = served
        self.folder = folder
        self.expects_network_errors = False
        self._events: list[dict[str, Any]] = []

    # Setting up

    def open(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False, reduced_motion: bool = False) -> None:
        """Load the page afresh at this size; the phone has a touch screen."""
        phone = size == PHONE
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme, motion])
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.folder))
        self.driver.get(f"{self.served.url}/")
        self.wait_for("document.getElementById('server').dataset.state === 'ready'")

    def cdp(self, command: str, **arguments: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    # Looking

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, expression: str) -> Any:
        """Return the expression's value once it is true."""
        waiting = WebDriverWait(self.driver, _PATIENCE_S, poll_frequency=0.05)
        return waiting.until(lambda _: self.js(f"return {expression}"), f"never true: {expression}")

    def wait_until(self, condition: Callable[[], object]) -> Any:
        """The same for a condition in Python."""
        return WebDriverWait(self.driver, _PATIENCE_S, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What can be read there; nothing while it is hidden."""
        return self.find(selector).text

    def drawn(self, variant: str = "lightweight") -> NDArray[np.float64]:
        """Keypoints as they are drawn: [hands, 21, 2], (x, y) in pixels of the image."""
        return np.array(self.js(_DRAWN_KEYPOINTS, variant)["hands"], np.float64)

    def drawn_frame(self, variant: str = "lightweight") -> tuple[int, NDArray[np.float64]]:
        """The number of the live frame that is shown, and the keypoints drawn on it."""
        shown = self.js(_DRAWN_KEYPOINTS, variant)
        return int(shown["frame"]), np.array(shown["hands"], np.float64)

    def shown_answer(self) -> dict[str, Any]:
        """The JSON on the page."""
        shown: dict[str, Any] = json.loads(self.js("return document.getElementById('json').textContent"))
        return shown

    def wait_for_answer(self, hands: int = 1) -> None:
        """Return once nothing is being asked and this many hands are drawn."""
        busy, drawn = "#views[aria-busy]", "#views .view:first-child .hand"
        self.wait_for(
            "!document.getElementById('result').hidden"
            f" && !document.querySelector('{busy}') && document.querySelectorAll('{drawn}').length === {hands}"
        )

    # Doing

    def choose_file(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))

    def choose_model(self, name: str) -> None:
        self.find(f"#models input[value={name}]").click()

    # What the browser says of itself

    def events(self) -> list[dict[str, Any]]:
        """Everything that the browser's network did since the page's fixture began: {"method", "params"}."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        self._events += [json.loads(each["message"])["message"] for each in entries]
        return self._events

    def addresses(self) -> set[str]:
        """Where requests and WebSockets went, but for data URIs and the browser's own pages: those need no network."""
        found = set()
        for event in self.events():
            if event["method"] == "Network.requestWillBeSent":
                found.add(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                found.add(event["params"]["url"])
        return {each for each in found if not each.startswith(("chrome:", "data:"))}

    def complaints(self) -> list[str]:
        """What is in the console; where the test expects them, without answers that were errors."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [
            each["message"] for each in entries if not (self.expects_network_errors and each["source"] == "network")
        ]


def keypoints_of(answer: dict[str, Any]) -> NDArray[np.float64]:
    """[hands, 21, 2] of an answer of the API."""
    return np.array([[(p["x"], p["y"]) for p in hand["keypoints"]] for hand in answer["hands"]], np.float64)
