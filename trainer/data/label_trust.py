"""How much each label counts in the loss: hidden keypoints and hands whose labels scatter count less."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.sample import Sample


@dataclass(frozen=True, slots=True)
class LabelTrust:
    """How much labels count in the loss.

    Attributes:
        hidden: weight of a labelled keypoint that is not visible (v = 1), relative to one that is (v = 2).
        half_at_spread: the `spread` at which all labels of a hand count half; None lets every hand count fully.
    """

    hidden: float = 1.0
    half_at_spread: float | None = None

    def weights(self, sample: Sample) -> NDArray[np.float32]:
        """Weight of each of a sample's 22 maps: float32 [22], 0 where the map is unknown.

        The map of a keypoint that is not labelled is unknown, and so is the background of a hand that has one, because
        the missing keypoint may be anywhere in it. Were all known maps trusted fully, the weights would have mean 1.
        """
        known = np.append(sample.labelled, sample.labelled.all())
        trust = np.append(np.where(sample.visible, 1.0, self.hidden), 1.0)
        if self.half_at_spread is not None and sample.spread is not None:
            trust = trust / (1.0 + (sample.spread / self.half_at_spread) ** 2)
        return np.where(known, trust * (len(known) / max(1, known.sum())), 0.0).astype(np.float32)


FULL_TRUST: Final = LabelTrust()
"""Every known label counts alike."""
