"""Where to look again for a hand that was found in a whole picture.

A hand that fills a quarter of the picture has only a quarter of the model's input to be seen in. Its keypoints, found
roughly, say where it is; in a crop about them it is as large as the model knows hands best. What is asked again, and
when there is time for it, is not decided here (`service.inference.predictor`).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box
from service.pose.images import DecodedImage
from service.pose.preprocessing import hand_box_to_crop
from service.pose.tracking import FollowPolicy, box_to_follow

ENOUGH: Final = 1.75
"""How many times the model's input the longer side of a picture should be, to be looked at again closely.

Below 2, so that a photo of 4000 pixels can still be decoded at an eighth of its size for an input of 256."""

LEAST_SHARE: Final = 0.7
"""Share of the first look's score that the second needs to be believed. In a close crop scores are a little lower."""

_CLOSER: Final = 0.8  # a region whose side is above this share of the picture's shows nothing new
_POLICY: Final = FollowPolicy(least_score=0.1, least_keypoint_score=0.05)  # a rough guess may be unsure of itself


def region_to_look_closer(
    keypoints_in_image: NDArray[np.floating], scores: NDArray[np.floating], image_size: tuple[int, int]
) -> Box | None:
    """The square region to show for the hand of these keypoints.

    Args:
        keypoints_in_image: [21, 2], (x, y) in continuous pixels, found in the whole picture.
        scores: [21] in [0, 1].
        image_size: (width, height) of the picture in pixels.

    Returns:
        What a roi about the hand would show; None where the keypoints show no hand, or one that fills the picture.
    """
    box = box_to_follow(keypoints_in_image, scores, image_size, policy=_POLICY)
    if box is None:
        return None
    region = hand_box_to_crop(box)
    return region if region.width <= _CLOSER * max(image_size) else None


def small_copy(image: DecodedImage, longest: int) -> DecodedImage:
    """The picture, held at about `longest` pixels along its longer side: at most 1.5 times as many.

    It is the picture itself where that is small enough.
    """
    factor = round(max(image.pixels.size) / longest)
    if factor < 2:
        return image
    pixels = image.pixels.reduce(factor)
    return DecodedImage(pixels, image.width, image.height, image.image_to_pixels.then(Affine.scaling(1 / factor)))
