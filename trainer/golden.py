"""Golden answers: what a servable answers for a few pictures, kept in its model card.

`python -m service models promote` shows a model server the same pictures before a label moves, and refuses a version
that does not answer as its card says. The pictures are those in `trainer/golden_pictures`, small so that a card stays
small. Each is shown as the service shows a picture without a roi: whole. Only pictures that the network answers
steadily are taken: one whose answer jumps when its pixels change by nearly nothing would fail on another processor.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.detections import DETECTION_COLUMNS, detections_in_image, distinct
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import ImageError, decode_image
from service.pose.preprocessing import Crop, crop
from trainer.errors import RefusedError

TOLERANCE: Final = 0.02
"""Largest distance of a keypoint from its place that the check allows, over the picture's longer side."""

_SIDE_PX: Final = 256
_JPEG_QUALITY: Final = 85
_JPEG_MARK: Final = b"\xff\xd8\xff"
_NOISE_LEVELS: Final = 2
"""Grey levels by which pixels are changed to see whether an answer is steady: what another JPEG decoder may differ."""

_LEAST_SCORE: Final = 0.5
"""Of the detector's hands that are kept."""
_UNSURE: Final = 0.05
"""How close to that a score of a steady answer must not be."""

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Answer = Callable[[NDArray[np.float32], Crop, float], dict[str, Any] | None]
"""What is kept of a servable's outputs for the picture and for the picture with its pixels disturbed, [2, ...].

It also gets how the picture was shown, and its longer side; None if both answers are not the same."""


def golden_pictures() -> list[Path]:
    """The pictures that ship with the trainer for this, by name."""
    return sorted((Path(__file__).parent / "golden_pictures").glob("*.jpg"))


def steady_keypoints(belief_maps: NDArray[np.float32], shown: Crop, longer_side: float) -> dict[str, Any] | None:
    """`keypoints`, 21 of (x, y) in pixels of the picture, of belief maps float32 [2, S/8, S/8, 22] (`Answer`)."""
    in_image = shown.to_image(decode(belief_maps).in_input)
    moved = float(np.linalg.norm(in_image[0] - in_image[1], axis=-1).max()) / longer_side
    if moved > TOLERANCE / 2:
        return None
    return {"keypoints": [[round(float(x), 3), round(float(y), 3)] for x, y in in_image[0]]}


def steady_hands(rows: NDArray[np.float32], shown: Crop, longer_side: float) -> dict[str, Any] | None:
    """`hands`, each (x, y, size, cos, sin, right) in pixels of the picture, of detections [2, 16, 7] (`Answer`).

    They are the rows of score 0.5 and more, best first. Of a picture where one is a second one of the same hand,
    nothing is kept: then it does not matter whether a reader leaves such rows out.
    """
    if (np.abs(rows[..., DETECTION_COLUMNS.index("score")] - _LEAST_SCORE) < _UNSURE).any():
        return None
    sure = [each[each[:, DETECTION_COLUMNS.index("score")] >= _LEAST_SCORE].astype(np.float64) for each in rows]
    if len(sure[0]) != len(sure[1]) or len(distinct(detections_in_image(sure[0], shown.image_to_input))) < len(sure[0]):
        return None
    places = [
        np.concatenate([shown.to_image(each[:, 1:3]), each[:, 3:4] * shown.image_pixels_per_input_pixel], axis=1)
        for each in sure
    ]
    moved = np.abs(places[0] - places[1]) / longer_side
    turned = np.abs(sure[0][:, 4:] - sure[1][:, 4:])
    if max(moved.max(initial=0.0), turned.max(initial=0.0)) > TOLERANCE / 2:
        return None
    hands = np.concatenate([places[0], sure[0][:, 4:]], axis=1)
    return {"hands": np.round(hands, 4).tolist()}


def golden_answers(
    predict: Predict, pictures: Sequence[Path], input_size: int, answer: Answer = steady_keypoints
) -> dict[str, Any] | None:
    """The card's `golden`: small copies of the pictures and what was found on them; None if no answer is steady.

    Args:
        predict: the servable; crops uint8 RGB [N, S, S, 3] to what `answer` takes.
        pictures: image files.
        input_size: side S in pixels at which it is served.
        answer: what is kept of its outputs.

    Returns:
        `images`, each with `image` (a JPEG file, base64) and what `answer` gives, and `tolerance`.

    Raises:
        RefusedError: a picture cannot be read.
    """
    images = []
    for path in pictures:
        data = _small_copy(path)
        shown, longer_side = _as_shown(data, input_size)
        noise = np.random.default_rng(0).integers(-_NOISE_LEVELS, _NOISE_LEVELS + 1, shown.pixels.shape)
        disturbed = np.clip(shown.pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        kept = answer(predict(np.stack((shown.pixels, disturbed))), shown, longer_side)
        if kept is not None:
            images.append({"image": base64.b64encode(data).decode("ascii"), **kept})
    return {"images": images, "tolerance": TOLERANCE} if images else None


def _small_copy(path: Path) -> bytes:
    """The picture as a JPEG file, no side longer than `_SIDE_PX`; the file itself if it is one already."""
    try:
        data = path.read_bytes()
        picture = decode_image(data).pixels
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise RefusedError(f"{path}: {error}") from error
    if data.startswith(_JPEG_MARK) and max(picture.size) <= _SIDE_PX:
        return data
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _as_shown(data: bytes, input_size: int) -> tuple[Crop, float]:
    """The whole picture as the model sees it, and the picture's longer side."""
    image = decode_image(data, enough_pixels=input_size)
    whole = Box(0.0, 0.0, float(image.width), float(image.height))
    return crop(image, whole, (input_size, input_size)), float(max(image.width, image.height))
