"""What the client takes and returns, whichever protocol carried it. Coordinates are pixels of the upright image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client.errors import HandPoseError
from service.client.images import ImageLike
from service.pose.geometry import Box
from service.pose.tracking import OneEuro


@dataclass(frozen=True, slots=True)
class Keypoint:
    """One of the 21 points.

    Attributes:
        id: index in the project's order, 0 to 20.
        name: anatomical name, such as "index_tip".
        x: pixels from the left edge; may lie outside the image.
        y: pixels from the top edge, downwards.
        x_norm: x over the image's width.
        y_norm: y over the image's height.
        score: confidence in [0, 1].
        sigma: standard deviation of the belief about the point, in pixels.
    """

    id: int
    name: str
    x: float
    y: float
    x_norm: float
    y_norm: float
    score: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Handedness:
    """Which hand it is: the anatomical side as literally seen, so that a left hand in a mirror is a right one.

    Attributes:
        label: "left" or "right".
        score: in [0.5, 1], how sure that is.
    """

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand.

    Attributes:
        score: in [0, 1], how likely a hand is there and all 21 keypoints are this one hand's.
        box: with a roi the part of it inside the image; with `whole` the image; else a tight box around the keypoints.
        keypoints: 21 in the project's order.
        handedness: which hand it is; None where it was not looked for: with rois and with `whole`.
        rotation_degrees: how far wrist -> middle_mcp is turned from upright, clockwise on the screen, in [-180, 180).
    """

    score: float
    box: Box
    keypoints: tuple[Keypoint, ...]
    handedness: Handedness | None = None
    rotation_degrees: float = 0.0

    @property
    def points(self) -> NDArray[np.float64]:
        """[21, 2], (x, y) in pixels of the upright image."""
        return np.array([(point.x, point.y) for point in self.keypoints], np.float64)

    @property
    def scores(self) -> NDArray[np.float64]:
        """[21] in [0, 1]."""
        return np.array([point.score for point in self.keypoints], np.float64)


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """What answered: the servable, its version, a label of that version, and the rule that chose it."""

    name: str
    variant: str
    version: int
    label: str | None
    routed_by: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in milliseconds."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float
    detection: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """The hands of one image.

    Attributes:
        image_size: (width, height) of the upright image in pixels.
        hands: with rois one for each, in their order; with `whole` one; else those that were found, best first: none,
            one or several.
    """

    request_id: str
    model: ModelUsed
    image_size: tuple[int, int]
    hands: tuple[Hand, ...]
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model that can be asked.

    Attributes:
        input_size: side of the network's square input, in pixels.
        stride: input pixels per belief-map cell.
        parameters: number of parameters; None where its card does not say.
        created: when it was exported, ISO 8601; may be empty.
        metrics: what was measured with these weights.
    """

    name: str
    variant: str
    version: int
    labels: tuple[str, ...]
    input_size: int
    stride: int
    parameters: int | None
    created: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How the frames of a stream are treated.

    Attributes:
        tracking: take the crop of each frame from the keypoints of the frame before.
        smoothing: parameters of the one-euro filter; None: keypoints as they are found.
        latest_only: answer only the newest frame that has arrived.
        frame_timeout_s: seconds from a frame's arrival to its answer; None: the server's default.
        max_hands: how many hands to look for and to follow, 1 to 16; None: the server's default, 4.
        min_score: hands that are looked for and score less are left out; None: the server's default.
        whole: every frame without rois shows one hand as a whole.
    """

    tracking: bool = True
    smoothing: OneEuro | None = None
    latest_only: bool = False
    frame_timeout_s: float | None = None
    max_hands: int | None = None
    min_score: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stream, where more than its image is known.

    Attributes:
        image: the picture.
        id: returned with the answer; None: frames are counted from 0.
        time_s: when it was taken, on any clock that goes forward; None: when it arrives.
        rois: boxes around the hands, from which tracking starts afresh.
    """

    image: ImageLike
    id: int | None = None
    time_s: float | None = None
    rois: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """What became of one frame: an estimate or an error.

    Attributes:
        frame_id: the frame's id.
        estimate: its hands; None if the frame failed.
        error: why it failed; the stream goes on.
        tracked: whether the crops came from the frame before.
        skipped: frames skipped since the last answer.
        track_ids: one for each hand; the same number while a hand is followed, 0 if it will not be.
    """

    frame_id: int
    estimate: Estimate | None
    error: HandPoseError | None
    tracked: bool = False
    skipped: int = 0
    track_ids: tuple[int, ...] = field(default=())
