"""One labelled hand in one picture: the only type that passes between readers, pipeline and evaluation.

A `Sample` names its picture and does not hold the pixels, so a list of a million samples fits in memory. Readers
convert whatever a data set's file says to the project's conventions (`service.pose.geometry`, `service.pose.keypoints`)
before they build one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_COUNT
from trainer.errors import RefusedError

Handedness = Literal["left", "right"]


class DataError(RefusedError):
    """A data set cannot be read as it is. The message names the file and the reason."""


class BadSampleError(DataError):
    """One sample of a data set is unusable; the rest may be good (`--skip-bad` goes on without it)."""


@dataclass(frozen=True, slots=True, order=True)
class Credit:
    """Where a picture comes from: what licences such as CC BY ask to be named.

    Attributes:
        source: for example the repository, "owner/name".
        licence: as the data set states it.
        author: a person or an account; empty if the data set does not tell.
    """

    source: str
    licence: str
    author: str = ""


class Pictured(Protocol):
    """What belongs to a picture of a data set; `Sample` explains the attributes."""

    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str | None: ...
    @property
    def credit(self) -> Credit | None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One hand.

    Attributes:
        image_path: the picture's file.
        keypoints_in_image: float64 [21, 2], (x, y) in continuous pixels of the upright picture, base to tip. Entries
            that are not labelled hold 0.
        labelled: bool [21], whether the keypoint's position is known.
        visible: bool [21], whether the keypoint can be seen rather than being hidden behind something. Data sets that
            do not tell have every labelled keypoint visible.
        box_in_image: the hand's box; tight about the keypoints unless the data set gives a better one.
        handedness: which hand of its owner, or None if the data set does not tell.
        source: name of the data set, as printed in reports.
        name: path of the picture inside its data set, which splits by file name look at.
        head_size_px: Panoptic's length to divide errors by, pixels of the picture; None for other sets.
        spread: how far several labellings of the hand scatter, over its size; None if the data set does not tell.
        group: people or place of the picture, to keep apart and to take standard errors over; None if not told.
        view: side of the hand that is seen, for example "palm"; None if not told.
        extended: how many fingers are extended, 0 to 5; None if not told.
        credit: where the picture comes from; None if not told.
        weight: how often the hand is drawn in training, relative to the others of its data set.
    """

    image_path: Path
    keypoints_in_image: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    box_in_image: Box
    handedness: Handedness | None
    source: str
    name: str
    head_size_px: float | None = None
    spread: float | None = None
    group: str | None = None
    view: str | None = None
    extended: int | None = None
    credit: Credit | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.keypoints_in_image.shape != (KEYPOINT_COUNT, 2):
            raise BadSampleError(
                f"{self.image_path}: expected {KEYPOINT_COUNT} keypoints of x and y, "
                f"got an array of shape {self.keypoints_in_image.shape}"
            )
        if not self.labelled.any():
            raise BadSampleError(f"{self.image_path}: no keypoint is labelled")
        if not np.isfinite(self.keypoints_in_image).all():
            raise BadSampleError(f"{self.image_path}: a keypoint is not a finite number")
        if not (self.box_in_image.width > 0 and self.box_in_image.height > 0):
            raise BadSampleError(f"{self.image_path}: the hand's box has no area: {self.box_in_image}")
        if not self.weight > 0:
            raise BadSampleError(f"{self.image_path}: the hand's weight must be positive, got {self.weight}")


OnBad = Callable[[BadSampleError], None]
"""What to do about an unusable sample: raise, or note it and return, which leaves the sample out."""


def refuse_bad(error: BadSampleError) -> None:
    """The strict policy: the first unusable sample stops the work."""
    raise error


@dataclass(slots=True)
class SkippedSamples:
    """The lenient policy (`--skip-bad`): leaves unusable samples out, and remembers why.

    Attributes:
        reasons: one message for each sample left out, in the order met.
    """

    reasons: list[str] = field(default_factory=list)

    def __call__(self, error: BadSampleError) -> None:
        self.reasons.append(str(error))

    def summary(self, shown: int = 3) -> str:
        """A line with the count and the first few reasons, or an empty string if nothing was left out."""
        if not self.reasons:
            return ""
        more = ", ..." if len(self.reasons) > shown else ""
        return f"left out {len(self.reasons)} bad samples: {'; '.join(self.reasons[:shown])}{more}"
