"""Hands in a whole picture: what the hand detector says of them, and what it means in the picture.

The detector sees the picture letterboxed into a square. It answers with a fixed number of rows, best first; rows of
score 0 are no hands. It may say the same hand twice.
"""

from typing import Final

DETECTION_COLUMNS: Final = ("score", "x", "y", "size", "cos", "sin", "right")
"""The values of a row.

    score     in [0, 1], how likely it is a hand
    x, y      middle of the hand's upright box, in continuous pixels of the input
    size      longer side of that box, in pixels of the input; the box is tight around the 21 keypoints after the hand
              was turned so that wrist -> middle_mcp points up
    cos, sin  direction of wrist -> middle_mcp in the input (x right, y down), a unit vector
    right     in [0, 1], how likely it is a right hand, as literally seen
"""

DETECTIONS: Final = 16
"""Rows for each picture."""
