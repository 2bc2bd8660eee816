"""Boxes and affine maps between the frames of the project, and the one pixel convention that all of them share.

Convention
    Coordinates are continuous. Pixel ``i`` covers the interval ``[i, i + 1)`` and its centre lies at ``i + 0.5``; an
    image of width W and height H spans ``[0, W] x [0, H]``; x points right, y points down. A resize by ``s`` is then
    exactly ``x * s``, a mirror is ``W - x``, and no half-pixel term appears anywhere except where values are sampled
    (`service.pose.preprocessing`) or written (`service.pose.heatmaps`).

Frames
    ``image``    the picture as a person sees it, in pixels;
    ``input``    the model's input crop, in pixels;
    ``heatmap``  cells of a belief map: input coordinates divided by the stride.

Only arithmetic on points and boxes happens here. Pixels are moved by `service.pose.preprocessing`.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box: left edge, top edge, width and height, in continuous pixels of one frame."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @classmethod
    def around(cls, points: FloatArray) -> Self:
        """The tight box around points [K, 2] (x, y). Raises ValueError if there are none."""
        if len(points) == 0:
            raise ValueError("a box needs at least one point")
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return cls(float(left), float(top), float(right - left), float(bottom - top))

    def scaled(self, factor: float) -> "Box":
        """The box with the same centre and both sides multiplied by `factor`."""
        centre_x, centre_y = self.centre
        width, height = self.width * factor, self.height * factor
        return Box(centre_x - width / 2, centre_y - height / 2, width, height)

    def squared(self) -> "Box":
        """The smallest square with the same centre that contains the box."""
        side = max(self.width, self.height)
        centre_x, centre_y = self.centre
        return Box(centre_x - side / 2, centre_y - side / 2, side, side)

    def clipped(self, width: float, height: float) -> "Box":
        """The part of the box inside an image of this size; its sides are 0 where nothing is left."""
        left, top = min(max(self.x, 0.0), width), min(max(self.y, 0.0), height)
        right = min(max(self.x + self.width, left), width)
        bottom = min(max(self.y + self.height, top), height)
        return Box(left, top, right - left, bottom - top)


def turn_to_upright(along: FloatArray) -> float:
    """The turn, in radians clockwise on the screen, after which a direction [2] (x, y) points up.

    In (-pi, pi]; 0 where the direction has no length.
    """
    return -math.atan2(float(along[0]), -float(along[1])) if np.any(along) else 0.0


@dataclass(frozen=True, slots=True)
class Affine:
    """An affine map of the plane, ``(x, y) -> (a x + b y + c, d x + e y + f)``, from one frame to another."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    @classmethod
    def identity(cls) -> Self:
        return cls(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    @classmethod
    def scaling(cls, x: float, y: float | None = None) -> Self:
        return cls(x, 0.0, 0.0, 0.0, x if y is None else y, 0.0)

    @classmethod
    def translation(cls, x: float, y: float) -> Self:
        return cls(1.0, 0.0, x, 0.0, 1.0, y)

    @classmethod
    def rotation(cls, radians: float) -> Self:
        """Rotation about the origin; positive angles turn x towards y, that is clockwise on the screen."""
        cos, sin = float(np.cos(radians)), float(np.sin(radians))
        return cls(cos, -sin, 0.0, sin, cos, 0.0)

    @classmethod
    def mirror(cls, width: float) -> Self:
        """Left-right mirror of an image `width` pixels wide."""
        return cls(-1.0, 0.0, width, 0.0, 1.0, 0.0)

    def then(self, following: "Affine") -> "Affine":
        """The map that applies this one first and `following` second."""
        n, m = following, self
        return Affine(
            n.a * m.a + n.b * m.d,
            n.a * m.b + n.b * m.e,
            n.a * m.c + n.b * m.f + n.c,
            n.d * m.a + n.e * m.d,
            n.d * m.b + n.e * m.e,
            n.d * m.c + n.e * m.f + n.f,
        )

    @property
    def determinant(self) -> float:
        return self.a * self.e - self.b * self.d

    @property
    def scale(self) -> float:
        """Length in the target frame of one unit of the source frame (the geometric mean over directions)."""
        return math.sqrt(abs(self.determinant))

    def inverse(self) -> "Affine":
        """The map back. Raises ValueError where the map flattens the plane and none exists."""
        det = self.determinant
        if det == 0.0 or not math.isfinite(det):
            raise ValueError("this affine map has no inverse")
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def apply(self, points: FloatArray) -> NDArray[np.float64]:
        """Map points [..., 2] (x, y) of the source frame to float64 points [..., 2] of the target frame."""
        mapped: NDArray[np.float64] = np.asarray(points, np.float64) @ ((self.a, self.d), (self.b, self.e))
        mapped += (self.c, self.f)
        return mapped

    def coefficients(self) -> tuple[float, float, float, float, float, float]:
        return self.a, self.b, self.c, self.d, self.e, self.f


def crop_affine(
    box_in_image: Box, input_size: tuple[int, int], *, radians: float = 0.0, mirrored: bool = False
) -> Affine:
    """The map from image to input that shows a box as large as possible, centred, without distortion (letterbox).

    Args:
        box_in_image: what the crop must contain; both sides positive.
        input_size: (width, height) of the model's input in pixels.
        radians: how far the picture is turned about the box's centre (positive: clockwise on the screen).
        mirrored: whether the crop is then mirrored left to right.

    Raises:
        ValueError: if the box has no area or is not finite.
    """
    sides = (box_in_image.width, box_in_image.height)
    if not (all(map(math.isfinite, (box_in_image.x, box_in_image.y, *sides))) and min(sides) > 0):
        raise ValueError(f"a crop needs a finite box with positive sides, got {box_in_image}")
    width, height = input_size
    scale = min(width / box_in_image.width, height / box_in_image.height)
    centre_x, centre_y = box_in_image.centre
    image_to_input = Affine.translation(-centre_x, -centre_y).then(Affine.scaling(scale))
    if radians:
        image_to_input = image_to_input.then(Affine.rotation(radians))
    image_to_input = image_to_input.then(Affine.translation(width / 2, height / 2))
    return image_to_input.then(Affine.mirror(width)) if mirrored else image_to_input
