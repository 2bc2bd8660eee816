"""From the bytes of an image file to upright RGB pixels, and nothing else.

The format is found from the content, never from a file name or a declared type. What no picture needs is left out
before a decoder looks at the file (`service.pose.containers`). Size, and the memory that decoding will take, are known
from the header, before any pixel is decoded. Orientation stored in EXIF is applied, so that coordinates are those of
the picture as a person sees it; so is a colour profile, so that colours are those of the picture as a screen shows it.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from service.pose.containers import (
    MAX_PROFILE_BYTES,
    BrokenContainerError,
    Cleaned,
    Kind,
    UnknownFormatError,
    cleaned,
    orientation_in,
)
from service.pose.geometry import Affine

FORMATS: Final[tuple[Kind, ...]] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that are read, by Pillow's names. Of an animation the first frame counts, of several pages the first."""

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

_STRIP_PIXELS: Final = 1 << 20  # converted at a time, so that no second picture of the whole size is needed
_ALPHA_MODES: Final = frozenset({"LA", "La", "RGBA", "RGBa", "PA"})
_READ_MODES: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"}) | _ALPHA_MODES
_PROFILE_SPACES: Final = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}

_QUICK_BYTES: Final = 128 * 1024
_QUICK_PIXELS: Final = 640 * 480
_QUICK_SIDE: Final = 1024  # of a thin picture a decoder makes far more pixels than there are
_QUICK_MODES: Final = frozenset({"RGB", "L"})
_START_OF_A_JPEG: Final = b"\xff\xd8\xff"

_RGB_BYTES: Final = 4  # of a pixel of three or four channels, as Pillow holds it
_STRIP_BYTES: Final = 16 * _STRIP_PIXELS  # with its conversions


class ImageError(ValueError):
    """The bytes are no image that we read. The message can be shown to whoever sent them."""


class UnsupportedImageError(ImageError):
    """The content is not of one of `FORMATS`, or of a rare sort of one that is not read."""


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
        enough_pixels: see `OpenedImage.shrink`.

    Raises:
        UnsupportedImageError: not one of `FORMATS`.
        BrokenImageError: truncated or damaged.
        ImageTooLargeError: more than `max_pixels`.
    """
    opened = open_image(data, max_pixels=max_pixels)
    if enough_pixels is not None:
        opened.shrink(enough_pixels)
    return opened.decode()


def is_short_photo(data: bytes) -> bool:
    """Whether it begins like a JPEG of at most 128 KiB, of which the header is soon read, whatever is in it."""
    return len(data) <= _QUICK_BYTES and data.startswith(_START_OF_A_JPEG)


def open_image(data: bytes, *, max_pixels: int = 50_000_000) -> "OpenedImage":
    """Read an image file's header. Arguments and errors are those of `decode_image`."""
    try:
        file = cleaned(data)
    except UnknownFormatError as error:
        raise _unsupported(str(error)) from error
    except BrokenContainerError as error:
        raise BrokenImageError(f"{_broken(data)}: {error}") from error
    try:
        picture = Image.open(io.BytesIO(file.data), formats=[file.kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are allowed") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImageError(_broken(data)) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} = {width * height} pixels; at most {max_pixels} are allowed"
        )
    if picture.mode not in _READ_MODES:
        raise _unsupported("its samples have more than 16 bits, or are no colours")
    return OpenedImage(picture, file, data)


class OpenedImage:
    """An image file whose header was read, and which can be decoded once.

    Attributes:
        width: of the full upright picture, in pixels.
        height: of the full upright picture, in pixels.
    """

    def __init__(self, picture: Image.Image, file: Cleaned, data: bytes) -> None:
        self._picture: Image.Image | None = picture
        self._data: bytes | None = data
        self._least: tuple[int, int] | None = None  # (width, height) that a JPEG is drafted at
        self._needed = 0  # while it is set aside
        self._file_bytes = len(file.data)
        self._kind = file.kind
        self._many_scans = file.many_scans
        self._baseline = file.baseline
        self._full = picture.size
        self._factor = 1.0
        in_exif = orientation_in(picture.info.get("exif", b"")) if file.orientation is None else file.orientation
        self._orientation = in_exif if in_exif in _TURNS else 1
        turned = self._orientation >= 5
        self.width, self.height = self._full[::-1] if turned else self._full

    def shrink(self, enough_pixels: int) -> None:
        """Allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, which makes large photos cheap.

        Args:
            enough_pixels: the longer side of the picture need not be longer than this; it never becomes shorter.
        """
        if self._kind != "JPEG" or self._picture is None:
            return
        width, height = self._full
        shrink = max(1.0, max(width, height) / enough_pixels)
        self._least = max(1, round(width / shrink)), max(1, round(height / shrink))
        drafted = self._picture.draft(None, self._least)
        self._factor = 1.0 if drafted is None else width / drafted[1][2]

    def set_aside(self) -> None:
        """Hold nothing of its own until it is decoded: the file as a decoder gets it is a copy, as long as the file."""
        if self._picture is not None:
            self._needed = self.bytes_needed
            self._picture = None

    @property
    def is_quick(self) -> bool:
        """Whether decoding it takes a few milliseconds at the most: a short baseline JPEG of at most 640 x 480 pixels.

        Neither side is longer than 1024 pixels, and its colours need no profile.
        """
        if not self._baseline or self._picture is None or self._file_bytes > _QUICK_BYTES:
            return False
        plain = self._picture.mode in _QUICK_MODES and not self._picture.info.get("icc_profile")
        return plain and math.prod(self._full) <= _QUICK_PIXELS and max(self._full) <= _QUICK_SIDE

    @property
    def bytes_needed(self) -> int:
        """An upper bound of the memory that `decode` takes at its height, in bytes, its result included."""
        if self._picture is None:
            return self._needed
        full, held = math.prod(self._full), math.prod(self._picture.size)
        beside = _decoder_bytes(self._kind, self._picture, full, many_scans=self._many_scans)
        needed = self._file_bytes + beside + held * _RGB_BYTES
        if self._orientation != 1 or not _is_rgb(self._picture):
            needed += held * _RGB_BYTES + _STRIP_BYTES
        return needed

    def decode(self) -> DecodedImage:
        """Decode the pixels.

        Raises:
            BrokenImageError: truncated or damaged.
        """
        if self._data is None:
            raise ValueError("the image was decoded already")
        data, picture = self._data, self._picture
        self._data, self._picture, self._needed = None, None, 0
        try:
            if picture is None:
                picture = self._opened_again(data)
            del data
            picture.load()
            pixels = _to_rgb(picture)
            del picture
            if self._orientation != 1:
                pixels = pixels.transpose(_TURNS[self._orientation])
        except MemoryError:
            raise
        except Exception as error:
            raise BrokenImageError(_broken_after(self._file_bytes)) from error
        full = (self.width, self.height)
        to_pixels = _image_to_pixels(pixels.size, full, self._factor, self._orientation)
        return DecodedImage(pixels, *full, to_pixels)

    def _opened_again(self, data: bytes) -> Image.Image:
        picture = Image.open(io.BytesIO(cleaned(data).data), formats=[self._kind])
        if self._least is not None:
            picture.draft(None, self._least)
        return picture


def _decoder_bytes(kind: Kind, picture: Image.Image, pixels: int, *, many_scans: bool) -> int:
    """What a format's decoder holds beside its result, as measured (`benchmarks/decoding.py`)."""
    match kind:
        case "JPEG":  # one of several scans is held whole as coefficients of 16 bits, whatever size comes out
            return 2 * len(picture.getbands()) * pixels if many_scans else 0
        case "WEBP":
            return 13 * pixels
        case "AVIF":
            return 14 * pixels
        case "TIFF":  # a strip may be the whole picture
            return 8 * pixels
        case _:
            return 0


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


# Colours


def _is_rgb(picture: Image.Image) -> bool:
    """Whether its pixels are sRGB as they are."""
    return picture.mode == "RGB" and "transparency" not in picture.info and not picture.info.get("icc_profile")


def _to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit sRGB: transparency over white, 16-bit samples scaled rather than clipped, the colour profile applied."""
    if _is_rgb(picture):
        return picture
    has_alpha = picture.mode in _ALPHA_MODES or "transparency" in picture.info
    to_srgb = _profile_to_srgb(picture)
    if picture.mode == "RGB" and not has_alpha and to_srgb is None:
        return picture
    width, height = picture.size
    rgb = Image.new("RGB", picture.size, _PAPER)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        mask = None
        if picture.mode.startswith("I;16"):
            strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
        elif has_alpha:
            strip = strip.convert("RGBA")
            alpha = strip.getchannel("A")
            mask = None if alpha.getextrema() == (255, 255) else alpha
        if to_srgb is not None:
            strip = to_srgb(strip)
        rgb.paste(strip.convert("RGB"), (0, top), mask)
    return rgb


def _profile_to_srgb(picture: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """How a strip of the picture gets from its embedded profile's colours to sRGB; None if it has them already.

    Profiles that are damaged, or for other colours than the picture has, are ignored, as browsers do.
    """
    profile = picture.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE_BYTES:
        return None
    mode = {"CMYK": "CMYK", "L": "L", "1": "L", "LA": "L", "I;16": "L", "I;16B": "L"}.get(picture.mode, "RGB")
    if profile[16:20].decode("latin-1") != _PROFILE_SPACES[mode]:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None

    def to_srgb(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip.convert(mode), transform)
        return converted if converted is not None else strip

    return to_srgb


# Words


def _unsupported(what_it_is: str) -> UnsupportedImageError:
    reason = f": {what_it_is}" if what_it_is else ""
    return UnsupportedImageError(f"the content is not an image of a supported format ({', '.join(FORMATS)}){reason}")


def _broken(data: bytes) -> str:
    return _broken_after(len(data))


def _broken_after(size: int) -> str:
    return f"the image could not be decoded: the file ({size} bytes) is truncated or damaged"
