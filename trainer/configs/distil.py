r"""Trains the lightweight network further with the standard network as its teacher.

    KERAS_BACKEND=jax python -m trainer train --config distil --warm-start runs/light --teacher runs/standard \
        --data coco:HANDS --holdout REGEX --run light-distilled

Half of every target is the teacher's belief map. A third of `default`'s updates, at the full input size, from a lower
rate; by the same arithmetic about 12 minutes on an H100, teacher included. Whether it helps is not measured yet:
`reproduce` measures the network before and after and keeps the better one.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.default import CONFIG as DEFAULT

CONFIG: TrainConfig = replace(
    DEFAULT,
    steps=8_000,
    input_sizes=((0.0, 256),),
    learning_rate=3e-4,
    distil_weight=0.5,
    seed=1,
)
