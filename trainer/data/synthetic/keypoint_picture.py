"""Draws where the 21 keypoints lie: a rendered open hand with their numbers, for the documents.

python -m trainer.data.synthetic.keypoint_picture docs/images/keypoints.jpg
"""

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from service.pose.geometry import Box
from service.pose.keypoints import SKELETON_EDGES
from trainer.data.synthetic.annotate import VISIBLE, HandLabel
from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.generate import Sources, build_stock
from trainer.data.synthetic.renderer import Renderer
from trainer.data.synthetic.sample import Sample, finish, sample_generator
from trainer.data.synthetic.scene import Scene, compose

_SIDE: Final = 64  # of the scenes looked through
_LARGER: Final = 10
_SEED: Final = 1


def open_hand() -> tuple[Sample, HandLabel]:
    """The first rendered open hand that stands upright in its picture with every keypoint in sight."""
    stock, renderer = build_stock(Sources()), Renderer(_LARGER * _SIDE, _LARGER * _SIDE)
    try:
        for index in count():
            rng = sample_generator(_SEED, index)
            scene = compose(stock, "crop", _SIDE, rng)
            if len(scene.hands) > 1 or not _is_open_and_upright(scene.camera.project(scene.hands[0].keypoints)):
                continue
            sample = finish(_larger(scene), renderer, "crop", rng)
            if sample.labels and (sample.labels[0].visibility == VISIBLE).all():
                return sample, sample.labels[0]
        raise AssertionError("there is no end of samples")
    finally:
        renderer.close()


def _larger(scene: Scene) -> Scene:
    camera, size = scene.camera, _LARGER * _SIDE
    background = Image.fromarray(scene.background).resize((size, size), Image.Resampling.BICUBIC)
    return replace(
        scene,
        camera=Camera(_LARGER * camera.focal, _LARGER * camera.centre_x, _LARGER * camera.centre_y, size, size),
        background=np.asarray(background),
    )


def _is_open_and_upright(points: npt.NDArray[np.float64]) -> bool:
    along = points[9] - points[0]
    palm = float(np.linalg.norm(along))
    return bool(
        abs(along[0]) < -0.3 * along[1]
        and np.linalg.norm(points[5] - points[17]) > 0.6 * palm
        and np.linalg.norm(points[[8, 12, 16, 20]] - points[0], axis=1).min() > 1.5 * palm
        and np.linalg.norm(points[4] - points[5]) > 0.6 * palm
        and points.min() > 0.05 * _SIDE
        and points.max() < 0.95 * _SIDE
    )


def draw(sample: Sample, label: HandLabel) -> Image.Image:
    """The picture with keypoints and their numbers."""
    picture = Image.fromarray(sample.image)
    pen = ImageDraw.Draw(picture)
    points = [(float(x), float(y)) for x, y in label.keypoints_in_image]
    for a, b in SKELETON_EDGES:
        pen.line([points[a], points[b]], fill="white", width=2)
    for number, (x, y) in enumerate(points):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="red", outline="white")
        pen.text((x + 8, y - 10), str(number), fill="white", stroke_width=2, stroke_fill="black", font_size=18)
    shown = Box.around(label.keypoints_in_image).squared().scaled(1.4)
    return picture.crop((round(shown.x), round(shown.y), round(shown.x + shown.width), round(shown.y + shown.height)))


if __name__ == "__main__":
    draw(*open_hand()).save(Path(sys.argv[1]), quality=85)
