"""Hands in turned pictures, to see how well a network finds them however the picture lies.

The pixels themselves are turned, so that an evaluation includes the second resampling that a turned crop costs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from service.pose.geometry import Box, crop_affine
from service.pose.preprocessing import hand_box_to_crop, show
from trainer.data.pipeline import ImageStore
from trainer.data.sample import Sample

TURNS: Final = tuple(range(0, 360, 45))
_REACH: Final = 1.5
"""Side of a turned picture over that of the hand's crop: room for the crop in any direction."""


def turned(sample: Sample, store: ImageStore, degrees: float, path: Path) -> Sample:
    """The sample in a picture of its own, written to `path` (.png), turned clockwise about the hand's box."""
    region = hand_box_to_crop(sample.box_in_image).scaled(_REACH)
    side = max(1, round(region.width))
    to_turned = crop_affine(region, (side, side), radians=np.deg2rad(degrees))
    pixels = show(store.get(sample.image_path), to_turned, (side, side))
    Image.fromarray(pixels).save(path, compress_level=1)
    keypoints = np.where(sample.labelled[:, None], to_turned.apply(sample.keypoints_in_image), 0.0)
    return replace(
        sample,
        image_path=path,
        keypoints_in_image=keypoints,
        box_in_image=Box.around(keypoints[sample.labelled]),
    )
