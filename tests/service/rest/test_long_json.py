"""A long image in JSON is read as any JSON parser would read it, and what is beside it is bounded."""

import base64
import json
import random
from collections.abc import Callable

import pytest

from service.rest.long_json import STAND_IN, TooMuchBesideError, from_base64, pieces_of, without_long_text

DATA = random.Random(7).randbytes(300_001)
TEXT = base64.b64encode(DATA).decode()
BESIDE = 64 * 1024


def image_in(body: bytes) -> bytes:
    rest, text = without_long_text(body, BESIDE)
    assert text is not None
    assert json.loads(rest)["image"] == STAND_IN
    return from_base64(pieces_of(text))


def in_lines(text: str, end: str) -> str:
    return end.join(text[start : start + 76] for start in range(0, len(text), 76))


WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "slashes escaped, as PHP does": lambda text: text.replace("/", r"\/"),
    "plus signs escaped, as .NET does": lambda text: text.replace("+", r"\u002B"),
    "nothing but escapes": lambda text: "".join(f"\\u{ord(each):04x}" for each in text),
    "in lines": lambda text: in_lines(text, r"\r\n"),
    "in words": lambda text: in_lines(text, " "),
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("shift", range(7))
def test_image_is_the_same_however_its_text_is_written(how: str, shift: int) -> None:
    body = '{"rois": [], "image": "' + " " * shift + WRITTEN[how](TEXT) + '"}'
    assert image_in(body.encode()) == DATA


def test_what_is_about_the_image_is_left_as_it_was() -> None:
    about = r'{"a": "\"", "b\\": ["\\\"", 1], "image": %s, "c": {"d": "é"}}'
    rest, text = without_long_text((about % f'"{TEXT}"').encode(), BESIDE)
    assert rest.decode() == about % f'"{STAND_IN}"'
    assert text is not None
    assert bytes(text).decode() == TEXT


def test_without_a_long_text_nothing_is_taken_out() -> None:
    body = b'{"image": "AAAA", "rois": []}' + b" " * 1000
    assert without_long_text(body, BESIDE) == (body, None)


TOO_MUCH = {
    "deeply nested": b"[" * 1_000_000,
    "an object deeply nested": b'{"a":' * 200_000,
    "many values": b"1," * 100_000,
    "whitespace": b'{"image": "AAAA"' + b" " * 1_000_000 + b"}",
    "many texts": b'"",' * 1_000_000,
    "two long texts": f'{{"a": "{TEXT}", "image": "{TEXT}"}}'.encode(),
    "a text of quotes": b'{"image": "' + rb"\"" * 1_000_000 + b'"}',
    "a text of backslashes": b'{"image": "' + rb"\\" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_more_than_an_image_and_a_little_about_it_is_refused(what: str) -> None:
    with pytest.raises(TooMuchBesideError, match=f"more than {BESIDE} bytes|more than 2048 names and texts"):
        without_long_text(TOO_MUCH[what], BESIDE)


def test_very_many_short_texts_are_said_to_be_many_rather_than_long() -> None:
    with pytest.raises(TooMuchBesideError, match="more than 2048 names and texts"):
        without_long_text(b'"",' * 3000, 16_000)


WRONG = {
    "padding in the middle": "QQ==" + TEXT,
    "padding in the middle of a piece": TEXT[:4000] + "QQ==" + TEXT[4000:],
    "no padding": TEXT.rstrip("=")[:-1],
    "a letter too many": TEXT + "A",
    "another alphabet": TEXT.replace("+", "-"),
    "a line that ends unescaped": in_lines(TEXT, "\n"),
    "no text of ASCII": TEXT + "é",
    "half an escape": TEXT + r"\u00",
    "half a pair of escapes": TEXT + r"\ud83d",
    "an escape that there is not": TEXT + r"\x41",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_base64_is_refused(what: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- whoever asks says it in words of their own
        from_base64(pieces_of(memoryview(WRONG[what].encode())))


@pytest.mark.parametrize("end", range(-12, 1))
def test_text_may_break_off_anywhere_and_is_then_no_json(end: int) -> None:
    body = f'{{"image": "{TEXT}'.encode()
    rest, _ = without_long_text(body[: len(body) + end], BESIDE)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(rest)
