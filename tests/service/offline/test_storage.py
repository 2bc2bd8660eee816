"""Pictures are found in folders, by patterns and by URLs; files appear whole."""

from pathlib import Path

import pytest

from service.inference.errors import TooLargeError
from service.offline.storage import Place, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "deep/c.webp", "deep/er/d.jpeg", "photo", "photo.HEIC"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def test_a_folder_has_its_files_at_any_depth_in_order_and_hidden_ones_are_left_out(folder: Path) -> None:
    shown, hidden = Place.at(str(folder)).pictures()

    assert shown == ["a.PNG", "b.jpg", "deep/c.webp", "deep/er/d.jpeg", "notes.txt", "photo", "photo.HEIC"]
    assert hidden == [".hidden.jpg"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["b.jpg"]),
        ("**/*.jpeg", ["deep/er/d.jpeg"]),
        ("deep/*", ["c.webp"]),
        ("deep/*/?.jpeg", ["er/d.jpeg"]),
        ("*.txt", ["notes.txt"]),  # whoever asks for it gets it
    ],
)
def test_a_pattern_chooses_what_it_matches(folder: Path, pattern: str, found: list[str]) -> None:
    assert Place.at(f"{folder}/{pattern}").pictures()[0] == found


def test_a_url_is_a_place_like_any_other(folder: Path) -> None:
    assert Place.at(folder.as_uri()).pictures() == Place.at(str(folder)).pictures()
    assert Place.at(f"{folder.as_uri()}/deep/*.webp").pictures()[0] == ["c.webp"]
    assert Place.at(folder.as_uri()).read("b.jpg") == b"b.jpg"


@pytest.mark.parametrize("text", ["nothing://here", "/no/such/folder"])
def test_a_place_that_is_none_says_so_with_its_name(text: str) -> None:
    with pytest.raises(StorageError, match=text):
        Place.at(text).pictures()


def test_a_key_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError) as refused:
        Place.at("s3://name:secret@bucket/photos")
    assert "secret" not in str(refused.value)


def test_a_file_over_the_limit_is_refused_before_it_is_read(folder: Path) -> None:
    place = Place.at(str(folder))

    with pytest.raises(TooLargeError):
        place.read("b.jpg", at_most=4)
    assert place.read("b.jpg", at_most=5) == b"b.jpg"


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    place = Place.at(str(tmp_path / "out"))
    assert place.names() == set()

    place.write("part", b"first")
    place.write("part", b"second")
    place.tidy()

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"part": b"second"}
    assert place.names() == {"part"}
