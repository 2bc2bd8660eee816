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
