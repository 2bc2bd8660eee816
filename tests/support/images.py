"""Image files made on the spot."""

import io
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image

RED = (255, 0, 0)
WHITE = (255, 255, 255)

PNG_MODES: Final = (
    "1",
    "L",
    "LA",
    "P",
    "P with transparent colours",
    "RGB",
    "RGB with a transparent colour",
    "RGBA",
    "I;16",
)
"""The kinds of pixels that a PNG may have."""


def picture(width: int = 80, height: int = 60, colour: tuple[int, int, int] = (120, 90, 60)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (width, height), colour)


def marked_picture(
    width: int, height: int, mark: tuple[int, int, int, int], colour: tuple[int, int, int] = WHITE
) -> Image.Image:
    """A picture of one colour with a red box (left, top, right, bottom) on it; see `hand_where_crop_is_marked`."""
    result = picture(width, height, colour)
    result.paste(RED, mark)
    return result


def image_bytes(image: Image.Image | None = None, kind: str = "PNG", *, orientation: int | None = None) -> bytes:
    """An image file. `orientation` writes the EXIF tag (1 to 8) without moving a pixel."""
    buffer = io.BytesIO()
    image = image or picture()
    if orientation is None:
        image.save(buffer, kind)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of random pixels, transparent in places if its mode can be."""
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65_536, size[::-1], np.uint16))
    picture = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(
        mode.split(" ", maxsplit=1)[0]
    )
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(random.integers(0, 256, size[::-1], np.uint8)))
    return picture


def as_file(picture: Image.Image, kind: str, orientation: int = 1, **options: Any) -> bytes:
    """A file of this kind, with an orientation in EXIF; `options` are Pillow's."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def as_png(mode: str, size: tuple[int, int], seed: int, orientation: int) -> bytes:
    """A PNG of random pixels of one of `PNG_MODES`."""
    transparent: dict[str, dict[str, Any]] = {
        "P with transparent colours": {"transparency": bytes(range(255, -1, -1))},
        "RGB with a transparent colour": {"transparency": (1, 2, 3)},
    }
    return as_file(noise(mode, size, seed), "PNG", orientation, **transparent.get(mode, {}))


def jpeg_in_scans(image: Image.Image, number: int) -> bytes:
    """A sequential JPEG whose three components have a scan each, of which the last is there `number` - 2 times."""
    buffers = [io.BytesIO() for _ in range(3)]
    for plane, buffer in zip(image.convert("YCbCr").split(), buffers, strict=True):
        plane.save(buffer, "JPEG", quality=95)
    files = [buffer.getvalue() for buffer in buffers]
    frame, first = files[0].index(b"\xff\xc0"), files[0].index(b"\xff\xda")
    size, tables = files[0][frame + 4 : frame + 9], files[0][frame + 13 : first]  # of a frame with one component
    components = b"".join(bytes((index, 0x11, 0)) for index in (1, 2, 3))
    scans = [
        b"\xff\xda\x00\x08\x01" + bytes((index, 0, 0, 63, 0)) + file[file.index(b"\xff\xda") + 10 : -2]
        for index, file in enumerate(files, start=1)
    ]
    head = files[0][:frame] + b"\xff\xc0\x00\x11" + size + b"\x03" + components + tables
    return head + b"".join(scans[:2]) + scans[2] * (number - 2) + b"\xff\xd9"
