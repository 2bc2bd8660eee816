r"""The standard network after `further`: its stages 2 and 3, where they stood, on the features as they are now.

    python -m trainer train --config further_standard --warm-start runs/mine --stages trainer/weights/standard.npz \
        --data coco:HANDS --holdout REGEX --run mine-standard

What came of it: the standard weights of the repository, 31,232 samples in 28 minutes on two cores
(docs/models/standard.md). Its loss was still falling, so more time would help.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further import CONFIG as LIGHTWEIGHT

CONFIG: TrainConfig = replace(
    LIGHTWEIGHT,
    variant="standard",
    part="stages",
    minutes=28.0,
    input_sizes=((0.0, 128),),
    warm_up=0.05,
    seed=4,
)
