"""What of an image file is let through to its decoder: the pixels, the colour profile, and which way is up.

A file can carry much that costs more than its pixels: a million tags or empty segments to be walked through, tags that
all point at the same megabytes, ten thousand frames, compressed text. `cleaned` knows just enough of each format to
leave all of that out before any library looks at the file, and reads the EXIF orientation by itself. What it leaves in
is bounded by the limits below. It does not check what only a decoder can: damage in the pixels is found there.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

Kind = Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"]

MAX_SEGMENTS: Final = 4096
"""Chunks and blocks that are no pixels, entries of a directory."""

MAX_JPEG_SEGMENTS: Final = 1024
"""JPEG segments before the pixels; a few hundred where a camera stores a preview of megabytes."""

MAX_TABLES: Final = 256
"""JPEG segments before the pixels that a decoder gets to see, beside a profile's; a dozen are usual."""

MAX_SCANS: Final = 100
"""Scans of a JPEG of several. Encoders write about ten; each costs a pass over the whole picture, however few bytes it
has."""

MAX_STRIPS: Final = 65_536
"""Strips or tiles of a TIFF: one for each row of the highest picture there is in practice."""

MAX_PROFILE_BYTES: Final = 4 * 1024 * 1024
"""Longer colour profiles are left out: those of printing presses have up to three megabytes."""

_ORIENTATION_TAG: Final = 0x0112
_EXIF_START: Final = b"Exif\x00\x00"
_EXIF_ENTRIES: Final = 256  # that are looked through; cameras write some dozens, in ascending order


class UnknownFormatError(ValueError):
    """The content is of no format that is read; the message says which it is where that is known."""


class BrokenContainerError(ValueError):
    """The file is not put together as its format demands, or far more complicated than a picture needs."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A file fit for a decoder.

    Attributes:
        kind: its format, by Pillow's name.
        data: the file without what no picture needs.
        orientation: what EXIF says about which way is up, 1 to 8; None where only the decoder can find it.
        many_scans: of a JPEG: whether it is put together from several scans, and so held whole while it is decoded.
        baseline: whether it is a JPEG of one scan, sequential and in Huffman's code, as nearly all are.
    """

    kind: Kind
    data: bytes
    orientation: int | None
    many_scans: bool = False
    baseline: bool = False


def cleaned(data: bytes) -> Cleaned:
    """Find the format from the content, and leave out what no picture needs.

    Args:
        data: the file's bytes.

    Raises:
        UnknownFormatError: of no format that is read.
        BrokenContainerError: damaged, or too complicated.
    """
    kind = _kind_of(data)
    try:
        return _CLEANERS[kind](data)
    except (IndexError, OverflowError, struct.error) as error:  # OverflowError: an offset beyond all memory
        raise BrokenContainerError("it breaks off") from error


def orientation_in(exif: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF record gives; 1 (upright) where it gives none or is damaged."""
    tiff = exif.removeprefix(_EXIF_START)
    try:
        layout = _TiffLayout.of(tiff)
        for tag, kind, count, value_at in islice(layout.entries(tiff), _EXIF_ENTRIES):
            if tag == _ORIENTATION_TAG and kind == 3 and count == 1:
                value = int(struct.unpack_from(layout.order + "H", tiff, value_at)[0])
                return value if 1 <= value <= 8 else 1
    except (OverflowError, struct.error, BrokenContainerError):  # cameras damage it
        return 1
    return 1


def _kind_of(data: bytes) -> Kind:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    if data[4:8] == b"ftyp":
        return _kind_of_media(data)
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8")):
        raise BrokenContainerError("its first bytes are damaged")
    raise UnknownFormatError("")


def _kind_of_media(data: bytes) -> Kind:
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4]), len(data), 256), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}:
        raise UnknownFormatError("it is a HEIC photo; save or send it as JPEG")
    raise UnknownFormatError("it is a video")


# JPEG

_END: Final = b"\xff\xd9"
_SCAN: Final = 0xDA
_PADDING: Final = frozenset({0x00, 0xFF})
_EMPTY: Final = frozenset({0x01, *range(0xD0, 0xDA)})  # marks without content
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE: Final = frozenset({0xC0, 0xC1})  # sequential, in Huffman's code
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
        if marker in _FRAMES:
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
    end = len(data) if last < 0 else last + len(_END)
    if many and data.count(b"\xff\xda", at, end) > MAX_SCANS:
        raise BrokenContainerError("it has too many scans")
    cleaned_file = b"".join([view[:2], *profile, *tables, view[at:end]])  # Pillow wants the profile before the frame
    return Cleaned("JPEG", cleaned_file, orientation or 1, many, baseline=frames <= _BASELINE and not many)


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


# BMP


def _clean_bmp(data: bytes) -> Cleaned:
    """As it is, unless it is run-length coded: that is slow to decode and no longer written by anybody."""
    if int.from_bytes(data[14:18], "little") >= 40 and int.from_bytes(data[30:34], "little") not in (0, 3, 6):
        raise UnknownFormatError("it is a BMP with compression; save it as PNG")
    return Cleaned("BMP", data, 1)


# GIF


def _clean_gif(data: bytes) -> Cleaned:
    """Keeps the first frame."""
    at = 13 + _palette_bytes(data[10])
    head, control, blocks = data[:at], b"", _Countdown(MAX_SEGMENTS + len(data) // 64)
    while True:
        introducer = data[at]
        if introducer == 0x21:
            end = _end_of_blocks(data, at + 2, blocks)
            if data[at + 1] == 0xF9:
                control = data[at:end]
            at = end
        elif introducer == 0x2C:
            start_of_blocks = at + 10 + _palette_bytes(data[at + 9]) + 1
            end = _end_of_blocks(data, start_of_blocks, blocks)
            return Cleaned("GIF", b"".join([head, control, memoryview(data)[at:end], b";"]), 1)
        else:
            raise BrokenContainerError("it has no frame")


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int, blocks: "_Countdown") -> int:
    while length := data[at]:
        blocks.count()
        at += 1 + length
    return at + 1


class _Countdown:
    """Raises once something was counted too often."""

    def __init__(self, times: int) -> None:
        self._times = times

    def count(self) -> None:
        self._times -= 1
        if self._times < 0:
            raise BrokenContainerError("it has too many blocks")


# TIFF

_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8}
_SHORT_TAGS: Final = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 338, 339, 529, 530, 531, 532}
)
_STRIP_TAGS: Final = frozenset({273, 279, 324, 325})
_PALETTE_TAG, _JPEG_TABLES_TAG, _PROFILE_TAG = 320, 347, 34675
_MAX_COUNT: Final = (
    dict.fromkeys(_SHORT_TAGS, 64)
    | dict.fromkeys(_STRIP_TAGS, MAX_STRIPS)
    | {_PALETTE_TAG: 3 * 65_536, _JPEG_TABLES_TAG: 65_536, _PROFILE_TAG: MAX_PROFILE_BYTES}
)
"""Tags that decoding needs, and how many values each may have; others are left out."""

_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})  # none, fax, LZW, JPEG, deflate, packbits
_PHOTOMETRICS: Final = frozenset({0, 1, 2, 3, 5, 6})  # grey, RGB, palette, CMYK, YCbCr


@dataclass(frozen=True, slots=True)
class _TiffLayout:
    """How numbers are written: byte order for `struct`, and whether offsets have eight bytes (BigTIFF)."""

    order: Literal["<", ">"]
    big: bool

    @classmethod
    def of(cls, data: bytes) -> "_TiffLayout":
        order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
        if data[:2] not in (b"II", b"MM"):
            raise BrokenContainerError("it has no byte order")
        return cls(order, struct.unpack_from(order + "H", data, 2)[0] == 43)

    @property
    def entry_bytes(self) -> int:
        return 20 if self.big else 12

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    def entries(self, data: bytes) -> Iterator[tuple[int, int, int, int]]:
        """Tag, type, count, and where the values or their offset are, of each entry of the first directory."""
        (start,) = struct.unpack_from(self.offset, data, 8 if self.big else 4)
        (number,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), data, start)
        if number > MAX_SEGMENTS:
            raise BrokenContainerError("it has too many tags")
        start += 8 if self.big else 2
        for at in range(start, start + number * self.entry_bytes, self.entry_bytes):
            tag, kind = struct.unpack_from(self.order + "HH", data, at)
            (count,) = struct.unpack_from(self.offset, data, at + 4)
            yield tag, kind, count, at + self.entry_bytes - struct.calcsize(self.offset)


def _clean_tiff(data: bytes) -> Cleaned:
    """The first page with a directory of its own, of the tags that decoding needs."""
    layout, kept, orientation = _TiffLayout.of(data), dict[int, bytes](), 1
    for tag, kind, count, value_at in layout.entries(data):
        if tag == _ORIENTATION_TAG and kind == 3:
            (orientation,) = struct.unpack_from(layout.order + "H", data, value_at)
        if tag not in _MAX_COUNT or kind not in _TYPE_BYTES or tag in kept:
            continue
        if count > _MAX_COUNT[tag]:
            if tag == _PROFILE_TAG:
                continue
            raise BrokenContainerError("it has too many strips or values")
        if tag in (259, 262) and kind == 3:
            _check_coding(tag, struct.unpack_from(layout.order + "H", data, value_at)[0])
        end = value_at + struct.calcsize(layout.offset)
        kept[tag] = data[end - layout.entry_bytes : end]
    padding = b"\x00" * (len(data) % 2)
    directory = b"".join(
        [
            struct.pack(layout.order + ("Q" if layout.big else "H"), len(kept)),
            *(kept[tag] for tag in sorted(kept)),
            struct.pack(layout.offset, 0),  # no other page
        ]
    )
    header = 8 if layout.big else 4
    pointer = struct.pack(layout.offset, len(data) + len(padding))
    body = memoryview(data)[header + len(pointer) :]
    return Cleaned(
        "TIFF", b"".join([data[:header], pointer, body, padding, directory]), orientation if orientation <= 8 else 1
    )


def _check_coding(tag: int, value: int) -> None:
    if tag == 259 and value not in _COMPRESSIONS:
        raise UnknownFormatError(f"it is a TIFF with compression {value}; save it with LZW, deflate or none")
    if tag == 262 and value not in _PHOTOMETRICS:
        raise UnknownFormatError("it is a TIFF of other colours than grey, RGB, palette, CMYK or YCbCr")


# AVIF


def _clean_avif(data: bytes) -> Cleaned:
    """As it is: libavif has limits of its own. Rotation is a property of the picture here, which the decoder reads."""
    return Cleaned("AVIF", data, None)


_CLEANERS: Final[dict[Kind, Callable[[bytes], Cleaned]]] = {
    "JPEG": _clean_jpeg,
    "PNG": _clean_png,
    "WEBP": _clean_webp,
    "BMP": _clean_bmp,
    "GIF": _clean_gif,
    "TIFF": _clean_tiff,
    "AVIF": _clean_avif,
}
