"""Every sort of image, compared with what another decoder makes of it (OpenCV), or with the colour that was put in."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.pose.images import DecodedImage, decode_image
from tests.support.colours import profile
from tests.support.images import image_bytes

SIZE = (96, 64)


def colourful(mode: str = "RGB") -> Image.Image:
    """Smooth, another colour in every corner, and so that no turn or mirror of it looks alike."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    rgb = np.stack([255 * x, 255 * y, 255 * (1 - x) * (0.3 + 0.7 * y)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def with_alpha(mode: str = "RGBA") -> Image.Image:
    picture = colourful(mode)
    picture.putalpha(Image.linear_gradient("L").resize(SIZE))
    return picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def seen_by_opencv(data: bytes) -> NDArray[np.float64]:
    """RGB over white, upright, as OpenCV decodes it."""
    raw = np.frombuffer(data, np.uint8)
    unchanged = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    assert unchanged is not None
    if unchanged.ndim == 3 and unchanged.shape[2] == 4:  # of these it drops what shows through
        full: NDArray[np.float64] = unchanged.astype(np.float64) / (255 if unchanged.dtype == np.uint8 else 65535)
        alpha = full[..., 3:]
        over_white: NDArray[np.float64] = 255 * (full[..., 2::-1] * alpha + 1 - alpha)
        return over_white
    upright = cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB)
    assert upright is not None
    return upright.astype(np.float64)


def pixels(decoded: DecodedImage) -> NDArray[np.float64]:
    return np.asarray(decoded.pixels).astype(np.float64)


def sixteen_bit_grey(kind: str) -> bytes:
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.uint16)
    return encoded(Image.fromarray(ramp), kind)


def sixteen_bit_colour(channels: int, kind: str) -> bytes:
    picture = with_alpha() if channels == 4 else colourful()
    order = [2, 1, 0, 3][:channels]
    written, data = cv2.imencode(kind, np.asarray(picture)[..., order].astype(np.uint16) * 257)
    assert written
    return data.tobytes()


def palette_with_transparent_colours() -> bytes:
    picture = colourful().quantize(64)
    return encoded(picture, "PNG", transparency=bytes([0, 128, 255] * 20))


def colour_key(mode: str, key: Any) -> bytes:
    picture = colourful(mode)
    picture.paste(key, (10, 10, 30, 30))
    return encoded(picture, "PNG", transparency=key)


def animation(kind: str) -> bytes:
    later = [Image.new("RGB", SIZE, colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options: dict[str, Any] = {}
    if kind in ("WEBP", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    return encoded(colourful(), kind, save_all=True, append_images=later, duration=50, **options)


def interlaced_png() -> bytes:
    """By hand, because Pillow writes none: the seven passes of Adam7, without filters."""
    pixels = np.asarray(colourful())
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right]) for top, left, down, right in passes
    )
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
    )


FILES: dict[str, tuple[bytes, float]] = {
    # what it is: the file, and by how much a value may differ (two JPEG or YUV decoders round differently)
    "JPEG": (encoded(colourful(), "JPEG", quality=95), 3),
    "JPEG without chroma subsampling": (encoded(colourful(), "JPEG", quality=95, subsampling=0), 3),
    "JPEG in grey": (encoded(colourful("L"), "JPEG", quality=95), 2),
    "JPEG, progressive": (encoded(colourful(), "JPEG", quality=95, progressive=True), 3),
    "JPEG in RGB": (encoded(colourful(), "JPEG", quality=95, keep_rgb=True), 3),
    "JPEG in CMYK, as Adobe inverts it": (encoded(colourful("CMYK"), "JPEG", quality=95, subsampling=0), 4),
    "PNG": (encoded(colourful(), "PNG"), 0),
    "PNG in grey": (encoded(colourful("L"), "PNG"), 0),
    "PNG in black and white": (encoded(colourful("1"), "PNG"), 0),
    "PNG of 16 bits, grey": (sixteen_bit_grey("PNG"), 1),
    "PNG of 16 bits, colour": (sixteen_bit_colour(3, ".png"), 1),
    "PNG of 16 bits with alpha": (sixteen_bit_colour(4, ".png"), 1.5),
    "PNG with alpha": (encoded(with_alpha(), "PNG"), 1),
    "PNG in grey with alpha": (encoded(with_alpha("L"), "PNG"), 1),
    "PNG with palette": (encoded(colourful("P"), "PNG"), 0),
    "PNG with palette of 16 colours": (encoded(colourful().quantize(16), "PNG"), 0),
    "PNG whose palette has transparent colours": (palette_with_transparent_colours(), 1),
    "PNG in black and white with a transparent colour": (colour_key("1", 1), 0),
    "PNG that moves": (animation("PNG"), 0),
    "PNG in rows that are interlaced": (interlaced_png(), 0),
    "PNG with a transparent colour": (colour_key("RGB", (255, 0, 255)), 0),
    "WebP": (encoded(colourful(), "WEBP", quality=95), 3),
    "WebP without loss": (encoded(colourful(), "WEBP", lossless=True), 0),
    "WebP with alpha": (encoded(with_alpha(), "WEBP", lossless=True, exact=True), 1),
    "WebP that moves": (animation("WEBP"), 0),
    "AVIF": (encoded(colourful(), "AVIF", quality=95), 4),
    "AVIF that moves": (animation("AVIF"), 4),
    "AVIF with alpha": (encoded(with_alpha(), "AVIF", quality=95), 5),
}


@pytest.mark.parametrize("sort", FILES)
def test_colours_are_those_that_another_decoder_sees(sort: str) -> None:
    data, tolerance = FILES[sort]
    decoded = decode_image(data)
    assert decoded.pixels.mode == "RGB"
    np.testing.assert_allclose(pixels(decoded), seen_by_opencv(data), atol=tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_that_has_an_orientation_becomes_upright(kind: str, orientation: int) -> None:
    """The reference is the picture turned by hand: OpenCV does not turn all of these formats."""
    data = image_bytes(colourful(), kind, orientation=orientation)
    stored = np.asarray(colourful()).astype(np.float64)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    decoded = decode_image(data)
    assert (decoded.height, decoded.width) == turned.shape[:2]
    assert np.abs(pixels(decoded) - turned).mean() < 4
    if kind == "JPEG":
        np.testing.assert_allclose(pixels(decoded), seen_by_opencv(data), atol=3)


def test_transparent_grey_shows_white() -> None:
    """OpenCV shows the grey that is to be transparent, and is no reference here."""
    expected = np.asarray(colourful("L")).copy()
    expected[10:30, 10:30] = 77
    decoded = pixels(decode_image(colour_key("L", 77)))
    np.testing.assert_array_equal(decoded, np.where(expected == 77, 255, expected)[..., None].repeat(3, axis=2))


# Colour profiles


# Adobe RGB (1998), adapted to D50, from its specification; and sRGB the same way, to come back from XYZ by.
ADOBE = {"red": (0.60974, 0.31111, 0.01947), "green": (0.20528, 0.62567, 0.06087), "blue": (0.14919, 0.06322, 0.74457)}
ADOBE_GAMMA = 2.19921875
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]).T


def adobe_to_srgb(stored: NDArray[np.float64]) -> NDArray[np.float64]:
    """The two standards' formulas, without any library."""
    linear = (stored / 255) ** ADOBE_GAMMA @ np.array(list(ADOBE.values())) @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * np.asarray(curved, np.float64)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_a_profile_become_those_of_a_screen(kind: str, alpha: bool) -> None:
    icc = profile(b"RGB ", ADOBE_GAMMA, **ADOBE)
    picture = with_alpha() if alpha else colourful()
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(picture, kind, icc_profile=icc, **options))
    expected = adobe_to_srgb(np.asarray(colourful()).astype(np.float64))
    if alpha:
        opacity = np.asarray(picture.getchannel("A"))[..., None] / 255
        expected = expected * opacity + 255 * (1 - opacity)
    difference = np.abs(pixels(decoded) - expected)
    assert difference.mean() < 1
    assert np.percentile(difference, 99) < 4
    assert np.abs(pixels(decoded) - np.asarray(colourful())).mean() > 5


def test_profile_counts_where_a_photo_is_decoded_smaller() -> None:
    icc = profile(b"RGB ", ADOBE_GAMMA, **ADOBE)
    photo = encoded(Image.new("RGB", (1600, 1200), (60, 200, 90)), "JPEG", quality=95, icc_profile=icc)
    decoded = decode_image(photo, enough_pixels=200)
    assert decoded.pixels.size == (200, 150)
    expected = adobe_to_srgb(np.array([60.0, 200.0, 90.0]))
    np.testing.assert_allclose(pixels(decoded)[70, 70], expected, atol=3)


def test_grey_with_a_profile_of_its_own_is_converted() -> None:
    data = encoded(Image.new("L", (8, 8), 128), "PNG", icc_profile=profile(b"GRAY", 1.0))
    assert decode_image(data).pixels.getpixel((3, 3)) == pytest.approx((188, 188, 188), abs=1)  # 0.5 of all light


def test_srgb_costs_no_conversion() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(colourful(), "PNG", icc_profile=icc)
    np.testing.assert_array_equal(pixels(decode_image(data)), np.asarray(colourful()))


BROKEN_PROFILES = {
    "empty": b"",
    "noise": bytes(range(256)) * 4,
    "breaks off": profile(b"RGB ", ADOBE_GAMMA, **ADOBE)[:200],
    "for other colours": profile(b"GRAY", 1.0),
    "too long": profile(b"RGB ", ADOBE_GAMMA, **ADOBE) + bytes(5 * 1024 * 1024),
    "of colours that do not exist": profile(b"QQQQ", 1.0),
}


@pytest.mark.parametrize("what", BROKEN_PROFILES)
def test_profile_that_is_no_use_is_ignored(what: str) -> None:
    data = encoded(colourful(), "WEBP", icc_profile=BROKEN_PROFILES[what], lossless=True)
    np.testing.assert_array_equal(pixels(decode_image(data)), np.asarray(colourful()))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_profile_never_harms(seed: int) -> None:
    random, icc = np.random.default_rng(seed), bytearray(profile(b"RGB ", ADOBE_GAMMA, **ADOBE))
    for position in random.integers(0, len(icc), 12):
        icc[position] = random.integers(256)
    assert decode_image(encoded(colourful(), "PNG", icc_profile=bytes(icc))).pixels.size == SIZE
