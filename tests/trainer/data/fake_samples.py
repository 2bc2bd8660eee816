"""Drawn samples for tests of what comes after the readers."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.geometry import Box
from trainer.data.sample import Handedness, Sample


def fake_sample(
    *,
    image_path: Path = Path("missing.png"),
    keypoints: NDArray[np.float64] | None = None,
    labelled: NDArray[np.bool_] | None = None,
    handedness: Handedness | None = "right",
    name: str = "picture.png",
    source: str = "fake",
) -> Sample:
    """A sample whose keypoints form a ring unless they are given."""
    if keypoints is None:
        angles = np.linspace(0, 2 * np.pi, 21, endpoint=False)
        keypoints = np.stack((60 + 25 * np.cos(angles), 50 + 25 * np.sin(angles)), axis=1)
    labelled = np.ones(21, bool) if labelled is None else labelled
    return Sample(
        image_path=image_path,
        keypoints_in_image=np.where(labelled[:, None], keypoints, 0.0),
        labelled=labelled,
        visible=labelled,
        box_in_image=Box.around(keypoints[labelled]),
        handedness=handedness,
        source=source,
        name=name,
    )


def dotted_sample(folder: Path, number: int = 0, *, size: tuple[int, int] = (120, 100)) -> Sample:
    """A sample whose picture shows a white dot at keypoint `number` and nothing else."""
    sample = fake_sample(image_path=folder / f"dot{number}.png", name=f"dot{number}.png")
    pixels = np.zeros((size[1], size[0], 3), np.float64)
    x, y = sample.keypoints_in_image[number]
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    pixels[:] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))[..., None]
    Image.fromarray(pixels.round().astype(np.uint8)).save(sample.image_path)
    return sample
