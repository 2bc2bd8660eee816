"""Which format a file is in, told from its content."""

from typing import Final, Literal

Kind = Literal["JPEG", "PNG", "WEBP", "AVIF", "HEIC"]

_NOT_READ: Final = (
    (b"BM", "a BMP"),
    (b"GIF8", "a GIF"),
    ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "a TIFF, or a raw photo in the form of one"),
    ((b"FUJIFILMCCD-RAW", b"IIU\x00", b"IIRO", b"MMOR", b"FOVb", b"\x00MRM"), "a raw photo"),
    ((b"\xff\x0a", b"\x00\x00\x00\x0cJXL "), "a JPEG XL"),
    ((b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000"),
    ((b"\x1a\x45\xdf\xa3", b"RIFF", b"\x00\x00\x01\xba", b"OggS", b"FLV"), "a video or sound"),
    (b"%PDF", "a PDF"),
    ((b"<svg", b"<?xml", b"\xef\xbb\xbf<svg", b"\xef\xbb\xbf<?xml"), "an SVG or another XML file"),
    (b"8BPS", "a Photoshop file"),
    (b"\x1f\x8b", "compressed by gzip"),
)
"""How files begin that people send and that are not read. Raw photos of most makers are TIFF files."""

_HEIC_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
)


class UnknownFormatError(ValueError):
    """The content is of a format that is not read; the message says which, where that is known."""


class BrokenContainerError(ValueError):
    """The file is not put together as its format demands, or far more complicated than a picture needs."""


def kind_of(data: bytes) -> Kind:
    """The format of a file.

    Raises:
        UnknownFormatError: it is not read.
        BrokenContainerError: it begins almost like one that is.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _kind_of_media(data)
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        raise BrokenContainerError("its first bytes are damaged")
    for start, name in _NOT_READ:
        if data.startswith(start):
            raise UnknownFormatError(f"it is {name}")
    raise UnknownFormatError("")


def _kind_of_media(data: bytes) -> Kind:
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4]), len(data), 256), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIC_BRANDS:
        return "HEIC"
    raise UnknownFormatError("it is a raw photo" if b"crx " in brands else "it is a video")
