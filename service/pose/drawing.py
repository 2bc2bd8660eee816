"""Draws hands on pictures: a colour for each finger, fainter where the model is less sure."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.pose.keypoints import SKELETON_EDGES, finger_of

FINGER_COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "wrist": (240, 240, 240),
    "thumb": (239, 71, 111),
    "index": (255, 159, 28),
    "middle": (131, 197, 50),
    "ring": (17, 170, 222),
    "little": (157, 100, 255),
}
"""RGB colours that stay apart on skin and for the common forms of colour blindness."""

_RIM: Final = (20, 20, 20)
_BOX: Final = (255, 255, 255)
_OVERSAMPLING: Final = 2  # ImageDraw has no anti-aliasing of its own
_OVERSAMPLED_PIXELS: Final = 4_000_000  # a larger overlay is smooth enough to the eye without, and costs memory
_FAINTEST: Final = 0.25  # opacity of a keypoint of score 0: low scores are shown, not hidden


@dataclass(frozen=True, slots=True)
class HandTag:
    """What is written at a hand's box.

    Attributes:
        score: of the hand, in [0, 1].
        side: "left" or "right"; None where it is not known.
    """

    score: float
    side: str | None = None

    def __str__(self) -> str:
        return f"{self.side[0].upper()} {self.score:.2f}" if self.side else f"{self.score:.2f}"


def draw_hand(
    picture: Image.Image,
    keypoints_in_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    tag: HandTag | None = None,
) -> Image.Image:
    """A copy of the picture with the skeleton of one hand on it, and with its box where it has a tag.

    Args:
        picture: RGB.
        keypoints_in_image: [21, 2], (x, y) in the picture's continuous pixel coordinates.
        scores: [21] in [0, 1]; the opacity of each keypoint and of the edge that leads to it.
        tag: side and score, written at the box around the keypoints.
    """
    extent = float(np.ptp(keypoints_in_image, axis=0).max())
    radius = max(2.0, 0.016 * max(extent, 0.25 * min(picture.size)))
    # The overlay covers the hand only: a large photo need not be doubled in size.
    margin = 4 * radius
    left, top = np.floor(keypoints_in_image.min(axis=0) - margin).astype(int).clip(0, picture.size).tolist()
    right, bottom = np.ceil(keypoints_in_image.max(axis=0) + margin).astype(int).clip(0, picture.size).tolist()
    result = picture.copy()
    if left >= right or top >= bottom:
        return result

    size = (right - left, bottom - top)
    finer = _OVERSAMPLING if size[0] * size[1] <= _OVERSAMPLED_PIXELS else 1
    overlay = Image.new("RGBA", (size[0] * finer, size[1] * finer))
    draw = ImageDraw.Draw(overlay)
    points = (np.asarray(keypoints_in_image, np.float64) - (left, top)) * finer
    alphas = (255 * (_FAINTEST + (1 - _FAINTEST) * np.clip(scores, 0.0, 1.0))).astype(int).tolist()
    thick = max(2, round(radius * finer))

    for outline in (True, False):  # dark rims first, so that they never cover a coloured line
        for start, end in SKELETON_EDGES:
            colour = _RIM if outline else FINGER_COLOURS[finger_of(end)]
            ends = [tuple(points[start]), tuple(points[end])]
            draw.line(ends, fill=(*colour, alphas[end]), width=thick + 4 if outline else thick)
        for keypoint, (x, y) in enumerate(points.tolist()):
            colour = _RIM if outline else FINGER_COLOURS[finger_of(keypoint)]
            reach = thick + 2 if outline else thick
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*colour, alphas[keypoint]))

    overlay = overlay.resize(size, Image.Resampling.BOX)
    result.paste(overlay, (left, top), overlay)
    if tag is not None:
        _draw_box(result, keypoints_in_image, radius, str(tag))
    return result


def _draw_box(picture: Image.Image, keypoints_in_image: NDArray[np.floating], radius: float, text: str) -> None:
    """A thin box around the keypoints with a text above it, or inside where there is no room above."""
    draw = ImageDraw.Draw(picture)
    margin = 3 * radius
    left, top = (keypoints_in_image.min(axis=0) - margin).clip(0, np.array(picture.size) - 1).tolist()
    right, bottom = (keypoints_in_image.max(axis=0) + margin).clip(0, np.array(picture.size) - 1).tolist()
    line = max(1, round(radius / 3))
    draw.rectangle((left - line, top - line, right + line, bottom + line), outline=_RIM, width=3 * line)
    draw.rectangle((left, top, right, bottom), outline=_BOX, width=line)
    font = ImageFont.load_default(max(10.0, 5 * radius))
    text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
    width, height = text_right - text_left + 6 * line, text_bottom - text_top + 6 * line
    x = max(0.0, min(left, picture.width - width))
    y = top - height if top >= height else top
    draw.rectangle((x, y, x + width, y + height), fill=_RIM)
    draw.text((x + 3 * line - text_left, y + 3 * line - text_top), text, fill=_BOX, font=font)
