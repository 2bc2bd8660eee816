r"""The standard network after `further_end`: its stages 2 and 3, where they stood, on the features as they are now.

    python -m trainer train --config further_standard --warm-start runs/mine-end --stages trainer/weights/standard.npz \
        --data coco:HANDS --holdout REGEX --run mine-standard

What came of it: 106,400 samples in 34 minutes on two cores with AMX, on the features of `further_end`: 0.877 of those
keypoints instead of 0.824, and 0.802 under the curve instead of 0.743. Its loss was still falling.

From there on, on the lightweight features of two runs later, 28,256 samples in 26 minutes on two cores without AMX made
nothing better: 0.874 and 0.796, and of the annotated photos in 24 boxes each (`evaluate --boxes 24`) 0.736 instead of
0.739. `further_coarse_standard` went on from the former.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further_end import CONFIG as LIGHTWEIGHT

CONFIG: TrainConfig = replace(
    LIGHTWEIGHT,
    variant="standard",
    part="stages",
    minutes=34.0,
    frozen_blocks=0,
    learning_rate=8e-4,
    seed=7,
)
