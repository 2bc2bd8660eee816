"""From a rendered scene to labels: keypoints as on photos, visibility from the depth picture, boxes and masks."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.hands import Handedness
from trainer.data.synthetic.renderer import Rendered

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

OUTSIDE: Final = 0
OCCLUDED: Final = 1
VISIBLE: Final = 2
# Rounding of the depth picture and skin that bulges beyond the flesh measured at rest.
_DEPTH_SLACK: Final = 0.003


# Where photo sets label three keypoints, as seen from the rig's joints: shares of wrist -> middle_mcp and of
# little_mcp -> index_mcp. Measured against MediaPipe's labels; the other eighteen agree within a share of 0.045.
_LABELLED_AWAY_FROM_JOINT: Final = {0: (0.197, -0.013), 1: (0.096, 0.132), 2: (0.067, 0.058)}
_WRIST, _INDEX_MCP, _MIDDLE_MCP, _LITTLE_MCP = 0, 5, 9, 17


def as_labelled_on_photos(joints: Doubles) -> Doubles:
    """The keypoints [21, 3] of a hand whose rig has these joints [21, 3], in any frame and for either hand.

    wrist, thumb_cmc and thumb_mcp move within the palm's plane; the other eighteen are the joints themselves.
    """
    along = joints[_MIDDLE_MCP] - joints[_WRIST]
    across = joints[_INDEX_MCP] - joints[_LITTLE_MCP]
    keypoints = joints.copy()
    for keypoint, (share_along, share_across) in _LABELLED_AWAY_FROM_JOINT.items():
        keypoints[keypoint] += share_along * along + share_across * across
    return keypoints


@dataclass(frozen=True)
class PlacedHand:
    """A hand in the camera frame, metres."""

    handedness: Handedness
    instance: int
    keypoints: Doubles  # [21, 3] as they are labelled
    flesh: Floats  # [21]
    skin: Floats  # [K, 3] vertices of the hand without the arm
    label: str


@dataclass(frozen=True)
class HandLabel:
    """What is written down for one hand."""

    handedness: Handedness
    keypoints_in_image: Doubles  # [21, 2] pixels, also for points outside the image
    visibility: Ints  # [21] OUTSIDE, OCCLUDED or VISIBLE
    keypoints_in_camera: Doubles  # [21, 3] metres
    box_in_image: tuple[float, float, float, float]  # x, y, w, h of the whole hand, clipped to the image
    area: int  # pixels of the mask
    instance: int
    label: str


def visibility(keypoints: Doubles, flesh: Floats, points: Doubles, depth: Floats) -> Ints:
    """Visibility [21] of camera-frame keypoints [21, 3] that project to `points` [21, 2], by the depth picture [H, W].

    A keypoint lies inside the flesh. It is visible when the first surface at its pixel is at most its own flesh in
    front of it (so it is the skin over it), and occluded when something nearer covers it.
    """
    height, width = depth.shape
    result = np.full(len(keypoints), OUTSIDE, np.int32)
    inside = (points >= 0).all(axis=1) & (points[:, 0] < width) & (points[:, 1] < height) & (keypoints[:, 2] > 0)
    column, row = (np.floor(points[inside, i]).astype(np.int64) for i in (0, 1))
    gap = keypoints[inside, 2] - depth[row, column]
    result[inside] = np.where(gap <= flesh[inside] + _DEPTH_SLACK, VISIBLE, OCCLUDED)
    return result


def label_hand(hand: PlacedHand, camera: Camera, rendered: Rendered) -> HandLabel | None:
    """The label of a hand, or None when no pixel of it is seen."""
    area = int((rendered.instance == hand.instance).sum())
    if area == 0:
        return None
    points = camera.project(hand.keypoints)
    in_front = hand.skin[hand.skin[:, 2] > 0.01]
    outline = camera.project(in_front)
    low = np.clip(outline.min(axis=0), 0.0, [camera.width, camera.height])
    high = np.clip(outline.max(axis=0), 0.0, [camera.width, camera.height])
    if (high - low).min() < 1.0:
        return None
    return HandLabel(
        handedness=hand.handedness,
        keypoints_in_image=points,
        visibility=visibility(hand.keypoints, hand.flesh, points, rendered.depth),
        keypoints_in_camera=hand.keypoints,
        box_in_image=(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])),
        area=area,
        instance=hand.instance,
        label=hand.label,
    )
