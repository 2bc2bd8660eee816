"""Files made to hurt whoever opens them; each is small to send and large to read, or says more than it holds."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Final

from PIL import Image, ImageDraw

_PNG: Final = b"\x89PNG\r\n\x1a\n"


def bomb_png(side: int = 14_000) -> bytes:
    """A black square of one bit a pixel: with the side as it is 24 kB, and 588 MB once it is RGB."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = bytes((1 + (side + 7) // 8) * side)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def wide_jpeg(width: int = 65_500, height: int = 760) -> bytes:
    """As wide as a JPEG can be, and really so."""
    return _saved(Image.new("L", (width, height), 90), "JPEG", quality=30)


def jpeg_that_says(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(_saved(Image.new("RGB", (64, 64), (90, 60, 30)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_with_texts(count: int = 500, unpacked: int = 1 << 20) -> bytes:
    """A small PNG with compressed texts that unpack to a thousand times their size."""
    text = b"Comment\0\0" + zlib.compress(b"a" * unpacked, 9)
    whole = _saved(Image.new("RGB", (64, 64), (90, 60, 30)), "PNG")
    end_of_header = len(_PNG) + 8 + 13 + 4
    return whole[:end_of_header] + _chunk(b"zTXt", text) * count + whole[end_of_header:]


def polyglots() -> list[bytes]:
    """Files that are an image and something else: a page with a script, an archive, a document."""
    jpeg = _saved(Image.new("RGB", (64, 64), (90, 60, 30)), "JPEG")
    page = b"<!doctype html><script>alert(document.domain)</script>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../evil.sh", "#!/bin/sh\n")
    comment = b"\xff\xfe" + struct.pack(">H", len(page) + 2) + page
    return [
        jpeg[:2] + comment + jpeg[2:],
        jpeg + archive.getvalue(),
        b"%PDF-1.7\n" + jpeg,
        b"GIF89a/*" + bytes(8) + b"*/=1;alert(1)//",
        page + jpeg,
    ]


def photo(width: int, height: int) -> bytes:
    """A JPEG that costs what a photo of this size costs."""
    picture = Image.effect_noise((width // 8, height // 8), 60).resize((width, height)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=(200, 150, 120))
    return _saved(picture, "JPEG", quality=90)


def in_a_form(parts: Iterable[tuple[str, bytes]], boundary: str = "hostile") -> bytes:
    """A multipart body of parts: what follows `Content-Disposition: form-data; `, and the content."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    return body + f"--{boundary}--\r\n".encode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _saved(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
