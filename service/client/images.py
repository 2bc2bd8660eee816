"""Whatever holds a picture, as the bytes of an image file."""

import io
import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.images import from_array, from_pillow

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image
"""A path, the bytes of an image file, a Pillow image, or an array: uint8 [H, W, 3] RGB, [H, W, 4] RGBA or [H, W] grey,
or uint16 [H, W]."""

Encoding: TypeAlias = Literal["png", "jpeg"]
"""How pixels travel: "png" exactly, "jpeg" (quality 92) in a fraction of the bytes and of the time."""


def to_file_bytes(image: ImageLike, encoding: Encoding = "png") -> bytes:
    """The bytes of an image file. Files and bytes pass unchanged; arrays and Pillow images are encoded upright.

    Raises:
        OSError: the path cannot be read.
        TypeError: it is nothing that holds a picture.
        ImageError: an array of another shape or type, or a Pillow image of another mode, than are read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _encoded(from_array(image), encoding)
    if isinstance(image, Image.Image):
        return _encoded(from_pillow(image), encoding)
    raise TypeError(f"an image is a path, bytes, a NumPy array or a Pillow image, not {type(image).__name__}")


def _encoded(image: Image.Image, encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
