"""A page whose service asks for a key: it asks in turn, shows the key with every request, and keeps it nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from service.inference.keys import new_key
from tests.page.browser import Page
from tests.page.served import Served
from tests.support.images import image_bytes, marked_picture

PICTURE = image_bytes(marked_picture(640, 480, (200, 100, 380, 260)))
KEY = new_key()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    served = Served(KEY)
    yield served
    served.close()


@pytest.fixture
def page(chromium: webdriver.Chrome, guarded: Served, tmp_path: Path) -> Iterator[Page]:
    page = Page(chromium, guarded, tmp_path)
    page.complaints()
    page.events().clear()
    yield page
    complaints = page.complaints()
    chromium.get("about:blank")
    assert all("401 (Unauthorized)" in each for each in complaints), complaints


def show_picture(page: Page) -> None:
    path = page.folder / "hand.png"
    path.write_bytes(PICTURE)
    page.choose_file(path)


def give_key(page: Page, key: str) -> None:
    page.wait_for("!document.querySelector('#access').hidden")
    page.find("#key").send_keys(key)
    page.find("#access button").click()


def test_page_asks_for_a_key_and_then_answers(page: Page) -> None:
    page.open()
    show_picture(page)
    give_key(page, KEY)
    page.wait_for_answer()
    assert page.js("return document.querySelector('#access').hidden")
    snippet = page.text("#snippet")
    assert "Authorization: Bearer $HANDPOSE_API_KEY" in snippet
    assert KEY not in page.js("return document.documentElement.outerHTML + localStorage.length + document.cookie")
    assert page.js("return localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_wrong_key_is_told_and_asked_for_again(page: Page) -> None:
    page.open()
    show_picture(page)
    give_key(page, new_key())
    page.wait_for("document.querySelector('#notice').textContent.includes('not valid')")
    give_key(page, KEY)
    page.wait_for_answer()
    assert page.js("return document.querySelector('#notice').hidden")


def test_webcam_streams_with_the_key(page: Page) -> None:
    page.open()
    page.find("#webcam").click()
    give_key(page, KEY)
    page.wait_for("!document.querySelector('#live').hidden")
    page.wait_for_answer()
    page.find("#webcam").click()
