r"""The standard network after `further_coarse`: its stages 2 and 3, where they stood, on the features as they are now.

    python -m trainer train --config further_coarse_standard --warm-start runs/mine \
        --stages trainer/weights/standard.npz --data coco:HANDS --holdout REGEX --run mine-standard
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further_coarse import CONFIG as LIGHTWEIGHT
from trainer.configs.further_standard import CONFIG as STANDARD

CONFIG: TrainConfig = replace(
    STANDARD, minutes=30.0, learning_rate=5e-4, augment=LIGHTWEIGHT.augment, validate_minutes=15.0, seed=10
)
