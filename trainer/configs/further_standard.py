r"""The standard network after `further_end`: its stages 2 and 3, where they stood, on the features as they are now.

    python -m trainer train --config further_standard --warm-start runs/mine-end --stages trainer/weights/standard.npz \
        --data coco:HANDS --holdout REGEX --run mine-standard
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
