"""Image files made on the spot."""

import io

from PIL import ExifTags, Image

RED = (255, 0, 0)
WHITE = (255, 255, 255)


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
