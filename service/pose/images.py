"""From the bytes of an image file to upright RGB pixels: the one decoder behind every way to hand over a picture.

The format is found from the content, never from a file name or a declared type. What no picture needs is left out
before a decoder reads the file (`service.pose.containers`). Size, and the memory that decoding will take, are known
from the header, before any pixel is decoded. Orientation is applied, so that coordinates are those of the picture as a
person sees it; so is a colour profile, so that colours are those of the picture as a screen shows it.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pi_heif import HeifImageFile
from PIL import Image, ImageCms, ImageFile

from service.pose.containers import (
    MAX_PROFILE_BYTES,
    Cleaned,
    cleaned,
    orientation_in,
)
from service.pose.formats import BrokenContainerError, UnknownFormatError
from service.pose.geometry import Affine

FORMATS: Final = ("JPEG", "PNG", "WebP", "AVIF", "HEIC")
"""Formats that are read. Of an animation the first frame counts, of several pictures the main one."""

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
_ALPHA_MODES: Final = frozenset({"LA", "RGBA", "RGBa", "PA"})
_READ_MODES: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"}) | _ALPHA_MODES
_ARRAYS: Final = frozenset({("uint8", ()), ("uint8", (3,)), ("uint8", (4,)), ("uint16", ())})  # type and channels
_PROFILE_SPACES: Final = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}

_RGB_BYTES: Final = 4  # of a pixel of three or four channels, as Pillow holds it
_STRIP_BYTES: Final = 16 * _STRIP_PIXELS  # with its conversions
_FILLER: Final = b"\x55" * 64


class ImageError(ValueError):
    """The content is not an image that is read. The message can be shown to the sender."""


class UnsupportedImageError(ImageError):
    """The content is not of one of `FORMATS`, or is a rare kind of one that is not read."""


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
        enough_pixels: the longer side need not have more; see `open_image`.

    Raises:
        UnsupportedImageError: not one of `FORMATS`.
        BrokenImageError: truncated or damaged.
        ImageTooLargeError: more than `max_pixels`.
    """
    longest_side = None if enough_pixels is None else lambda _size: enough_pixels
    return open_image(data, max_pixels=max_pixels, longest_side=longest_side).decode()


@dataclass(frozen=True, slots=True, eq=False)
class OpenedImage:
    """An image file whose header was read. It holds no pixels, and nothing of the file beside its bytes.

    Attributes:
        data: the file.
        width: of the full upright picture, in pixels.
        height: of the full upright picture, in pixels.
        bytes_needed: an upper bound of the memory that `decode` takes at its height, its result included.
        least_size: (width, height) that a JPEG may be reduced to as it is decoded; None: its full size.
    """

    data: bytes
    width: int
    height: int
    bytes_needed: int
    least_size: tuple[int, int] | None

    def decode(self) -> DecodedImage:
        """Decode the pixels.

        Raises:
            BrokenImageError: truncated or damaged.
        """
        try:
            file = cleaned(self.data)
            picture, factor = _open(file, self.least_size)
            orientation = _orientation_of(picture, file)
            picture.load()
            if not file.has_end and not self._is_whole(file, picture):
                raise BrokenImageError("the picture breaks off")
            pixels = _upright(_to_rgb(picture), orientation)
        except MemoryError:
            raise
        except Exception as error:
            raise BrokenImageError(_broken(self.data)) from error
        full = self.width, self.height
        return DecodedImage(pixels, *full, _image_to_pixels(pixels.size, full, factor, orientation))

    def _is_whole(self, file: Cleaned, picture: Image.Image) -> bool:
        """Whether a JPEG without the mark of its end has all of its pixels.

        Then other bytes in front of that mark change nothing; else they are decoded in place of what is missing.
        """
        other = Cleaned(file.kind, file.data[:-2] + _FILLER + file.data[-2:], file.orientation)
        filled, _ = _open(other, self.least_size)
        filled.load()
        rows = range(0, picture.height, 64)
        return all(
            picture.crop(strip).tobytes() == filled.crop(strip).tobytes()
            for strip in ((0, top, picture.width, min(picture.height, top + 64)) for top in rows)
        )


def open_image(
    data: bytes,
    *,
    max_pixels: int = 50_000_000,
    longest_side: Callable[[tuple[int, int]], int] | None = None,
) -> OpenedImage:
    """Read an image file's header.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height that is accepted.
        longest_side: how many pixels the longer side needs, from the (width, height) of the full upright picture. A
            JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that leaves as many, which makes large photos
            cheap. None: all of them.

    Raises:
        As `decode_image`, and whatever `longest_side` raises.
    """
    try:
        file = cleaned(data)
        picture, _ = _open(file, None)
    except UnknownFormatError as error:
        raise _unsupported(str(error)) from error
    except BrokenContainerError as error:
        raise BrokenImageError(f"{_broken(data)}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are allowed") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImageError(_broken(data)) from error
    stored = picture.size
    if math.prod(stored) > max_pixels:
        raise ImageTooLargeError(
            f"the image has {stored[0]} x {stored[1]} = {math.prod(stored)} pixels; at most {max_pixels} are allowed"
        )
    if picture.mode not in _READ_MODES:
        raise _unsupported("its samples have more than 16 bits, or are not colours")
    width, height = stored[::-1] if _orientation_of(picture, file) >= 5 else stored
    enough = None if longest_side is None else longest_side((width, height))
    least = None
    if enough is not None and file.kind == "JPEG":
        shrink = max(1.0, max(stored) / enough)
        least = max(1, round(stored[0] / shrink)), max(1, round(stored[1] / shrink))
        picture.draft(None, least)
    return OpenedImage(data, width, height, _bytes_needed(file, picture, math.prod(stored)), least)


def from_pillow(picture: Image.Image) -> Image.Image:
    """A Pillow image as upright RGB: what decoding its file gives.

    Raises:
        UnsupportedImageError: its mode is none of those that files are read in.
    """
    picture.load()  # Pillow turns a TIFF as it loads it
    if picture.mode == "I" and not (np.asarray(picture) >> 16).any():  # 16-bit grey, as older versions hold it
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    if picture.mode not in _READ_MODES:
        modes = ", ".join(sorted(_READ_MODES))
        raise UnsupportedImageError(
            f"a Pillow image of mode {picture.mode!r} is not read; modes that are: {modes}, and I of 16 bits"
        )
    if 0 in picture.size:
        raise UnsupportedImageError("a Pillow image without pixels is not read")
    orientation = orientation_in(picture.info.get("exif") or b"")
    return _upright(_to_rgb(picture), orientation)


def from_array(pixels: NDArray[np.generic]) -> Image.Image:
    """An array of pixels as RGB: uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, or uint16 [H, W].

    Raises:
        UnsupportedImageError: of another shape or type.
    """
    if pixels.ndim < 2 or (pixels.dtype.name, pixels.shape[2:]) not in _ARRAYS or pixels.size == 0:
        raise UnsupportedImageError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is not read; arrays that are: uint8 [H, W], [H, W, 3] or"
            " [H, W, 4], and uint16 [H, W]"
        )
    return from_pillow(Image.fromarray(np.ascontiguousarray(pixels)))


def _open(file: Cleaned, least_size: tuple[int, int] | None) -> tuple[Image.Image, float]:
    """A picture whose pixels are not decoded yet, and how many times smaller than stored it will be."""
    stream = io.BytesIO(file.data)
    if file.kind == "HEIC":
        return HeifImageFile(stream), 1.0
    picture = Image.open(stream, formats=[file.kind])
    if file.arithmetic and isinstance(picture, ImageFile.ImageFile):
        picture.decodermaxblock = len(file.data)  # libjpeg cannot pause in the middle of it
    stored_width = picture.width
    drafted = picture.draft(None, least_size) if least_size is not None else None
    return picture, 1.0 if drafted is None else stored_width / drafted[1][2]


def _orientation_of(picture: Image.Image, file: Cleaned) -> int:
    return orientation_in(picture.info.get("exif") or b"") if file.orientation is None else file.orientation


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_TURNS[orientation]) if orientation != 1 else picture


def _bytes_needed(file: Cleaned, picture: Image.Image, stored_pixels: int) -> int:
    held = math.prod(picture.size) * _RGB_BYTES
    converts = _orientation_of(picture, file) != 1 or not _is_rgb(picture)
    converted = held + _STRIP_BYTES if converts else 0
    decoder = _decoder_bytes(file, picture, stored_pixels)
    # The decoder of a HEIC is gone before its colours are converted.
    beside = max(decoder, converted) if file.kind == "HEIC" else decoder + converted
    return len(file.data) + held + beside + (0 if file.has_end else held)


def _decoder_bytes(file: Cleaned, picture: Image.Image, pixels: int) -> int:
    """What a format's decoder holds beside its result, as measured on pictures of 12 and 48 megapixels."""
    match file.kind:
        case "JPEG":  # one of several scans is held whole as coefficients of 16 bits, whatever size comes out
            return 2 * len(picture.getbands()) * pixels if file.many_scans else 0
        case "WEBP":
            return 13 * pixels
        case "AVIF":
            return 14 * pixels
        case "HEIC":  # a copy of the file; what is coded, in 16 bits a sample if it has more than 8; and that as RGB
            full_colours, deep = picture.info.get("chroma") == 444, picture.info.get("bit_depth", 8) > 8
            bytes_each: int = 6 + 2 * full_colours + 5 * deep + 3 * (picture.mode in _ALPHA_MODES)
            return len(file.data) + bytes_each * pixels
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
    reason = f"{what_it_is}; " if what_it_is else "the content is not an image of a format that is read; "
    return UnsupportedImageError(f"{reason}send {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _broken(data: bytes) -> str:
    return f"the image could not be decoded: the file ({len(data)} bytes) is truncated or damaged"
