"""What a file is, and what of it reaches a decoder: the pixels, the colour profile, and which way is up.

A file can carry much that costs more than its pixels: a million empty segments, tags that all point at the same
megabytes, ten thousand frames, compressed text. `cleaned` knows just enough of each format to leave that out before a
library reads the file, and reads the EXIF orientation. What it leaves in is bounded by the limits below. Damage in the
pixels is found by the decoder.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from service.pose.formats import BrokenContainerError, Kind, UnknownFormatError, kind_of
from service.pose.heif import primary_picture

MAX_SEGMENTS: Final = 4096
"""Chunks and blocks that are no pixels, entries of a directory."""

MAX_JPEG_SEGMENTS: Final = 1024
"""JPEG segments before the pixels; a few hundred where a camera stores a preview of megabytes."""

MAX_TABLES: Final = 256
"""JPEG segments before the pixels that a decoder gets to see, beside a profile's; a dozen are usual."""

MAX_SCANS: Final = 100
"""Scans of a JPEG of several. Encoders write about ten; each costs a pass over the whole picture, however few bytes it
has."""

MAX_PROFILE_BYTES: Final = 4 * 1024 * 1024
"""Longer colour profiles are left out: those of printing presses have up to three megabytes."""

_ORIENTATION_TAG: Final = 0x0112
_EXIF_START: Final = b"Exif\x00\x00"
_EXIF_ENTRIES: Final = 256  # that are looked through; cameras write some dozens, in ascending order


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A file fit for a decoder.

    Attributes:
        kind: its format, by Pillow's name.
        data: the file without what no picture needs.
        orientation: what EXIF says about which way is up, 1 to 8; None where only the decoder can find it.
        many_scans: of a JPEG: whether it has several scans, and so is held whole while it is decoded.
        arithmetic: of a JPEG: whether it is coded arithmetically; such a file has to be decoded in one go.
        has_end: of a JPEG: whether the mark of its end is there. `data` ends with it in any case.
    """

    kind: Kind
    data: bytes
    orientation: int | None
    many_scans: bool = False
    arithmetic: bool = False
    has_end: bool = True


def cleaned(data: bytes) -> Cleaned:
    """Find the format from the content, and leave out what no picture needs.

    Args:
        data: the file's bytes.

    Raises:
        UnknownFormatError: of a format that is not read.
        BrokenContainerError: damaged, or too complicated.
    """
    try:
        match kind_of(data):
            case "JPEG":
                return _clean_jpeg(data)
            case "PNG":
                return _clean_png(data)
            case "WEBP":
                return _clean_webp(data)
            case "AVIF":  # libavif has limits of its own, and its reader says which way is up
                return Cleaned("AVIF", data, None)
            case "HEIC":  # libheif turns the picture itself
                return Cleaned("HEIC", primary_picture(data), 1)
    except (IndexError, KeyError, struct.error) as error:
        raise BrokenContainerError("it breaks off") from error


def orientation_in(exif: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF record gives; 1 (upright) where it gives none or is damaged."""
    try:
        for tag, kind, count, value in _exif_entries(exif.removeprefix(_EXIF_START)):
            if tag == _ORIENTATION_TAG and kind == 3 and count == 1:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):  # cameras damage it
        return 1
    return 1


# JPEG

_END: Final = b"\xff\xd9"
_SCAN: Final = 0xDA
_PADDING: Final = frozenset({0x00, 0xFF})
_EMPTY: Final = frozenset({0x01, *range(0xD0, 0xDA)})  # marks without content
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC: Final = frozenset({0xC9, 0xCA})
_FRAMES_READ: Final = frozenset({0xC0, 0xC1, 0xC2}) | _ARITHMETIC  # sequential and progressive
_LOSSLESS: Final = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_JPEG_LS: Final = 0xF7
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})  # frames whose scans each refine the whole picture
# All that a decoder needs; of the rest some walk it byte by byte.
_TABLES: Final = _FRAMES | frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD})
_APPLICATION_MARKS: Final = {0xE0: b"JFIF", 0xEE: b"Adobe"}  # they say which colours the components are
_NEVER: Final = b"\x00" * 64  # longer than what is looked at
_MAX_PROFILE_PARTS: Final = 255  # they are numbered in a byte


def _clean_jpeg(data: bytes) -> Cleaned:
    """Keeps what decoding needs, JFIF, Adobe's colour mark and the profile, up to the end of the first picture."""
    view = memoryview(data)
    tables, profile, orientation = list[memoryview](), list[memoryview](), None
    frames, components, at = set[int](), 0, 2
    for marker, at, end in _jpeg_segments(data):
        content = data[at + 4 : min(end, at + 40)]
        if marker in _FRAMES or marker == _JPEG_LS:
            _check_coding(marker, data[at + 4])
            frames.add(marker)
            components = max(components, data[at + 9])
        if marker in _TABLES or content.startswith(_APPLICATION_MARKS.get(marker, _NEVER)):
            tables.append(view[at:end])
        elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\x00"):
            profile.append(view[at:end])
        elif marker == 0xE1 and orientation is None and content.startswith(_EXIF_START):
            orientation = orientation_in(data[at + 4 : end])
    if len(tables) > MAX_TABLES:
        raise BrokenContainerError("it has too many tables")
    if len(profile) > _MAX_PROFILE_PARTS or sum(map(len, profile)) > MAX_PROFILE_BYTES:
        profile = []
    # Neither mark occurs within coded pixels, where 0xFF is always followed by 0x00 or a restart mark. Where there can
    # be many scans, all but empty, the first end counts, and the scans before it. A sequential picture whose first scan
    # has all the components has no other: a decoder stops after it, and looking would cost more than it saves.
    many = not frames.isdisjoint(_PROGRESSIVE) or data[at + 4] < components
    last = data.find(_END, at) if many else data.rfind(_END, at)
    end = len(data) if last < 0 else last
    if many and data.count(b"\xff\xda", at, end) > MAX_SCANS:
        raise BrokenContainerError("it has too many scans")
    # Pillow wants the profile before the frame.
    cleaned_file = b"".join([view[:2], *profile, *tables, view[at:end], _END])
    return Cleaned(
        "JPEG",
        cleaned_file,
        orientation or 1,
        many_scans=many,
        arithmetic=not frames.isdisjoint(_ARITHMETIC),
        has_end=last >= 0,
    )


def _check_coding(marker: int, bits: int) -> None:
    """Raises UnknownFormatError if the JPEG is coded in a way that is not read, whatever decoders make of it."""
    if marker == _JPEG_LS:
        raise UnknownFormatError("it is a JPEG-LS")
    if marker in _LOSSLESS:
        raise UnknownFormatError("it is a lossless JPEG")
    if marker not in _FRAMES_READ:
        raise UnknownFormatError("it is a hierarchical JPEG")
    if bits != 8:
        raise UnknownFormatError(f"it is a JPEG with {bits} bits a sample instead of 8")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Mark, start and end of each segment up to the first scan, which is the last of them and has no end."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0:
            raise BrokenContainerError("it has no pixels")
        marker = data[at + 1]
        if marker in _PADDING or marker in _EMPTY:
            at += 1 if marker in _PADDING else 2
            continue
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
        yield marker, at, end
        if marker == _SCAN:
            return
        at = end
    raise BrokenContainerError("it has too many segments")


# PNG

_PNG_CHUNKS_ONCE: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP"})
_PNG_CHUNKS: Final = _PNG_CHUNKS_ONCE | {b"IDAT", b"IEND"}


def _clean_png(data: bytes) -> Cleaned:
    """Keeps the picture; of an animated PNG, that is the one which programs show that know no animation."""
    view, parts, orientation, at = memoryview(data), [memoryview(data)[:8]], 1, 8
    seen: set[bytes] = set()
    for _ in range(MAX_SEGMENTS + len(data) // 512):
        if at + 12 > len(data):
            parts.append(view[at:])  # it breaks off here, or without an end
            break
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"eXIf" and orientation == 1:
            orientation = orientation_in(data[at + 8 : end - 4])
        # What may be there once is kept once: each profile more would be unpacked again.
        if name in _PNG_CHUNKS and name not in seen:
            if name in _PNG_CHUNKS_ONCE:
                seen.add(name)
            parts.append(view[at:end])
        at = end
        if name == b"IEND":
            break
    else:
        raise BrokenContainerError("it has too many chunks")
    return Cleaned("PNG", b"".join(parts), orientation)


# WebP


def _clean_webp(data: bytes) -> Cleaned:
    """As it is, up to its stated end, unless it has very many chunks: the decoder walks them."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    at, orientation = 12, 1
    for _ in range(MAX_SEGMENTS):
        if at + 8 > end:
            return Cleaned("WEBP", data if end == len(data) else data[:end], orientation)
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"EXIF" and orientation == 1:
            orientation = orientation_in(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    raise BrokenContainerError("it has too many frames")


# EXIF, which has the form of a TIFF


def _exif_entries(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and first value, as a short, of each entry of the first directory."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (number,) = struct.unpack_from(order + "H", tiff, start)
    for index in range(min(number, _EXIF_ENTRIES)):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * index)
        yield tag, kind, count, value
