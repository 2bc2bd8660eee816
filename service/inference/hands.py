"""From belief maps to the hands of a picture."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.inference.estimates import Hand, Handedness
from service.inference.regions import Region
from service.pose.geometry import Box
from service.pose.hands_apart import claimed_twice, duplicates, sizes_of, without
from service.pose.heatmaps import STRIDE, DecodedKeypoints, decode
from service.pose.preprocessing import Crop

_AGAIN: Final = 0.25
"""Of a hand's size: how far about another hand's keypoint a map is not looked at again."""


def hands_in_image(
    crops: Sequence[Crop], belief_maps: Sequence[NDArray[np.float32]], regions: Sequence[Region]
) -> tuple[Hand, ...]:
    """The hand in each crop, its keypoints mapped back to the image.

    A keypoint that the maps place on another of the hands is looked for again elsewhere in its own crop.

    Args:
        crops: N crops.
        belief_maps: for each crop float32 [H / 8, W / 8, 22].
        regions: for each crop, what it shows.
    """
    if not crops:
        return ()
    maps = np.stack(belief_maps)
    found = decode(maps)
    hands = [_hand(crop, found, index, region) for index, (crop, region) in enumerate(zip(crops, regions, strict=True))]
    if len(hands) > 1 and all(region.detection is not None for region in regions):
        hands = _kept_apart(hands, crops, maps, regions)
    return tuple(hands)


def hands_found(hands: Sequence[Hand], min_score: float) -> tuple[Hand, ...]:
    """Of hands that were looked for those that score enough, each once, best first."""
    again = duplicates([hand.keypoints_in_image for hand in hands], [hand.score for hand in hands])
    kept = [hand for index, hand in enumerate(hands) if index not in again and hand.score >= min_score]
    return tuple(sorted(kept, key=lambda hand: -hand.score))


def _hand(crop: Crop, found: DecodedKeypoints, index: int, region: Region) -> Hand:
    keypoints = crop.to_image(found.in_input[index])
    detection = region.detection
    return Hand(
        box_in_image=region.box_in_image if detection is None else Box.around(keypoints),
        keypoints_in_image=keypoints,
        scores=found.scores[index],
        sigmas=found.sigmas[index].astype(np.float64) * (STRIDE * crop.image_pixels_per_input_pixel),
        detection_score=None if detection is None else detection.score,
        handedness=None if detection is None else _side(detection.right),
    )


def _side(right: float) -> Handedness:
    return Handedness("right", right) if right >= 0.5 else Handedness("left", 1.0 - right)


def _kept_apart(
    hands: Sequence[Hand], crops: Sequence[Crop], maps: NDArray[np.float32], regions: Sequence[Region]
) -> list[Hand]:
    """The hands, with every keypoint that lies on another hand looked for once more without that place."""
    keypoints = np.stack([hand.keypoints_in_image for hand in hands])
    again = duplicates(list(keypoints), [hand.score for hand in hands])
    several = [index for index in range(len(hands)) if index not in again]
    centres = np.array([regions[index].shown_in_image.centre for index in several])
    astray = claimed_twice(keypoints[several], centres, sizes_of(keypoints[several]))
    if not astray:
        return list(hands)
    maps = maps.copy()
    for place, keypoint in astray:
        index = several[place]
        crop = crops[index]
        in_heatmap = crop.image_to_input.apply(keypoints[index, keypoint]) / STRIDE
        radius = _AGAIN * sizes_of(keypoints[index : index + 1])[0] * crop.image_to_input.scale / STRIDE
        maps[index, ..., keypoint] = without(maps[index, ..., keypoint], in_heatmap, radius)
    found = decode(maps)
    return [_hand(crop, found, index, region) for index, (crop, region) in enumerate(zip(crops, regions, strict=True))]
