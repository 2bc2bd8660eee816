"""Whatever holds a picture, as the bytes of an image file."""

import io
import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
"""A path, the bytes of an image file, an array uint8 [H, W, 3] RGB or [H, W] grey, or a Pillow image."""

Encoding: TypeAlias = Literal["png", "jpeg"]
"""How pixels travel: "png" exactly, "jpeg" (quality 92) in a fraction of the bytes and of the time."""


def to_file_bytes(image: ImageLike, encoding: Encoding = "png") -> bytes:
    """The bytes of an image file. Files and bytes pass unchanged; arrays and Pillow images are encoded.

    Raises:
        OSError: the path cannot be read.
        TypeError, ValueError: it is nothing that holds a picture, or an array of another shape or type.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _encoded(_from_array(image), encoding)
    if isinstance(image, Image.Image):
        return _encoded(image if image.mode in ("RGB", "L") else image.convert("RGB"), encoding)
    raise TypeError(f"an image is a path, bytes, a NumPy array or a Pillow image, not {type(image).__name__}")


def _from_array(array: NDArray[Any]) -> Image.Image:
    is_grey, is_rgb = array.ndim == 2, array.ndim == 3 and array.shape[-1] == 3
    if array.dtype != np.uint8 or not (is_grey or is_rgb) or array.size == 0:
        raise ValueError(
            f"an array must be uint8 [height, width, 3] RGB or [height, width], got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)


def _encoded(image: Image.Image, encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
