import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pose.geometry import Affine
from service.pose.images import (
    BrokenImageError,
    DecodedImage,
    ImageError,
    ImageTooLargeError,
    UnsupportedImageError,
    decode_image,
    open_image,
)

DATA = Path(__file__).parents[2] / "data"
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def colour_at(decoded: DecodedImage, where: tuple[int, int]) -> NDArray[np.uint8]:
    colour: NDArray[np.uint8] = np.asarray(decoded.pixels)[where[1], where[0]]
    return colour


def two_coloured(width: int = 40, height: int = 24) -> Image.Image:
    """Left quarter red, the rest white, so that every turn and mirror shows."""
    picture = Image.new("RGB", (width, height), WHITE)
    picture.paste(RED, (0, 0, width // 4, height // 2))
    return picture


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_common_formats_decode_to_upright_rgb(file_format: str) -> None:
    decoded = decode_image(encoded(two_coloured(), file_format))
    assert (decoded.width, decoded.height) == decoded.pixels.size == (40, 24)
    assert decoded.pixels.mode == "RGB"
    np.testing.assert_allclose(colour_at(decoded, (3, 3)), RED, atol=20)
    np.testing.assert_allclose(colour_at(decoded, (35, 20)), WHITE, atol=20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("enough_pixels", [None, 16])
def test_a_photo_is_upright_whatever_its_exif_orientation(orientation: int, enough_pixels: int | None) -> None:
    upright = two_coloured(400, 240)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, "JPEG", exif=exif, quality=95), enough_pixels=enough_pixels)
    assert (decoded.width, decoded.height) == (400, 240)
    shrunk = decoded.pixels.width / 400
    assert (shrunk < 1) == (enough_pixels is not None)
    np.testing.assert_allclose(colour_at(decoded, (int(50 * shrunk), int(60 * shrunk))), RED, atol=30)
    np.testing.assert_allclose(colour_at(decoded, (int(350 * shrunk), int(200 * shrunk))), WHITE, atol=30)


def test_damaged_exif_leaves_the_picture_readable() -> None:
    data = encoded(two_coloured(), "JPEG", exif=b"Exif\x00\x00not a tiff header at all")
    assert decode_image(data).pixels.size == (40, 24)


def test_a_large_jpeg_is_decoded_smaller_when_that_is_enough() -> None:
    data = encoded(two_coloured(1600, 1200), "JPEG")
    decoded = decode_image(data, enough_pixels=256)
    assert (decoded.width, decoded.height) == (1600, 1200)
    assert min(decoded.pixels.size) == 300  # a quarter; an eighth would be less than asked for
    assert decoded.image_to_pixels == Affine.scaling(0.25)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(2057, 2051), (2055, 2056), (1033, 1041)])
def test_what_is_decoded_smaller_stays_in_place_to_a_fraction_of_a_pixel(
    size: tuple[int, int], orientation: int
) -> None:
    """libjpeg rounds sides up, so a picture whose sides do not divide by 8 is a little less than 8 times smaller."""
    stored = Image.new("RGB", size)
    for left, top in ((16, 16), (size[0] - 96, size[1] - 96)):
        stored.paste(WHITE, (left, top, left + 64, top + 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    full, held = decode_image(data), decode_image(data, enough_pixels=200)
    assert held.pixels.width < full.pixels.width / 3
    for half in (slice(None, None), slice(None, None, -1)):
        seen = [centre_of_brightness_near_a_corner(each, half) for each in (full, held)]
        np.testing.assert_allclose(held.image_to_pixels.inverse().apply(seen[1]), seen[0], atol=0.6)


def centre_of_brightness_near_a_corner(decoded: DecodedImage, order: slice) -> NDArray[np.float64]:
    """Where the white square lies in `pixels`, (x, y), looking at the left half or, in reverse order, the right."""
    light = np.asarray(decoded.pixels)[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    half = (columns < light.shape[1] / 2) if order.step is None else (columns > light.shape[1] / 2)
    light = np.where(half, light, 0.0)
    centre: NDArray[np.float64] = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    return centre


def test_transparency_shows_white() -> None:
    assert decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).pixels.getpixel((1, 1)) == WHITE


def test_a_jpeg_that_is_hardly_higher_than_nothing_is_decoded_smaller_too() -> None:
    decoded = decode_image(encoded(Image.new("RGB", (4000, 1)), "JPEG"), enough_pixels=64)

    assert (decoded.width, decoded.height, decoded.pixels.height) == (4000, 1, 1)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 128 << 8, np.uint16))
    assert decode_image(encoded(grey)).pixels.getpixel((1, 1)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    picture = Image.new("L", (4, 4), 255).convert(mode)
    assert decode_image(encoded(picture)).pixels.getpixel((1, 1)) == WHITE


def test_cmyk_becomes_rgb() -> None:
    decoded = decode_image(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"))
    np.testing.assert_allclose(colour_at(decoded, (8, 8)), RED, atol=20)


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7 something", b"hello", bytes(100), b"<svg xmlns='x'/>"])
def test_what_is_no_image_is_unsupported_and_the_formats_are_named(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG"):
        decode_image(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_broken(file_format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, file_format)
    with pytest.raises(BrokenImageError, match="truncated or damaged"):
        decode_image(data[: max(16, int(len(data) * share))])


def test_too_many_pixels_are_refused_from_the_header() -> None:
    header_only = encoded(Image.new("RGB", (300, 200)), "PNG")[:64]
    with pytest.raises(ImageTooLargeError, match="300 x 200 = 60000 pixels; at most 50000"):
        decode_image(header_only, max_pixels=50_000)


def test_a_decompression_bomb_is_too_large_and_raises_no_warning() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError):
            decode_image(bomb)


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_gives_a_picture_or_an_image_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    file_format = ("JPEG", "PNG", "WEBP", "AVIF")[seed % 4]
    data = bytearray(encoded(two_coloured(), file_format))
    for position in random.integers(0, len(data), 8):
        data[position] = random.integers(256)
    try:
        decoded = decode_image(bytes(data))
    except ImageError:
        return
    assert decoded.pixels.mode == "RGB"


# Kinds of JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}], ids=str)
def test_a_jpeg_without_its_end_mark_is_read(options: dict[str, Any]) -> None:
    whole = encoded(textured(), "JPEG", **options)
    assert whole[-2:] == b"\xff\xd9"
    decoded = decode_image(whole[:-2])
    np.testing.assert_array_equal(np.asarray(decoded.pixels), np.asarray(decode_image(whole).pixels))


@pytest.mark.parametrize("missing", [40, 400, 1000])
@pytest.mark.parametrize("enough_pixels", [None, 32])
def test_a_jpeg_whose_pixels_break_off_is_broken(missing: int, enough_pixels: int | None) -> None:
    with pytest.raises(BrokenImageError, match="truncated or damaged"):
        decode_image(encoded(textured(), "JPEG")[:-missing], enough_pixels=enough_pixels)


def test_an_arithmetically_coded_jpeg_is_read_whatever_its_size() -> None:
    data = (DATA / "jpeg_arithmetic_over_64k.jpg").read_bytes()
    assert len(data) > 65_536
    assert decode_image(data).pixels.size == decode_image(data, enough_pixels=5000).pixels.size
    assert decode_image(data, enough_pixels=100).pixels.width < decode_image(data).pixels.width


@pytest.mark.parametrize(
    ("name", "what_it_is"),
    [
        ("jpeg_12_bit.jpg", "a JPEG with 12 bits a sample instead of 8"),
        ("jpeg_lossless.jpg", "a lossless JPEG"),
        ("jpeg_ls.jls", "a JPEG-LS"),
        ("cr3_head.bin", "a raw photo"),
    ],
)
def test_a_photo_in_a_coding_that_is_not_read_is_named(name: str, what_it_is: str) -> None:
    for data in ((DATA / name).read_bytes(), (DATA / name).read_bytes()[:200]):
        with pytest.raises(UnsupportedImageError, match=f"it is {what_it_is}; send JPEG, PNG, WebP, AVIF or HEIC"):
            open_image(data)


def test_a_photo_without_its_end_mark_is_the_same_photo() -> None:
    whole = (DATA / "hand.jpg").read_bytes()
    for enough_pixels in (None, 64):
        decoded, expected = (decode_image(data, enough_pixels=enough_pixels) for data in (whole[:-2], whole))
        np.testing.assert_array_equal(np.asarray(decoded.pixels), np.asarray(expected.pixels))


def test_16_bit_grey_keeps_its_shades() -> None:
    seen = np.asarray(decode_image((DATA / "hand_grey16.png").read_bytes()).pixels)
    assert 60 < seen.mean() < 200
    assert seen.std() > 20


def textured() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    return Image.fromarray(noise)


# HEIC


def test_a_photo_of_a_phone_is_read() -> None:
    decoded = decode_image((DATA / "hand.heic").read_bytes())
    assert (decoded.width, decoded.height) == decoded.pixels.size == (256, 256)
    assert decoded.pixels.mode == "RGB"
    assert np.asarray(decoded.pixels).std() > 20


def test_the_header_of_a_heic_says_its_size() -> None:
    with pytest.raises(ImageTooLargeError, match="256 x 256"):
        open_image((DATA / "hand.heic").read_bytes(), max_pixels=1000)


@pytest.mark.parametrize("length", [40, 300, 2000, 4700])
def test_a_heic_that_breaks_off_is_broken(length: int) -> None:
    with pytest.raises(BrokenImageError, match="truncated or damaged"):
        decode_image((DATA / "hand.heic").read_bytes()[:length])
