"""A picture on the page: every way to give one, and what is drawn on it."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from service.inference.errors import OverloadedError
from service.inference.models import Variant
from service.pose.drawing import FINGER_COLOURS
from service.pose.keypoints import finger_of
from tests.page.browser import DESKTOP, PHONE, Page, keypoints_of
from tests.support.images import image_bytes, marked_picture

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN_A_PIXEL = 1.0

WIDE = image_bytes(marked_picture(640, 480, (200, 100, 380, 260)))
TALL = image_bytes(marked_picture(300, 700, (60, 300, 200, 480)), "JPEG")
LYING = image_bytes(marked_picture(400, 300, (40, 60, 160, 200)), "JPEG", orientation=6)


def as_file(folder: Path, content: bytes, name: str = "hand.png") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def assert_drawn_as_answered(
    page: Page, image: bytes, variant: Variant = "lightweight", rois: tuple[str, ...] = ()
) -> None:
    answered = keypoints_of(page.served.answer(image, variant, rois))
    drawn = page.drawn(variant)
    assert drawn.shape == answered.shape
    assert np.abs(drawn - answered).max() < WITHIN_A_PIXEL


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("image", [WIDE, TALL, LYING], ids=["wide", "tall", "turned by EXIF"])
def test_uploaded_picture_shows_keypoints_where_the_api_says(page: Page, image: bytes, size: tuple[int, int]) -> None:
    page.open(size)
    page.choose_file(as_file(page.folder, image))
    page.wait_for_answer()
    assert_drawn_as_answered(page, image)


def test_skeleton_is_painted_in_the_colours_of_the_fingers(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.find("#uncertainty").click()
    picture = page.find(".view img").rect
    screen = Image.open(io.BytesIO(page.find(".stage").screenshot_as_png)).convert("RGB")
    hand = page.served.answer(WIDE)["hands"][0]
    for point in hand["keypoints"]:
        assert point["score"] > 0.9
        at = (point["x"] * picture["width"] / 640, point["y"] * picture["height"] / 480)
        colour = np.array(screen.getpixel((int(at[0]), int(at[1]))), int)
        assert np.abs(colour - FINGER_COLOURS[finger_of(point["id"])]).max() < 40, point["name"]


def test_pasted_picture_is_looked_at(page: Page) -> None:
    page.open()
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.cdp("Browser.grantPermissions", origin=page.served.url, permissions=permissions)
    page.driver.execute_async_script(
        """const [bytes, done] = arguments;
        const blob = new Blob([Uint8Array.from(bytes)], { type: "image/png" });
        navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]).then(() => done());""",
        list(WIDE),
    )
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    page.wait_for_answer()
    assert_drawn_as_answered(page, WIDE)


def test_dropped_picture_is_looked_at(page: Page) -> None:
    page.open()
    data = {"items": [], "files": [str(as_file(page.folder, TALL, "tall.jpg"))], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.cdp("Input.dispatchDragEvent", type=kind, x=400, y=400, data=data)
    page.wait_for_answer()
    assert_drawn_as_answered(page, TALL)


def test_every_sample_is_there_and_looked_at(page: Page) -> None:
    page.open()
    names = page.js("return [...document.querySelectorAll('.sample')].map((each) => each.dataset.name)")
    assert len(names) >= 4
    for name in names:
        page.find(f".sample[data-name='{name}']").click()
        page.wait_for(f"document.querySelector('.view img')?.alt.includes('{name}')")
        page.wait_for_answer()
        image = httpx.get(f"{page.served.url}/static/{name}").content
        assert_drawn_as_answered(page, image)


def test_newest_picture_wins(page: Page) -> None:
    page.open()
    page.served.do(lambda backend: backend.hold())
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for("document.querySelector('#views[aria-busy]')")
    page.choose_file(as_file(page.folder, TALL, "tall.jpg"))
    page.wait_for("document.querySelector('.view img').alt.includes('tall.jpg')")
    page.served.do(lambda backend: backend.release())
    page.wait_for_answer()
    assert_drawn_as_answered(page, TALL)
    assert not page.find("#notice").is_displayed()


def test_choosing_the_other_model_asks_it(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.choose_model("standard")
    page.wait_for("document.querySelector('#summary [data-model=standard]')")
    page.wait_for_answer()
    assert page.shown_answer()["model"]["variant"] == "standard"
    assert_drawn_as_answered(page, WIDE, "standard")


def test_side_by_side_shows_both_models_their_distance_and_times(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.choose_model("both")
    page.wait_for("!document.getElementById('apart').hidden")
    assert_drawn_as_answered(page, WIDE, "lightweight")
    assert_drawn_as_answered(page, WIDE, "standard")
    answers = [keypoints_of(page.served.answer(WIDE, variant)) for variant in ("lightweight", "standard")]
    apart = np.linalg.norm(answers[0] - answers[1], axis=-1)
    assert apart.mean() > 10  # the fake models were told to differ
    assert page.text("#distance") == f"{apart.mean():.1f} px"
    for variant, answer in page.shown_answer().items():
        widths = page.js(
            "return [...document.querySelectorAll(`.latency[data-model=${arguments[0]}] .bar span`)]"
            ".map((part) => part.getBoundingClientRect().width)",
            variant,
        )
        assert len(widths) == 6
        stages = [answer["timings_ms"][stage] for stage in ("decode", "detection", "queue", "inference", "postprocess")]
        assert np.allclose(np.array(widths[:5]) / sum(widths[:5]), np.array(stages) / sum(stages), atol=0.03)


def test_pointer_over_a_keypoint_names_it(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    tip = page.find(".keypoint[data-id='8']")
    ActionChains(page.driver).move_to_element(tip).perform()
    shown = page.wait_until(lambda: page.text(".tip"))
    point = page.served.answer(WIDE)["hands"][0]["keypoints"][8]
    assert shown.splitlines()[:2] == ["index tip", f"x {point['x']:.1f}, y {point['y']:.1f}"]
    ActionChains(page.driver).move_to_element(page.find("h1")).perform()
    page.wait_until(lambda: not page.find(".tip").is_displayed())


def test_arrow_keys_step_through_the_keypoints(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.js("document.querySelector('.hand').focus()")
    keys = ActionChains(page.driver)
    for key, name in ((Keys.ARROW_RIGHT, "wrist"), (Keys.ARROW_RIGHT, "thumb CMC"), (Keys.ARROW_LEFT, "wrist")):
        keys.send_keys(key).perform()
        assert page.text(".tip").splitlines()[0] == name
        assert page.js("return document.getElementById('spoken').textContent").startswith(f"{name}, x ")


def draw_box(page: Page) -> None:
    """Draw a box with the mouse: from a quarter to three quarters across, from an eighth to five eighths down."""
    stage = page.find(".stage")
    rect = stage.rect
    left, top, right, bottom = 0.25, 0.125, 0.75, 0.625
    start = (round((left - 0.5) * rect["width"]), round((top - 0.5) * rect["height"]))
    end = (round((right - left) * rect["width"]), round((bottom - top) * rect["height"]))
    mouse = ActionChains(page.driver, duration=50)
    mouse.move_to_element_with_offset(stage, *start).click_and_hold().move_by_offset(*end).release().perform()


def rois_shown(page: Page) -> tuple[str, ...]:
    numbers = page.js(
        "return [...document.querySelectorAll('#boxes .box')]"
        ".map((item) => [...item.querySelectorAll('input')].map((input) => input.value).join(','))"
    )
    return tuple(numbers)


def test_box_drawn_with_the_mouse_becomes_the_region_that_is_asked_about(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    draw_box(page)
    page.wait_for("document.querySelectorAll('#boxes .box').length === 1")
    (roi,) = rois_shown(page)
    assert np.allclose([float(each) for each in roi.split(",")], (160, 60, 320, 240), atol=2)
    box = roi_of_answer(page, roi)
    assert box == [float(each) for each in roi.split(",")]
    assert_drawn_as_answered(page, WIDE, rois=(roi,))


def roi_of_answer(page: Page, roi: str) -> list[float]:
    """The box in the answer on the page, once it is about this roi."""

    def box() -> list[float] | None:
        found = page.shown_answer()["hands"][0]["box"]
        numbers = [found["x"], found["y"], found["width"], found["height"]]
        return numbers if numbers == [float(each) for each in roi.split(",")] else None

    result: list[float] = page.wait_until(box)
    page.wait_for("!document.querySelector('#views[aria-busy]')")
    return result


def test_two_boxes_give_two_hands_and_removing_them_gives_the_whole_picture(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    draw_box(page)
    page.wait_for("document.querySelectorAll('#boxes .box').length === 1")
    page.find("#add-box").click()
    page.wait_for_answer(hands=2)
    assert_drawn_as_answered(page, WIDE, rois=rois_shown(page))
    page.find("#clear-boxes").click()
    page.wait_for_answer(hands=1)
    assert rois_shown(page) == ()
    assert_drawn_as_answered(page, WIDE)


def test_box_can_be_drawn_with_the_keyboard_alone(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.js("document.getElementById('add-box').focus()")
    keys = ActionChains(page.driver)
    keys.send_keys(Keys.ENTER).perform()
    page.wait_until(lambda: rois_shown(page) == ("160,120,320,240",))
    # The focus is on x; up arrows count, and Tab leads on to y.
    keys.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.TAB).perform()
    page.wait_until(lambda: rois_shown(page) == ("162,120,320,240",))
    roi_of_answer(page, "162,120,320,240")
    assert_drawn_as_answered(page, WIDE, rois=("162,120,320,240",))


def test_finger_draws_a_box_once_drawing_is_switched_on_and_scrolls_before(page: Page) -> None:
    page.open(PHONE)
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()

    def swipe() -> None:
        page.js("document.querySelector('.stage').scrollIntoView({ block: 'center' })")
        frame = page.js(
            "const r = document.querySelector('.stage').getBoundingClientRect(); return [r.x, r.y, r.width]"
        )
        left, top = frame[0] + frame[2] * 0.25, frame[1] + frame[2] * 0.125
        page.cdp("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": left, "y": top}])
        for step in (20, 60, 100):
            points = [{"x": left + step, "y": top + step}]
            page.cdp("Input.dispatchTouchEvent", type="touchMove", touchPoints=points)
        page.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    swipe()
    assert rois_shown(page) == ()
    page.find("#draw").click()
    swipe()
    page.wait_until(lambda: len(rois_shown(page)) == 1)
    (roi,) = rois_shown(page)
    scale = 640 / page.find(".stage").rect["width"]
    expected = (160, 80, 100 * scale, 100 * scale)
    assert np.allclose([float(each) for each in roi.split(",")], expected, atol=3)
    roi_of_answer(page, roi)
    assert_drawn_as_answered(page, WIDE, rois=(roi,))


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [("broken.jpg", TALL[: len(TALL) // 2], 422), ("paper.pdf", b"%PDF-1.7 and so on", 415)],
)
def test_broken_file_is_told_in_the_services_words_and_the_next_picture_clears_it(
    page: Page, name: str, content: bytes, status: int
) -> None:
    page.expects_network_errors = True
    page.open()
    page.choose_file(as_file(page.folder, content, name))
    page.wait_until(lambda: page.find("#notice").is_displayed())
    problem = page.served.answer(content)
    assert problem["status"] == status
    told = page.text("#notice")
    assert problem["title"] in told
    assert problem["detail"][1:] in told
    assert not page.driver.find_elements("css selector", ".hand")
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    assert not page.find("#notice").is_displayed()
    assert_drawn_as_answered(page, WIDE)


def test_busy_service_is_asked_again_when_it_said(page: Page) -> None:
    page.expects_network_errors = True
    page.open()

    def fail(failure: OverloadedError | None) -> None:
        page.served.do(lambda backend: setattr(backend, "failure", failure))

    fail(OverloadedError("the queue is full", retry_after_s=0.3))
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_until(lambda: "Trying again" in page.text("#say"))
    fail(None)
    page.wait_for_answer()
    assert_drawn_as_answered(page, WIDE)


def test_picture_given_while_the_server_is_away_is_answered_when_it_is_back(page: Page) -> None:
    page.expects_network_errors = True
    page.open()
    page.choose_file(as_file(page.folder, WIDE))
    page.wait_for_answer()
    page.served.stop()
    page.choose_file(as_file(page.folder, TALL, "tall.jpg"))
    page.wait_until(lambda: "does not answer" in page.text("#notice"))
    page.wait_for("document.getElementById('server').dataset.state === 'gone'")
    page.served.start()
    page.wait_for("document.querySelector('.view img')?.alt.includes('tall.jpg')")
    page.wait_for_answer()
    page.wait_for("document.getElementById('server').dataset.state === 'ready'")
    assert not page.find("#notice").is_displayed()
    assert_drawn_as_answered(page, TALL)


def run(command: list[str], folder: Path) -> str:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def curl_answers(text: str, folder: Path) -> list[list[float]]:
    output, answers = run(["bash", "-c", text], folder), []
    while output := output.strip():
        answer, end = json.JSONDecoder().raw_decode(output)
        answers.append([point[axis] for hand in answer["hands"] for point in hand["keypoints"] for axis in "xy"])
        output = output[end:]
    return answers


def test_code_works_when_it_is_pasted(page: Page) -> None:
    page.open()
    awkward = as_file(page.folder, WIDE, 'Anna\'s "hand" $HOME ü.png')
    page.choose_file(awkward)
    page.wait_for_answer()
    page.choose_model("both")
    page.find("#add-box").click()
    page.wait_until(lambda: rois_shown(page) == ("160,120,320,240",))
    page.wait_for("!document.getElementById('apart').hidden && !document.querySelector('#views[aria-busy]')")
    page.wait_until(lambda: "roi=160,120,320,240" in page.text("#snippet"))
    expected = [
        keypoints_of(page.served.answer(WIDE, variant, ("160,120,320,240",))) for variant in ("lightweight", "standard")
    ]

    assert np.allclose(curl_answers(page.text("#snippet"), page.folder), [each.ravel() for each in expected])

    page.find("#tab-python").click()
    printed = run([sys.executable, "-c", page.text("#snippet")], page.folder).splitlines()
    numbers = [[float(part) for part in line.split()[1:3]] for line in printed if line.count(" ") == 3]
    assert np.allclose(numbers, np.concatenate(expected).reshape(-1, 2), atol=0.01)

    page.find("#tab-grpc").click()
    printed = run([sys.executable, "-c", page.text("#snippet")], page.folder).splitlines()
    found = [float(line.split(":")[1]) for line in printed if line.startswith("    x:")]  # the box's, the keypoints'
    assert np.allclose(found, [x for each in expected for x in (160.0, *each[0, :, 0])], atol=0.01)


def test_code_for_a_sample_fetches_it(page: Page) -> None:
    page.open()
    page.find(".sample[data-name='example.jpg']").click()
    page.wait_for_answer()
    shown = page.drawn()
    (answered,) = curl_answers(page.text("#snippet"), page.folder)
    assert np.abs(shown.ravel() - answered).max() < WITHIN_A_PIXEL
    page.find("#tab-python").click()
    assert run([sys.executable, "-c", page.text("#snippet")], page.folder).count("index_tip") == 1


def test_json_and_overlay_can_be_downloaded(page: Page) -> None:
    page.open()
    page.choose_file(as_file(page.folder, WIDE, "mine.png"))
    page.wait_for_answer()
    assert not page.find("#json").is_displayed()
    page.find("#answer summary").click()
    assert page.find("#json").is_displayed()
    page.find("#save-json").click()
    saved = page.wait_until(_finished(page.folder / "mine.json"))
    assert json.loads(saved) == page.shown_answer()
    page.find("#downloads button").click()
    overlay = page.wait_until(_finished(page.folder / "mine-lightweight.png"))
    drawn = httpx.post(f"{page.served.url}/v1/hand-pose", content=WIDE, headers={"Accept": "image/png"}).content
    assert overlay == drawn


def _finished(path: Path) -> Callable[[], bytes | None]:
    def content() -> bytes | None:
        return path.read_bytes() if path.is_file() and path.stat().st_size else None

    return content


def test_picture_of_a_kind_that_the_browser_cannot_show_is_shown_as_the_service_draws_it(page: Page) -> None:
    page.open()
    heic = (Path(__file__).parents[1] / "data" / "hand.heic").read_bytes()
    page.choose_file(as_file(page.folder, heic, "hand.heic"))
    page.wait_for_answer()
    assert page.js("return document.querySelector('.view img').naturalWidth") == 256
    assert_drawn_as_answered(page, heic)
