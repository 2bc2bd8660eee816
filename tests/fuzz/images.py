"""Decoding, from the bytes of a file to the model's input. The first byte says how the picture is wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.pose.geometry import Box
from service.pose.images import DecodedImage, ImageError, decode_image
from service.pose.preprocessing import crop, hand_box_to_crop
from tests.fuzz.reading import Reader
from tests.fuzz.targets import Check, FoundError

_MAX_PIXELS: Final = 1_000_000  # what is refused above it is refused in the same place at any limit
_INPUT: Final = (64, 64)


@contextmanager
def opened() -> Iterator[Check]:
    """A check of image files."""
    yield check


def check(data: bytes) -> None:
    """An image file decodes to a picture that can be shown to the model, or is refused with a reason."""
    reader = Reader(data)
    enough = reader.choice((None, 64, 1))
    file = reader.rest()
    try:
        image = decode_image(file, max_pixels=_MAX_PIXELS, enough_pixels=enough)
    except ImageError as error:
        if not str(error):
            raise FoundError("refused without a reason") from error
        return
    _check_picture(image)
    whole = Box(0.0, 0.0, float(image.width), float(image.height))
    for region in (whole, hand_box_to_crop(Box(0.0, 0.0, 1.0, 1.0))):
        shown = crop(image, region, _INPUT)
        assert shown.pixels.shape == (*reversed(_INPUT), 3)
        assert shown.image_to_input.determinant > 0


def _check_picture(image: DecodedImage) -> None:
    assert image.pixels.mode == "RGB"
    assert 1 <= image.width * image.height <= _MAX_PIXELS
    assert 1 <= image.pixels.width <= image.width
    assert 1 <= image.pixels.height <= image.height
    assert image.image_to_pixels.determinant > 0
