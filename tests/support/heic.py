"""HEIC files made on the spot: the boxes of ISO/IEC 23008-12 around pictures coded by x265."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import numpy as np
from PIL import Image

_PARAMETER_SETS = (32, 33, 34)  # NAL units of video, sequence and picture parameters


def box(kind: bytes, content: bytes) -> bytes:
    """A box of this four-letter type."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def full_box(kind: bytes, content: bytes, *, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags) + content)


def irot(quarter_turns: int) -> bytes:
    """Turn the picture by so many quarters, anticlockwise."""
    return box(b"irot", bytes((quarter_turns,)))


def imir(axis: int) -> bytes:
    """Mirror the picture: 0 top to bottom, 1 left to right."""
    return box(b"imir", bytes((axis,)))


def ispe(width: int, height: int) -> bytes:
    """What the header says the size is."""
    return full_box(b"ispe", struct.pack(">II", width, height))


def icc(profile: bytes) -> bytes:
    """A colour profile."""
    return box(b"colr", b"prof" + profile)


def nclx(primaries: int = 1, transfer: int = 13, matrix: int = 6, *, full_range: bool = False) -> bytes:
    """Colours by the code points of ISO/IEC 23091-2."""
    return box(b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, full_range << 7))


def auxc(what: bytes) -> bytes:
    """What a picture that belongs to another one is: its alpha, its depth."""
    return full_box(b"auxC", what + b"\0")


ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"


@dataclass(frozen=True)
class Item:
    """A picture of the file, or something else that has a place in it.

    Attributes:
        kind: "hvc1" for a coded picture, "grid" for one of tiles, and so on.
        data: its content.
        properties: the boxes that describe it, in order.
        refers_to: (type of the reference, identifiers) of each reference.
        hidden: it is not shown by itself.
    """

    kind: bytes
    data: bytes
    properties: Sequence[bytes] = ()
    refers_to: Sequence[tuple[bytes, Sequence[int]]] = field(default=())
    hidden: bool = False

    @property
    def place(self) -> int:
        """Where its content is: 0 in the file, 1 among the tables, where phones store how tiles are put together."""
        return int(self.kind == b"grid")


def coded(
    picture: Image.Image, *more: bytes, bits: int = 8, stated: tuple[int, int] | None = None, **named: bool
) -> Item:
    """A picture (RGB or L) as an item, with more properties after its size.

    Args:
        picture: of at least 16 x 16 pixels.
        more: further properties.
        bits: of each sample, 8 or 10.
        stated: the size in the header; None: the true one.
        named: further attributes of the item.
    """
    configuration, data = _hevc(picture, bits)
    return Item(b"hvc1", data, [configuration, ispe(*(stated or picture.size)), *more], **named)  # type: ignore[arg-type]


def grid(tiles: tuple[int, int], size: tuple[int, int], identifiers: Sequence[int], *more: bytes) -> Item:
    """A picture of (columns, rows) of tiles."""
    columns, rows = tiles
    data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    return Item(b"grid", data, [ispe(*size), *more], [(b"dimg", identifiers)])


def belongs_to(item: int, picture: Image.Image, what: bytes, reference: bytes = b"auxl") -> Item:
    """Another picture of an item's: its transparency, its depth, its thumbnail ("thmb")."""
    other = coded(picture, auxc(what), hidden=True)
    return replace(other, refers_to=[(reference, [item])])


def heic(*items: Item, primary: int = 1, brand: bytes = b"heic") -> bytes:
    """A file of items, which are numbered from 1; the primary one is what programs show."""
    properties = list(dict.fromkeys(each for item in items for each in item.properties))
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + b"".join(struct.pack(">H", 0x8000 | properties.index(each) + 1) for each in item.properties)
        for number, item in enumerate(items, 1)
    )
    entries = b"".join(
        full_box(b"infe", struct.pack(">HH4s", number, 0, item.kind) + b"\0", version=2, flags=int(item.hidden))
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
        for number, item in enumerate(items, 1)
        for kind, targets in item.refers_to
    )
    start = box(b"ftyp", brand + bytes(4) + b"mif1heic")

    def meta(first: int) -> bytes:
        places, at = b"", {0: first, 1: 0}
        for number, item in enumerate(items, 1):
            places += struct.pack(">HHHHII", number, item.place, 0, 1, at[item.place], len(item.data))
            at[item.place] += len(item.data)
        return full_box(
            b"meta",
            full_box(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + full_box(b"pitm", struct.pack(">H", primary))
            + full_box(b"iloc", struct.pack(">HH", 0x4400, len(items)) + places, version=1)
            + full_box(b"iinf", struct.pack(">H", len(items)) + entries)
            + (full_box(b"iref", references) if references else b"")
            + box(
                b"iprp",
                box(b"ipco", b"".join(properties))
                + full_box(b"ipma", struct.pack(">I", len(items)) + associations, flags=1),
            )
            + box(b"idat", content[1]),
        )

    content = {place: b"".join(item.data for item in items if item.place == place) for place in (0, 1)}
    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", content[0])


def _hevc(picture: Image.Image, bits: int) -> tuple[bytes, bytes]:
    """The configuration box and the coded picture: almost without loss, its colours not subsampled."""
    layout = {"L": "gray", "RGB": "yuv444p"}[picture.mode] + ("10le" if bits == 10 else "")
    frame = av.VideoFrame.from_ndarray(np.asarray(picture), {"L": "gray", "RGB": "rgb24"}[picture.mode])
    frame = frame.reformat(format=layout, dst_colorspace="ITU601", dst_color_range="MPEG")
    codec = av.CodecContext.create("libx265", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt, codec.time_base = *picture.size, layout, Fraction(1, 25)
    codec.options = {"x265-params": "log-level=none:keyint=1:crf=4:pools=1:frame-threads=1:info=0"}
    stream = b"".join(bytes(packet) for each in (frame, None) for packet in codec.encode(each))
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]
    sets = [unit for number in _PARAMETER_SETS for unit in units if unit[0] >> 1 == number]
    profile = sets[1].replace(b"\0\0\3", b"\0\0")[3:15]
    chroma, depth = (0 if picture.mode == "L" else 3), bits - 8
    configuration = (
        b"\1"
        + profile
        + struct.pack(">HBBBBHBB", 0xF000, 0xFC, 0xFC | chroma, 0xF8 | depth, 0xF8 | depth, 0, 0x0F, len(sets))
    )
    for unit in sets:
        configuration += struct.pack(">BHH", 0x80 | unit[0] >> 1, 1, len(unit)) + unit
    data = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if unit[0] >> 1 < 32)
    return box(b"hvcC", configuration), data
