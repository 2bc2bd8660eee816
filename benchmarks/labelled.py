"""Labelled hands to compare keypoints with, and what a model finds of them."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_servers.work import Run
from service.pose.geometry import Box
from service.pose.heatmaps import decode
from service.pose.images import DecodedImage
from service.pose.preprocessing import crop
from trainer.data.coco import read_coco
from trainer.data.sample import Sample

NEAR = (0.1, 0.2)
"""Distances from the label over the longer side of the hand's box, below which a keypoint is near."""


def labelled_hands(data: Path, names: str) -> list[Sample]:
    """Hands of a data set in COCO form whose picture's name matches. Raises SystemExit where there are none."""
    samples = [sample for sample in read_coco(data) if re.search(names, sample.name)]
    if not samples:
        raise SystemExit(f"{data} has no picture whose name matches {names!r}")
    return samples


def labelled_box(sample: Sample) -> Box:
    """The box of its labelled keypoints, in the image."""
    return Box.around(sample.keypoints_in_image[sample.labelled])


def find(run: Run, size: int, image: DecodedImage, region: Box) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Keypoints [21, 2] in the image, and their scores [21], by a model whose crops have this size."""
    shown = crop(image, region, (size, size))
    found = decode(run(shown.pixels[None]))
    return shown.to_image(found.in_input[0]), found.scores[0]


def shares_near(samples: Sequence[Sample], found: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Shares of labelled keypoints that were found near their labels, for each of `NEAR`."""
    away = []
    for sample, keypoints in zip(samples, found, strict=True):
        box = labelled_box(sample)
        distances = np.linalg.norm(keypoints - sample.keypoints_in_image, axis=-1)[sample.labelled]
        away.append(distances / max(box.width, box.height))
    return {str(limit): round(float((np.concatenate(away) < limit).mean()), 4) for limit in NEAR}
