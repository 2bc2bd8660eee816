"""Files that carry far more than a picture: what reaches a decoder is bounded, and the picture is still seen."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.pose.containers import (
    MAX_SCANS,
    cleaned,
    orientation_in,
)
from service.pose.formats import BrokenContainerError, UnknownFormatError
from service.pose.images import BrokenImageError, ImageTooLargeError, UnsupportedImageError, decode_image, open_image
from tests.support.images import image_bytes, jpeg_in_scans, picture

GREEN = (10, 200, 30)


def green(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(40, 24, GREEN).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def in_png(*chunks: bytes) -> bytes:
    data = green("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def in_jpeg(*segments: bytes) -> bytes:
    data = green("JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[2:]


def exif(orientation: int, *more: bytes, order: str = "<") -> bytes:
    entries = [struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0), *more]
    start = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "IH", 8, len(entries))
    return b"Exif\x00\x00" + start + b"".join(entries) + bytes(4)


def tags_that_share(megabytes: int, number: int) -> bytes:
    """TIFF entries that each claim the same megabytes as their value."""
    return b"".join(struct.pack("<HHII", 0x9000 + index, 7, megabytes << 20, 8) for index in range(number))


def webp_with_frames(number: int) -> bytes:
    data = green("WEBP", lossless=True, save_all=True, append_images=[picture(40, 24, (1, 2, 3))], duration=10)
    at = data.rindex(b"ANMF")
    body = data[12:] + data[at:] * (number - 2)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


STILL_SEEN: dict[str, Callable[[], bytes]] = {
    "JPEG whose EXIF tags share megabytes": lambda: in_jpeg(
        *(jpeg_segment(0xE1, exif(1, tags_that_share(4, 2000))),),
        *[jpeg_segment(0xE1, b"Exif\x00\x00" + bytes(65_000))] * 60,
    ),
    "JPEG with a comment of megabytes": lambda: in_jpeg(*[jpeg_segment(0xFE, bytes(65_000))] * 60),
    "JPEG with marks that no decoder knows": lambda: in_jpeg(
        *[jpeg_segment(mark, b"\xff\x00" * 30_000) for mark in (0x02, 0xBF, 0xC8, 0xF0, 0xFD)]
    ),
    "JPEG with more of a profile than there can be": lambda: in_jpeg(
        *[jpeg_segment(0xE2, b"ICC_PROFILE\x00\x01\x01")] * 500
    ),
    "JPEG whose components come one after the other": lambda: jpeg_in_scans(picture(40, 24, GREEN), 3),
    "JPEG with other pictures in it": lambda: in_jpeg(
        jpeg_segment(0xE2, b"MPF\x00" + exif(1, tags_that_share(1, 4000)))
    ),
    "JPEG followed by a zip file": lambda: green("JPEG", quality=95) + b"PK\x03\x04" + bytes(100_000),
    "JPEG followed by a video": lambda: green("JPEG", quality=95) + b"\xff\xda\x00\x08" * 100_000,
    "PNG with long texts": lambda: in_png(*[png_chunk(b"tEXt", b"Comment\x00" + bytes(1 << 20))] * 8),
    "PNG with texts that unpack to much": lambda: in_png(
        *[png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(8 << 20), 9))] * 64
    ),
    "PNG that moves": lambda: in_png(png_chunk(b"acTL", struct.pack(">II", 10_000, 0))),
    "PNG followed by a script": lambda: green("PNG") + b"<script>alert(1)</script>" * 1000,
    "WebP of 2000 frames": lambda: webp_with_frames(2000),
    "WebP followed by a zip file": lambda: green("WEBP", lossless=True) + b"PK\x03\x04" + bytes(100_000),
}


@pytest.mark.parametrize("what", STILL_SEEN)
def test_a_picture_is_seen_whatever_else_its_file_carries(what: str) -> None:
    data = STILL_SEEN[what]()
    tracemalloc.start()
    try:
        decoded = decode_image(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded.pixels.size == (40, 24)
    np.testing.assert_allclose(np.asarray(decoded.pixels)[12, 20], GREEN, atol=6)
    assert peak < 2 * len(data) + (1 << 20)


@pytest.mark.parametrize(
    "what",
    [
        "JPEG with a comment of megabytes",
        "JPEG with marks that no decoder knows",
        "JPEG with more of a profile than there can be",
        "JPEG followed by a zip file",
        "PNG with long texts",
        "WebP followed by a zip file",
    ],
)
def test_a_decoder_gets_the_picture_only(what: str) -> None:
    assert len(cleaned(STILL_SEEN[what]()).data) < 2000


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG of a million segments": (lambda: in_jpeg(b"\xff\xfe\x00\x02" * 1_000_000), "too many segments"),
    "JPEG of three hundred tables": (
        lambda: in_jpeg((b"\xff\xdb\x00\x43\x00" + b"\x10" * 64) * 300),
        "too many tables",
    ),
    "JPEG of two thousand Exif records": (
        lambda: in_jpeg(b"\xff\xe1\x00\x08Exif\x00\x00" * 2000),
        "too many segments",
    ),
    "JPEG of a million empty marks": (lambda: in_jpeg(b"\xff\x01" * 1_000_000), "too many segments"),
    "JPEG of many scans": (lambda: jpeg_of_scans(MAX_SCANS + 1), "too many scans"),
    "sequential JPEG of many scans": (lambda: jpeg_in_scans(picture(), MAX_SCANS + 1), "too many scans"),
    "JPEG without pixels": (lambda: green("JPEG")[:20] + bytes(100), "no pixels"),
    "PNG of a million chunks": (lambda: in_png(png_chunk(b"IDAT", b"") * 1_000_000), "too many chunks"),
    "WebP of a million chunks": (lambda: webp_of_chunks(1_000_000), "too many frames"),
}


def jpeg_of_scans(number: int) -> bytes:
    data = green("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def webp_of_chunks(number: int) -> bytes:
    body = b"WEBP" + b"ANMF\x00\x00\x00\x00" * number
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_too_complicated_is_refused_before_any_decoder_sees_it(what: str) -> None:
    make, words = REFUSED[what]
    data = make()
    with pytest.raises(BrokenContainerError, match=words):
        cleaned(data)
    with pytest.raises(BrokenImageError, match=words):
        decode_image(data)


def test_a_profile_that_unpacks_to_much_is_never_unpacked() -> None:
    bomb = png_chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(bytes(64 << 20), 9))
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImageError):
            decode_image(in_png(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_png_has_one_header_one_palette_and_one_profile_whatever_is_repeated() -> None:
    buffer = io.BytesIO()
    picture(40, 24, GREEN).quantize().save(buffer, "PNG", transparency=1, icc_profile=b"first")
    data = buffer.getvalue()
    header, rest = data[:33], data[33:]
    again = png_chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(bytes(1000))) + png_chunk(b"PLTE", bytes(3))
    again += png_chunk(b"tRNS", b"\x00") + header[8:]
    at = rest.index(b"IDAT") - 4
    kept = cleaned(header + rest[:at] + again * 300 + rest[at:])
    assert kept.data == data
    assert {name: kept.data.count(name) for name in (b"IHDR", b"PLTE", b"tRNS", b"iCCP")} == {
        b"IHDR": 1,
        b"PLTE": 1,
        b"tRNS": 1,
        b"iCCP": 1,
    }


def test_a_bomb_is_refused_without_decoding_it() -> None:
    """24 kB of PNG that would fill 588 MB: the size is in its header, and the pixels are not even there."""
    header = struct.pack(">IIBBBBB", 14_000, 14_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ImageTooLargeError, match=r"14000 x 14000|too many pixels"):
        decode_image(bomb)


def recoded(frame: int, bits: int = 8) -> bytes:
    """A JPEG that says that it is coded in another way."""
    data = bytearray(green("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = frame, bits
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x00\x00\x18ftypisom" + bytes(100), "it is a video"),
        (b"\x00\x00\x00\x18ftypcrx " + bytes(100), "it is a raw photo"),
        (b"BM" + bytes(100), "it is a BMP"),
        (b"GIF89a" + bytes(100), "it is a GIF"),
        (b"II*\x00" + bytes(100), "it is a TIFF, or a raw photo"),
        (b"MM\x00*" + bytes(100), "it is a TIFF, or a raw photo"),
        (b"\xff\x0a" + bytes(100), "it is a JPEG XL"),
        (b"\x00\x00\x00\x0cjP  " + bytes(100), "it is a JPEG 2000"),
        (b"RIFF\x00\x00\x00\x00AVI " + bytes(100), "it is a video"),
        (b"%PDF-1.7", "it is a PDF"),
        (recoded(0xC3), "it is a lossless JPEG"),
        (recoded(0xC5), "it is a hierarchical JPEG"),
        (recoded(0xF7), "it is a JPEG-LS"),
        (recoded(0xC1, bits=12), "it is a JPEG with 12 bits a sample"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "send JPEG, PNG, WebP, AVIF or HEIC"),
        (b"<?xml version='1.0'?><svg/>", "send JPEG, PNG, WebP, AVIF or HEIC"),
        (b"P6 4 4 255 " + bytes(48), "send JPEG, PNG, WebP, AVIF or HEIC"),
        (b"8BPS\x00\x01" + bytes(100), "send JPEG, PNG, WebP, AVIF or HEIC"),
        (b"\x00\x00\x01\x00" + bytes(100), "send JPEG, PNG, WebP, AVIF or HEIC"),
    ],
)
def test_formats_that_are_not_read_are_told_apart_by_content(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedImageError, match=words):
        decode_image(data)
    with pytest.raises(UnknownFormatError):
        cleaned(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_from_exif(orientation: int, order: str) -> None:
    assert orientation_in(exif(orientation, order=order)) == orientation
    assert cleaned(image_bytes(picture(), "JPEG", orientation=orientation)).orientation == orientation


@pytest.mark.parametrize(
    "record", [b"", b"Exif\x00\x00", b"nothing", exif(0), exif(9), exif(6)[:20], b"II*\x00" + bytes(40)]
)
def test_exif_that_says_nothing_of_use_means_upright(record: bytes) -> None:
    assert orientation_in(record) == 1


# Reduced decoding, and what decoding will take


def test_a_photo_says_what_decoding_takes_before_it_is_decoded() -> None:
    photo = green("JPEG")
    large = io.BytesIO()
    picture(4000, 3000, GREEN).save(large, "JPEG")
    assert open_image(large.getvalue()).bytes_needed >= 4000 * 3000 * 4
    reduced = open_image(large.getvalue(), longest_side=lambda _size: 256)
    assert reduced.bytes_needed < 4000 * 3000
    assert reduced.decode().pixels.size == (500, 375)
    assert open_image(photo).bytes_needed < 100_000


def test_a_progressive_photo_is_held_whole_even_if_it_comes_out_smaller() -> None:
    large = io.BytesIO()
    picture(4000, 3000, GREEN).save(large, "JPEG", progressive=True)
    opened = open_image(large.getvalue(), longest_side=lambda _size: 256)
    assert opened.bytes_needed > 4000 * 3000 * 6


def test_sequential_jpeg_of_several_scans_is_counted_as_it_is_held() -> None:
    once, thrice = open_image(image_bytes(picture(), "JPEG")), open_image(jpeg_in_scans(picture(), 3))
    assert thrice.bytes_needed - once.bytes_needed > 80 * 60 * 5
