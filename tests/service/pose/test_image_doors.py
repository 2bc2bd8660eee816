"""The same picture as a file, a Pillow image and an array, at hand or on its way to a service: one answer."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.client.images import to_file_bytes
from service.pose.images import UnsupportedImageError, decode_image, from_array, from_pillow
from tests.support.images import PNG_MODES, as_file, as_png, noise

ORIENTATIONS = st.integers(1, 8)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=120, deadline=None)


def assert_same(picture: Image.Image, expected: Image.Image) -> None:
    assert picture.mode == expected.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


@EXAMPLES
@given(st.sampled_from(PNG_MODES), SIZES, SEEDS, ORIENTATIONS)
def test_a_pillow_image_is_what_its_file_gives(mode: str, size: tuple[int, int], seed: int, orientation: int) -> None:
    data = as_png(mode, size, seed, orientation)
    from_file = decode_image(data).pixels
    assert from_file.size == (size if orientation < 5 else size[::-1])
    assert_same(from_pillow(Image.open(io.BytesIO(data))), from_file)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert_same(from_pillow(loaded), from_file)
    assert_same(decode_image(to_file_bytes(loaded)).pixels, from_file)


@EXAMPLES
@given(st.sampled_from(["L", "RGB", "RGBA", "I;16"]), SIZES, SEEDS)
def test_an_array_is_what_its_file_gives(mode: str, size: tuple[int, int], seed: int) -> None:
    picture = noise(mode, size, seed)
    from_file = decode_image(as_file(picture, "PNG")).pixels
    for array in (np.asarray(picture), np.asarray(picture)[::-1].copy()[::-1]):
        assert_same(from_array(array), from_file)
        assert_same(decode_image(to_file_bytes(array)).pixels, from_file)


@EXAMPLES
@given(st.sampled_from(["JPEG", "WEBP", "AVIF"]), st.sampled_from(["L", "RGB", "CMYK"]), SIZES, SEEDS, ORIENTATIONS)
def test_a_photo_opened_by_pillow_is_what_its_file_gives(
    kind: str, mode: str, size: tuple[int, int], seed: int, orientation: int
) -> None:
    data = as_file(noise("RGB" if mode == "CMYK" and kind != "JPEG" else mode, size, seed), kind, orientation)
    opened = Image.open(io.BytesIO(data))
    assert_same(decode_image(to_file_bytes(opened)).pixels, decode_image(data).pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_opened_by_pillow_is_turned_once(compression: str) -> None:
    stored = noise("RGB", (6, 4), 1)
    buffer = io.BytesIO()
    stored.save(buffer, "TIFF", tiffinfo={274: 6}, compression=compression)
    assert_same(from_pillow(Image.open(buffer)), stored.transpose(Image.Transpose.ROTATE_270))


def test_orientation_in_xmp_counts_at_no_door() -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf tiff:Orientation=\"6\"/></x:xmpmeta>"
    data = as_file(noise("RGB", (6, 4), 1), "JPEG", xmp=xmp)
    assert decode_image(data).pixels.size == from_pillow(Image.open(io.BytesIO(data))).size == (6, 4)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("I", 40_000, (156, 156, 156)),
        ("I;16B", 40_000, (156, 156, 156)),
        ("PA", (0, 0), (255, 255, 255)),
        ("RGBa", (50, 0, 0, 50), (255, 205, 205)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
    ],
)
def test_modes_that_no_lossless_file_has_are_read(mode: str, colour: Any, expected: tuple[int, int, int]) -> None:
    assert from_pillow(Image.new(mode, (4, 4), colour)).getpixel((1, 1)) == expected


@pytest.mark.parametrize(
    "picture",
    [Image.new("F", (4, 4)), Image.new("HSV", (4, 4)), Image.new("LAB", (4, 4)), Image.new("I", (4, 4), 1 << 16)],
    ids=lambda picture: picture.mode,
)
def test_a_pillow_image_of_another_mode_is_refused_by_name(picture: Image.Image) -> None:
    with pytest.raises(UnsupportedImageError, match=f"mode '{picture.mode}' is not read; modes that are: 1, CMYK"):
        from_pillow(picture)


@pytest.mark.parametrize("mode", ["L", "RGB", "I"])
def test_a_pillow_image_without_pixels_is_refused(mode: str) -> None:
    with pytest.raises(UnsupportedImageError, match="without pixels"):
        from_pillow(Image.new(mode, (0, 4)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_an_array_of_another_kind_is_refused_by_name(array: NDArray[Any]) -> None:
    with pytest.raises(UnsupportedImageError, match=r"an array of \w+ \[.*\] is not read; arrays that are: uint8"):
        from_array(array)
