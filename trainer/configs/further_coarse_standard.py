r"""The standard network after `further_coarse`: its stages 2 and 3, where they stood, on the features as they are now.

    python -m trainer train --config further_coarse_standard --warm-start runs/mine \
        --stages trainer/weights/standard.npz --data coco:HANDS --holdout REGEX --run mine-standard

What came of it: the standard weights of the repository, 31,456 samples in 30 minutes on two cores without AMX, in
float32. Rendered hands 0.885 within 0.2 of the hand's size (before 0.877), the 19 annotated pictures 0.760 (0.728), in
24 boxes each, with each hand counted once, 0.792 (0.782); held-out photos 0.991 (0.990), but 0.790 under the curve
(0.802).
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further_coarse import CONFIG as LIGHTWEIGHT
from trainer.configs.further_standard import CONFIG as STANDARD

CONFIG: TrainConfig = replace(
    STANDARD, minutes=30.0, learning_rate=5e-4, augment=LIGHTWEIGHT.augment, validate_minutes=15.0, seed=10
)
