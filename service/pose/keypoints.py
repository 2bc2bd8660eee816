"""The keypoint schema: which 21 points make a hand, in which order, and which of them are joined.

The order is wrist, then thumb, index, middle, ring and little finger, each from base to tip. Everything else in the
project (belief-map channels, JSON, training labels) follows it; data sets with another order are converted where they
are read.
"""

from typing import Final

FINGERS: Final = ("thumb", "index", "middle", "ring", "little")

KEYPOINT_NAMES: Final[tuple[str, ...]] = (
    "wrist",
    *("thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip"),
    *(f"{finger}_{part}" for finger in FINGERS[1:] for part in ("mcp", "pip", "dip", "tip")),
)
"""Anatomical names: CMC, MCP, PIP, DIP and IP are the finger joints, named as in anatomy."""

KEYPOINT_COUNT: Final = len(KEYPOINT_NAMES)

CHANNEL_COUNT: Final = KEYPOINT_COUNT + 1
"""Channels of a belief map: the keypoints, then the background."""

SKELETON_EDGES: Final[tuple[tuple[int, int], ...]] = tuple(
    (0 if part == 0 else first + part - 1, first + part) for first in range(1, KEYPOINT_COUNT, 4) for part in range(4)
)
"""Pairs of keypoint indices that are joined, finger by finger, starting at the wrist."""


def finger_of(keypoint: int) -> str:
    """The finger that the keypoint with this index belongs to, or "wrist" for index 0."""
    if not 0 <= keypoint < KEYPOINT_COUNT:
        raise ValueError(f"keypoint index must be in 0..{KEYPOINT_COUNT - 1}, got {keypoint}")
    return "wrist" if keypoint == 0 else FINGERS[(keypoint - 1) // 4]
