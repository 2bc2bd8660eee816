"""The webcam on the page, fed from a rendered video: live over the stream, at the server's speed."""

import json
from typing import Any

import numpy as np
import pytest

from tests.page.browser import Page, keypoints_of

WITHIN_A_PIXEL = 1.0

_RED_CENTRE = """
const canvas = document.querySelector(".view canvas");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
let [x, y, count] = [0, 0, 0];
for (let i = 0; i < data.length; i += 4) {
  if (data[i] > 128 && data[i + 1] < 96 && data[i + 2] < 96) {
    x += (i / 4) % canvas.width + 0.5;
    y += Math.floor(i / 4 / canvas.width) + 0.5;
    count += 1;
  }
}
return count ? [x / count, y / count] : null;
"""


def start(page: Page, frames: int = 3) -> None:
    page.find("#webcam").click()
    page.wait_for(f"Number(document.querySelector('.view canvas')?.dataset.frame ?? -1) >= {frames}")


def stream_answers(page: Page) -> dict[int, dict[str, Any]]:
    """What came over the WebSocket, as the browser's network recorded it: by the number of the frame."""
    answers = {}
    for event in page.events():
        if event["method"] == "Network.webSocketFrameReceived":
            payload = event["params"]["response"]["payloadData"]
            message = json.loads(payload) if payload.startswith("{") else {}
            if "frame" in message:
                answers[message["frame"]] = message
    return answers


@pytest.mark.parametrize("mirrored", [True, False])
def test_webcam_shows_keypoints_where_the_stream_says_on_the_frame_that_it_says(page: Page, mirrored: bool) -> None:
    page.open()
    start(page)
    if not mirrored:
        page.find("#mirror").click()
    for _ in range(3):
        frame, drawn = page.drawn_frame()
        page.wait_for(f"Number(document.querySelector('.view canvas').dataset.frame) > {frame}")
        answered = keypoints_of(stream_answers(page)[frame]["result"])
        assert np.abs(drawn - answered).max() < WITHIN_A_PIXEL


def test_hand_lies_on_the_mark_that_the_camera_sees(page: Page) -> None:
    page.open()
    start(page, frames=8)
    both = page.js(
        "return [(() => {" + _RED_CENTRE + "})(), [...document.querySelectorAll('.keypoint')]"
        ".map((c) => [c.cx.baseVal.value, c.cy.baseVal.value])]"
    )
    centre, points = np.array(both[0]), np.array(both[1])
    # The filter lags a little behind a mark that moves, and the input has a fifth of the resolution.
    assert np.abs(points.mean(axis=0) - centre).max() < 10
    assert 300 < centre[0] < 400


def test_hand_is_followed_and_the_gauges_say_so(page: Page) -> None:
    page.open()
    start(page)
    page.wait_until(lambda: page.text("[data-gauge=hand]").startswith("followed"))
    page.wait_for("document.querySelector('.view .tracked')")
    page.wait_until(lambda: float(page.text("[data-gauge=fps]")) > 1)
    assert page.text("[data-gauge=latency]").endswith("ms (median)")
    page.wait_for("document.querySelector('.sparkline .line').points.length > 3")


def test_slow_server_gets_the_latest_frame_and_the_others_are_counted_as_dropped(page: Page) -> None:
    page.open()
    start(page)
    page.served.do(lambda backend: backend.hold())
    before = page.drawn_frame()[0]
    page.js("window.before = performance.now()")
    page.wait_for("performance.now() - window.before > 1200")
    page.served.do(lambda backend: backend.release())
    page.wait_for(f"Number(document.querySelector('.view canvas').dataset.frame) > {before + 4}")
    page.wait_until(lambda: int(page.text("[data-gauge=dropped]").split(" of ")[0]) > 5)
    answers = stream_answers(page)
    assert any(answer["skipped"] > 0 for answer in answers.values())
    assert not page.find("#notice").is_displayed()


def test_box_drawn_live_starts_tracking_afresh_from_it(page: Page) -> None:
    page.open()
    start(page)
    page.find("#add-box").click()
    expected = {"x": 160.0, "y": 120.0, "width": 320.0, "height": 240.0}
    page.wait_until(
        lambda: any(each["result"]["hands"][0]["box"] == expected for each in stream_answers(page).values())
    )


def test_both_models_run_live_side_by_side(page: Page) -> None:
    page.open()
    start(page)
    page.choose_model("both")
    page.wait_for(
        "['lightweight', 'standard'].every((each) =>"
        " document.querySelector(`.view[data-model=${each}] canvas`)?.dataset.frame >= 2)"
    )
    assert len(page.driver.find_elements("css selector", ".gauges")) == 2


def test_stream_goes_on_when_the_server_is_back(page: Page) -> None:
    page.expects_network_errors = True
    page.open()
    start(page)
    page.served.stop()
    page.wait_until(lambda: "connects again by itself" in page.text("#notice"))
    before = page.drawn_frame()[0]
    page.served.start()
    page.wait_for(f"Number(document.querySelector('.view canvas').dataset.frame) > {before + 2}")
    assert not page.find("#notice").is_displayed()


def test_frame_can_be_kept_as_a_picture_and_the_camera_stops(page: Page) -> None:
    page.open()
    start(page)
    page.find("#keep").click()
    page.wait_for("document.querySelector('.view img')")
    page.wait_for_answer()
    assert page.text("#webcam") == "Use the webcam"
    assert not page.find("#live").is_displayed()
    assert page.js("return document.querySelector('.view img').naturalWidth") == 640


def test_stopping_the_webcam_ends_the_stream(page: Page) -> None:
    page.open()
    start(page)
    page.find("#webcam").click()
    page.wait_until(lambda: any(event["method"] == "Network.webSocketClosed" for event in page.events()))
    assert page.find("#drop").is_displayed()
