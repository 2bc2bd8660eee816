"""HEIC: what a photo of a phone may hold, and what is made of files that hold far more."""

import resource
import struct
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pose.heif import MAX_BOXES, MAX_ENTRIES
from service.pose.images import BrokenImageError, ImageTooLargeError, UnsupportedImageError, decode_image, open_image
from tests.support import heic
from tests.support.colours import DISPLAY_P3, profile
from tests.support.heic import Item, coded, grid

SIZE = (96, 64)
DEPTH = b"urn:mpeg:hevc:2015:auxid:2"


def colourful(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Another colour in every corner, so that no turn or mirror of it looks alike."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    rgb = np.stack([255 * x, 255 * y, 255 * (1 - x) * (0.3 + 0.7 * y)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def exif(orientation: int, *items: int) -> Item:
    """An EXIF record of these items."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    record = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return Item(b"Exif", bytes(4) + record, refers_to=[(b"cdsc", items)])


def seen(data: bytes) -> NDArray[np.int64]:
    return np.asarray(decode_image(data).pixels).astype(np.int64)


def assert_shows(data: bytes, expected: Image.Image, within: int = 5) -> None:
    opened = open_image(data)
    assert (opened.width, opened.height) == expected.size
    np.testing.assert_allclose(seen(data), np.asarray(expected.convert("RGB")), atol=within)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_are_those_that_were_coded(mode: str, bits: int) -> None:
    assert_shows(heic.heic(coded(colourful(mode), bits=bits)), colourful(mode))


@pytest.mark.parametrize("full_range", [False, True])
def test_colours_by_code_points_are_read(full_range: bool) -> None:
    seen_by_matrix = [seen(heic.heic(coded(colourful(), heic.nclx(matrix=m, full_range=full_range)))) for m in (6, 1)]
    assert np.abs(seen_by_matrix[0] - np.asarray(colourful())).mean() < (20 if full_range else 3)
    assert np.abs(seen_by_matrix[0] - seen_by_matrix[1]).mean() > 3


def test_colours_of_a_profile_become_those_of_a_screen() -> None:
    red = Image.new("RGB", SIZE, (200, 40, 40))
    plain, wide = (
        seen(heic.heic(coded(red, *more)))[32, 48] for more in ((), (heic.icc(profile(b"RGB ", 2.2, **DISPLAY_P3)),))
    )
    np.testing.assert_allclose(plain, (200, 40, 40), atol=3)
    assert wide[0] > 212  # this red is further out than the same numbers in sRGB
    assert wide[1] < 30


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_photo_is_turned_and_mirrored_once_whatever_its_exif_says(turns: int, axis: int | None) -> None:
    properties = [heic.irot(turns), *([heic.imir(axis)] if axis is not None else [])]
    expected = colourful().rotate(90 * turns, expand=True)
    if axis is not None:
        flips = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT)
        expected = expected.transpose(flips[axis])
    assert_shows(heic.heic(coded(colourful(), *properties), exif(6, 1)), expected)


def test_transparency_shows_white() -> None:
    opacity = Image.linear_gradient("L").resize(SIZE)
    expected = Image.new("RGB", SIZE, (255, 255, 255))
    expected.paste(colourful(), (0, 0), opacity)
    assert_shows(heic.heic(coded(colourful()), heic.belongs_to(1, opacity, heic.ALPHA)), expected)


def tiled(*more: Item, size: tuple[int, int] = SIZE) -> bytes:
    """A picture of two by two tiles, which reach beyond its edges where the size is less than 96 x 64."""
    boxes = [(x, y, x + 48, y + 32) for y in (0, 32) for x in (0, 48)]
    tiles = [coded(colourful().crop(each), hidden=True) for each in boxes]
    return heic.heic(grid((2, 2), size, [2, 3, 4, 5]), *tiles, *more)


@pytest.mark.parametrize("size", [SIZE, (90, 50)])
def test_a_picture_of_tiles_is_put_together(size: tuple[int, int]) -> None:
    assert_shows(tiled(size=size), colourful().crop((0, 0, *size)))


def test_a_picture_of_tiles_may_be_transparent() -> None:
    opacity = heic.belongs_to(1, Image.new("L", SIZE, 0), heic.ALPHA)
    assert_shows(tiled(opacity), Image.new("RGB", SIZE, (255, 255, 255)))


def test_of_many_pictures_the_primary_one_is_read() -> None:
    others = [coded(colourful().rotate(180)) for _ in range(3)]
    assert_shows(heic.heic(*others, coded(colourful()), primary=4), colourful())


def test_thumbnails_depth_and_unknown_boxes_change_nothing() -> None:
    small = heic.belongs_to(1, colourful(size=(48, 32)), b"", b"thmb")
    depth = heic.belongs_to(1, Image.new("L", SIZE, 9), DEPTH)
    data = heic.heic(coded(colourful()), small, depth, exif(3, 1))
    assert_shows(data + heic.box(b"mpvd", bytes(1000)) + b"PK\3\4 a zip file", colourful())


def test_a_photo_says_what_decoding_takes_and_which_size_it_has_before_it_is_decoded() -> None:
    large = heic.heic(coded(Image.new("RGB", (2000, 1500), (90, 60, 30)), heic.irot(1)))
    opened = open_image(large)
    assert (opened.width, opened.height) == (1500, 2000)
    assert 10 * 3_000_000 < opened.bytes_needed < 13 * 3_000_000
    with pytest.raises(ImageTooLargeError, match="1500 x 2000"):
        open_image(large, max_pixels=2_999_999)


@pytest.mark.parametrize("kind", [b"av01", b"jpeg", b"iden", b"iovl"])
def test_pictures_of_other_codings_are_named(kind: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match=f"coded as '{kind.decode()}' instead of HEVC; send JPEG"):
        decode_image(heic.heic(replace(coded(colourful()), kind=kind)))


def test_a_sequence_without_a_still_picture_is_named() -> None:
    with pytest.raises(UnsupportedImageError, match="sequence of HEVC pictures"):
        decode_image(heic.box(b"ftyp", b"hevc" + bytes(4) + b"msf1") + heic.box(b"moov", bytes(100)))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.3, 0.5, 0.9, 0.99])
def test_a_file_that_breaks_off_is_broken(share: float) -> None:
    data = tiled()
    with pytest.raises((BrokenImageError, UnsupportedImageError)) as caught:
        decode_image(data[: int(len(data) * share)])
    if share > 0.05:  # of less there is no more than a beginning
        assert "truncated or damaged" in str(caught.value)


# Files made to hurt

LITTLE, LARGE = Image.new("RGB", (64, 64), (10, 200, 30)), Image.new("RGB", (2048, 2048), (10, 200, 30))


def little_picture_of_large_tiles() -> bytes:
    tile = coded(LARGE, hidden=True)
    return heic.heic(grid((6, 6), LITTLE.size, range(2, 38)), *[tile] * 36)


def large_transparency() -> bytes:
    return heic.heic(coded(LITTLE), heic.belongs_to(1, Image.new("L", (4096, 2048), 9), heic.ALPHA))


def turned_without_end() -> bytes:
    return heic.heic(coded(LARGE, *[heic.irot(1)] * 200))


def in_pieces(number: int) -> bytes:
    """Each piece of the data is the whole file."""
    data = heic.heic(coded(LITTLE))
    at = data.index(b"iloc")
    table = data[at : at + 4 + 8 + 16]
    longer = table[:18] + struct.pack(">H", number) + bytes(8) * number
    size = struct.unpack_from(">I", data, at - 4)[0] + len(longer) - len(table)
    whole = data.replace(data[at - 4 : at] + table, struct.pack(">I", size) + longer)
    return resized_meta(whole, len(longer) - len(table))


def resized_meta(data: bytes, more: int) -> bytes:
    at = data.index(b"meta") - 4
    return data[:at] + struct.pack(">I", struct.unpack_from(">I", data, at)[0] + more) + data[at + 4 :]


def boxes(number: int) -> bytes:
    return heic.heic(coded(LITTLE)) + heic.box(b"free", b"") * number


REFUSED = {
    "little picture of large tiles": (little_picture_of_large_tiles, "far more pixels than the picture"),
    "transparency of many pixels": (large_transparency, "far more pixels than the picture"),
    "turned two hundred times": (turned_without_end, "turned more than once"),
    "data in a thousand pieces": (lambda: in_pieces(1000), "too many pieces"),
    "pieces that share all of the file": (lambda: in_pieces(32), "share their data"),
    "many boxes": (lambda: boxes(MAX_BOXES), "too many boxes"),
    "many references": (
        lambda: heic.heic(coded(LITTLE), exif(1, *[1] * (MAX_ENTRIES + 1))),
        "too many references",
    ),
    "many properties": (
        lambda: heic.heic(*[coded(LITTLE, *[heic.nclx()] * 250)] * 70),
        "too many properties",
    ),
    "two tables of one kind": (lambda: heic.heic(coded(LITTLE)).replace(b"hdlr", b"pitm"), "two pitm boxes"),
    "a picture without a size": (lambda: heic.heic(sizeless()), "truncated or damaged"),
}


def sizeless() -> Item:
    item = coded(LITTLE)
    return replace(item, properties=[each for each in item.properties if b"ispe" not in each])


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_costs_more_than_its_picture_is_refused_from_its_header(what: str) -> None:
    make, words = REFUSED[what]
    with pytest.raises(BrokenImageError, match=words):
        open_image(make())


def test_a_header_that_says_less_than_is_coded_is_no_way_to_a_large_picture() -> None:
    with pytest.raises(BrokenImageError, match="truncated or damaged"):
        decode_image(heic.heic(coded(LARGE, stated=(64, 64))))


def test_pictures_beside_the_primary_one_take_no_memory() -> None:
    """Each of a hundred has the same profile of a megabyte, and the same record of a megabyte."""
    item = coded(LITTLE, heic.icc(bytes(1 << 20)))
    record = Item(b"Exif", bytes(1 << 20), refers_to=[(b"cdsc", range(1, 101))])
    data = heic.heic(*[item] * 100, record)
    decode_image(heic.heic(coded(LITTLE)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data).pixels.size == LITTLE.size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


@pytest.mark.parametrize("seed", range(200))
def test_damage_anywhere_gives_a_picture_or_an_image_error(seed: int) -> None:
    random, data = np.random.default_rng(seed), bytearray(FILE)
    within = len(data) if seed % 2 else len(data) - data.index(b"mdat")
    for position in random.integers(0, within, 3):
        data[position] = random.integers(256)
    try:
        decoded = decode_image(bytes(data), max_pixels=100_000)
    except (BrokenImageError, UnsupportedImageError, ImageTooLargeError):
        return
    assert decoded.pixels.mode == "RGB"


FILE = tiled(heic.belongs_to(1, Image.new("L", SIZE, 99), heic.ALPHA), exif(1, 1))
