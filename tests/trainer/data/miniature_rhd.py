"""Writes a miniature RHD in the original layout: drawn hands instead of rendered ones, everything else as in the set.

Every finger is drawn in a colour of its own, darker from base to tip, so that a test can ask the picture whether a
keypoint lies on the right bone.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.pose.keypoints import SKELETON_EDGES
from trainer.data.rhd import TO_BASE_FIRST
from trainer.data.sample import Handedness

SIDE = 320
FINGER_COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200))
PALM_COLOUR = (120, 90, 80)


@dataclass(frozen=True)
class DrawnHand:
    """Keypoints [21, 2] of one hand in the picture, base to tip."""

    keypoints: NDArray[np.float64]
    handedness: Handedness


def draw_hand_keypoints(
    rng: np.random.Generator, handedness: Handedness, centre: tuple[float, float], size: float
) -> DrawnHand:
    """An open hand, fingers up, seen from its back: a left hand has its thumb on the right."""
    angles = np.radians([-60.0, -20.0, 0.0, 18.0, 38.0]) + rng.normal(0.0, 0.05, 5)
    points = [np.zeros(2)]
    for angle in angles:
        direction = np.array([np.sin(angle), -np.cos(angle)])
        points.extend(direction * size * reach for reach in (0.45, 0.65, 0.85, 1.0))
    table = np.stack(points)
    if handedness == "left":
        table[:, 0] = -table[:, 0]
    return DrawnHand(table + np.array(centre), handedness)


def write_miniature_rhd(
    folder: Path, *, training: int = 8, evaluation: int = 4, seed: int = 0
) -> dict[str, Handedness]:
    """Writes both parts; returns which hand is the sample of each picture, by name (`training/color/00000.png`)."""
    expected: dict[str, Handedness] = {}
    for part, count in (("training", training), ("evaluation", evaluation)):
        rng = np.random.default_rng((seed, count))
        annotations: dict[int, dict[str, Any]] = {}
        for kind in ("color", "mask", "depth"):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            larger: Handedness = "left" if number % 2 else "right"
            expected[f"{part}/color/{number:05d}.png"] = larger
            hands = [
                draw_hand_keypoints(rng, "left", (90.0, 200.0), 110.0 if larger == "left" else 50.0),
                draw_hand_keypoints(rng, "right", (230.0, 200.0), 110.0 if larger == "right" else 50.0),
            ]
            colour, mask, depth = _pictures(hands)
            for kind, picture in (("color", colour), ("mask", mask), ("depth", depth)):
                picture.save(folder / part / kind / f"{number:05d}.png")
            annotations[number] = _annotation(hands)
        (folder / part / f"anno_{part}.pickle").write_bytes(pickle.dumps(annotations, protocol=2))
    return expected


def finger_at(picture: Image.Image, point: NDArray[np.float64]) -> int | None:
    """Which finger (0 thumb to 4 little) is drawn at a point of a miniature picture, or None."""
    pixel = picture.getpixel((int(point[0]), int(point[1])))
    return FINGER_COLOURS.index(pixel) if pixel in FINGER_COLOURS else None


def _pictures(hands: list[DrawnHand]) -> tuple[Image.Image, Image.Image, Image.Image]:
    colour, mask = Image.new("RGB", (SIDE, SIDE), (30, 60, 30)), Image.new("L", (SIDE, SIDE), 1)
    depth = np.zeros((SIDE, SIDE, 3), np.uint8)
    depth[..., 0], depth[..., 1] = 26, 100  # (26 * 256 + 100) / 65535 * 5 m
    for first_class, hand in zip((2, 18), hands, strict=True):
        for start, end in SKELETON_EDGES:
            finger = (end - 1) // 4
            line = [tuple(hand.keypoints[start]), tuple(hand.keypoints[end])]
            fill = PALM_COLOUR if start == 0 else FINGER_COLOURS[finger]
            ImageDraw.Draw(colour).line(line, fill=fill, width=9)
            ImageDraw.Draw(mask).line(line, fill=first_class + finger, width=9)
        for keypoint, (x, y) in enumerate(hand.keypoints.tolist()):
            fill = PALM_COLOUR if keypoint == 0 else FINGER_COLOURS[(keypoint - 1) // 4]
            ImageDraw.Draw(colour).ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill)
    return colour, mask, Image.fromarray(depth)


def _annotation(hands: list[DrawnHand]) -> dict[str, NDArray[Any]]:
    camera = np.array([[299.0, 0.0, 160.0], [0.0, 299.0, 160.0], [0.0, 0.0, 1.0]], np.float32)
    uv_vis, xyz = np.zeros((42, 3), np.float32), np.zeros((42, 3), np.float32)
    for offset, hand in zip((0, 21), hands, strict=True):
        rows = TO_BASE_FIRST + offset
        uv_vis[rows, :2] = hand.keypoints
        uv_vis[rows, 2] = 1.0
        uv_vis[rows[20], 2] = 0.0  # the little fingertip is hidden
        homogeneous = np.concatenate((hand.keypoints, np.ones((21, 1))), axis=1)
        xyz[rows] = 0.6 * homogeneous @ np.linalg.inv(camera).T
    return {"uv_vis": uv_vis, "xyz": xyz, "K": camera}
