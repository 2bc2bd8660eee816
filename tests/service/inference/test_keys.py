"""Keys: long, kept as hashes, and kept out of sight."""

import pytest

from service.inference.errors import FieldError, InvalidInputError
from service.inference.keys import digest_of, is_key, new_key, without_keys
from service.inference.requests import request_id_from


def test_every_new_key_is_another_and_has_the_form_of_one() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(is_key(key) and len(key) >= 47 for key in keys)


@pytest.mark.parametrize(
    "text", ["", "secret", "hpk_", "hpk_short", "hpk_" + "a" * 42, "hpk_" + "a" * 44, "hpk_" + "é" * 43]
)
def test_short_and_home_made_keys_are_no_keys(text: str) -> None:
    assert not is_key(text)


def test_what_is_kept_of_a_key_is_not_the_key() -> None:
    key = new_key()
    assert len(digest_of(key)) == 32
    assert key.encode() not in digest_of(key)
    assert digest_of(key) == digest_of(key) != digest_of(new_key())


@pytest.mark.parametrize("around", ["{}", "/v1/{}", "roi {!r}", "Authorization: Bearer {}", "https://host/?key={}&x=1"])
def test_keys_are_taken_out_of_text(around: str) -> None:
    key = new_key()
    cleaned = without_keys(around.format(key))
    assert key not in cleaned
    assert "[key]" in cleaned


def test_other_text_stays_as_it_is() -> None:
    text = "the bearer of bad news; hpk_ is a prefix; Authorization: Bearer KEY"
    assert without_keys(text) == text


def test_errors_repeat_no_key() -> None:
    key = new_key()
    error = InvalidInputError(f"no such thing: {key}", errors=[FieldError(key, f"got {key}")])
    assert key not in f"{error} {error.detail} {error.errors} {error.args}"


def test_key_is_no_request_id() -> None:
    key = new_key()
    assert key not in request_id_from(key)
