"""From the bytes of an image file to upright RGB pixels, and nothing else.

The format is found from the content, never from a file name or a declared type, and only formats of the list below are
tried. Size is checked from the header, before any pixel is decoded. Orientation stored in EXIF is applied, so that
coordinates are those of the picture as a person sees it.
"""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from service.pose.geometry import Affine

FORMATS: Final[tuple[str, ...]] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that are read, by Pillow's names. Of an animation the first frame counts."""

_OPAQUE_MODES: Final = frozenset({"1", "L", "RGB", "CMYK", "YCbCr", "LAB", "HSV"})
_SIGNATURES: Final = (b"\xff\xd8", b"\x89PNG", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
_ORIENTATION_TAG: Final = int(ExifTags.Base.Orientation)
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the value of its EXIF orientation tag."""
_LEFT_WAS_RIGHT_OR_BOTTOM: Final = frozenset({2, 3, 6, 7})  # orientations whose left edge is stored last
_TOP_WAS_RIGHT_OR_BOTTOM: Final = frozenset({3, 4, 7, 8})
_PAPER: Final = (255, 255, 255)  # what shows through transparent pixels


class ImageError(ValueError):
    """The bytes are no image that we read. The message can be shown to whoever sent them."""


class UnsupportedImageError(ImageError):
    """The content is not of one of `FORMATS`."""


class BrokenImageError(ImageError):
    """The content begins like an image of a known format but does not decode."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than are allowed."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright picture, perhaps held at a lower resolution than the file has.

    Attributes:
        pixels: RGB, 8 bits a channel.
        width: width of the full upright picture, in pixels. Coordinates refer to it, whatever `pixels` holds.
        height: height of the full upright picture, in pixels.
        image_to_pixels: the map from coordinates in the full picture to coordinates in `pixels`.
    """

    pixels: Image.Image
    width: int
    height: int
    image_to_pixels: Affine = Affine.identity()  # noqa: RUF009 -- a frozen value


def decode_image(data: bytes, *, max_pixels: int = 50_000_000, enough_pixels: int | None = None) -> DecodedImage:
    """Decode an image file into upright RGB.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height that is accepted, read from the header before decoding.
        enough_pixels: if the caller needs no side of the picture longer than this, a JPEG may be decoded at 1/2, 1/4
            or 1/8 of its size, never below this length of the longer side. This makes large photos cheap.

    Raises:
        UnsupportedImageError: not one of `FORMATS`.
        BrokenImageError: truncated or damaged.
        ImageTooLargeError: more than `max_pixels`.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _unreadable(data) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are allowed") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImageError(_broken(data)) from error

    with picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise ImageTooLargeError(
                f"the image has {width} x {height} = {width * height} pixels; at most {max_pixels} are allowed"
            )
        try:
            factor = 1.0 if enough_pixels is None else _decode_smaller(picture, enough_pixels)
            picture.load()
            orientation = _orientation(picture)
            if orientation >= 5:  # a quarter turn
                width, height = height, width
            pixels = _to_rgb(picture)
            if orientation != 1:
                pixels = pixels.transpose(_TURNS[orientation])
        except MemoryError:
            raise
        except Exception as error:
            raise BrokenImageError(_broken(data)) from error
    return DecodedImage(pixels, width, height, _image_to_pixels(pixels.size, (width, height), factor, orientation))


def _decode_smaller(picture: Image.Image, enough_pixels: int) -> float:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size if that is enough; by how much it will be smaller."""
    if picture.format != "JPEG":
        return 1.0
    width, height = picture.size
    shrink = max(1.0, max(width, height) / enough_pixels)
    drafted = picture.draft(None, (round(width / shrink), round(height / shrink)))
    return 1.0 if drafted is None else width / drafted[1][2]


def _image_to_pixels(held: tuple[int, int], full: tuple[int, int], factor: float, orientation: int) -> Affine:
    """The map from the full upright picture to the one that is held, `factor` times smaller.

    The smaller picture has whole pixels only: where a side does not divide by the factor, its last pixel reaches
    beyond the edge. If the picture was then turned, so that this pixel came first, everything is shifted by the excess.
    """
    excess_x, excess_y = held[0] - full[0] / factor, held[1] - full[1] / factor
    return Affine.scaling(1 / factor).then(
        Affine.translation(
            excess_x if orientation in _LEFT_WAS_RIGHT_OR_BOTTOM else 0.0,
            excess_y if orientation in _TOP_WAS_RIGHT_OR_BOTTOM else 0.0,
        )
    )


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or its record is damaged."""
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 -- EXIF is a small file format of its own, and cameras damage it
        return 1
    return value if value in _TURNS else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB, with transparency over white and 16-bit samples scaled rather than clipped."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in _OPAQUE_MODES and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*_PAPER, 255)), layer).convert("RGB")


def _unreadable(data: bytes) -> ImageError:
    """Why nothing could be opened: a known format that is damaged, or no known format at all."""
    is_webp_or_avif = (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:12] in (
        b"ftypavif",
        b"ftypavis",
    )
    if is_webp_or_avif or data.startswith(_SIGNATURES):
        return BrokenImageError(_broken(data))
    return UnsupportedImageError(f"the content is not an image of a supported format ({', '.join(FORMATS)})")


def _broken(data: bytes) -> str:
    return f"the image could not be decoded: the file ({len(data)} bytes) is truncated or damaged"
