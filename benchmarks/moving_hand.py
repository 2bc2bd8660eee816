"""A rendered video of one moving hand with its exact keypoints: rest, then motion, then rest and motion again.

The hand is composed and drawn by the project's own renderer; what moves is its place and its turn. Noise differs from
frame to frame as a camera's does, so a resting hand's picture is not the same twice.
"""

import argparse
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from trainer.data.synthetic.camera import Camera, euler
from trainer.data.synthetic.generate import Sources, build_stock
from trainer.data.synthetic.renderer import Mesh, Renderer
from trainer.data.synthetic.scene import FIRST_HAND, PERSON, Scene, compose

WIDTH: Final = 640
HEIGHT: Final = 480
FRAME_S: Final = 1 / 30
NOISE: Final = 3.0  # standard deviation, in grey levels
_HAND_SHARE: Final = 0.34  # of the picture's height
_SEEDS_TRIED: Final = 200
_JPEG_QUALITY: Final = 92


@dataclass(frozen=True, slots=True)
class Video:
    """A video and its truth.

    Attributes:
        frames: JPEG files, in order.
        keypoints_in_image: float64 [F, 21, 2], pixels.
        at_rest: bool [F], whether the hand stands still in this frame and stood still in the one before.
    """

    frames: tuple[bytes, ...]
    keypoints_in_image: NDArray[np.float64]
    at_rest: NDArray[np.bool_]


def render(frames: int, seed: int) -> Video:
    """Render the video. It depends on nothing but the seed and the number of frames."""
    stock = build_stock(Sources())
    scene = _plain_scene(stock, seed)
    hand = scene.hands[0].keypoints
    centre = hand.mean(axis=0)
    focal = _HAND_SHARE * HEIGHT * centre[2] / float(np.ptp(hand[:, :2], axis=0).max())
    camera = Camera(focal, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    renderer = Renderer(WIDTH, HEIGHT)
    rng = np.random.default_rng(seed)
    pictures, keypoints, rest = [], [], []
    try:
        for index in track(range(frames), "rendering"):
            turn, place, still = _motion(index * FRAME_S, centre, focal)
            moved = [_moved(mesh, turn, centre, place) for mesh in scene.meshes]
            about = ((scene.shadow_about - centre) @ turn.T + place).astype(np.float32)
            drawn = renderer.render(moved, camera, scene.lighting, about)
            alpha = drawn.colour[..., 3:].astype(np.float32) / 255
            picture = drawn.colour[..., :3] + scene.background[:HEIGHT, :WIDTH] * (1 - alpha)
            picture = picture + rng.normal(0.0, NOISE, picture.shape)
            buffer = io.BytesIO()
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
            pictures.append(buffer.getvalue())
            keypoints.append(camera.project((hand - centre) @ turn.T + place))
            rest.append(still)
    finally:
        renderer.close()
    return Video(tuple(pictures), np.array(keypoints), np.array(rest))


def load_or_render(folder: Path, frames: int, seed: int) -> Video:
    """The video in this folder, rendered if it is not there."""
    truth = folder / f"moving_hand_{seed}_{frames}.npz"
    if not truth.exists():
        folder.mkdir(parents=True, exist_ok=True)
        video = render(frames, seed)
        np.savez(
            truth,
            keypoints=video.keypoints_in_image,
            at_rest=video.at_rest,
            lengths=[len(frame) for frame in video.frames],
            pictures=np.frombuffer(b"".join(video.frames), np.uint8),
        )
        return video
    with np.load(truth) as saved:
        ends = np.cumsum(saved["lengths"])
        data = saved["pictures"].tobytes()
        starts = np.concatenate(([0], ends[:-1]))
        pictures = tuple(data[start:end] for start, end in zip(starts, ends, strict=True))
        return Video(pictures, saved["keypoints"], saved["at_rest"])


def _plain_scene(stock: "object", seed: int) -> Scene:
    """The first composition at or after the seed that shows one whole raised hand with its arm and no more."""
    for offset in range(_SEEDS_TRIED):
        scene = compose(stock, "crop", WIDTH, np.random.default_rng(seed + offset))  # type: ignore[arg-type]
        inside = scene.camera.project(scene.hands[0].keypoints)
        whole = bool(((inside > 0) & (inside < WIDTH)).all())
        raised = bool(np.ptp(inside[:, 1]) * 0.5 < inside[0, 1] - inside[12, 1])  # the wrist below, as before a camera
        plain = all(mesh.instance in (FIRST_HAND, PERSON) for mesh in scene.meshes)
        if whole and raised and plain and len(scene.hands) == 1 and not scene.low_light:
            return scene
    raise RuntimeError(f"no plain scene among {_SEEDS_TRIED} seeds from {seed} on")


def _motion(
    time_s: float, centre: NDArray[np.float64], focal: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Rotation and place of the hand, and whether it is at rest: 4 s of rest, 6 s of motion, and again."""
    phase = time_s % 10.0
    moving = max(0.0, phase - 4.0)
    # Speed rises and falls smoothly, so that nothing jerks when motion begins and ends.
    angle = 2 * np.pi * 3 * (moving / 6.0 - np.sin(2 * np.pi * moving / 6.0) / (2 * np.pi))
    metres_a_pixel = centre[2] / focal
    shift = np.array([190 * np.sin(angle), 85 * np.sin(2 * angle), 0.0]) * metres_a_pixel
    turn = euler(12 * np.sin(angle), 18 * np.sin(2 * angle), 25 * np.sin(angle))
    return turn, np.array([0.0, 0.0, centre[2]]) + shift, moving == 0.0 and phase > FRAME_S


def _moved(mesh: Mesh, turn: NDArray[np.float64], centre: NDArray[np.float64], place: NDArray[np.float64]) -> Mesh:
    return replace(
        mesh,
        vertices=((mesh.vertices - centre) @ turn.T + place).astype(np.float32),
        normals=(mesh.normals @ turn.T).astype(np.float32),
    )


def main() -> None:
    """Render into a folder, and write every n-th frame as a picture to look at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--every", type=int, default=60)
    arguments = parser.parse_args()
    video = load_or_render(arguments.folder, arguments.frames, arguments.seed)
    for index in range(0, len(video.frames), arguments.every):
        (arguments.folder / f"frame_{index:04}.jpg").write_bytes(video.frames[index])


if __name__ == "__main__":
    main()
