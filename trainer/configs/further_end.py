r"""The lightweight network after `further`, at the size it is served at and without its first two blocks.

    python -m trainer train --config further_end --warm-start runs/mine --data coco:HANDS --holdout REGEX --run mine-end

The rate begins where `further` left it and falls to almost nothing. Blocks 1 and 2 stay as they are: they see the image
at its whole and at half its size, so their gradients are a third of what an update costs.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further import CONFIG as FURTHER

CONFIG: TrainConfig = replace(
    FURTHER,
    minutes=28.0,
    input_sizes=((0.0, 128),),
    frozen_blocks=2,
    learning_rate=4e-4,
    warm_up=0.05,
    final_rate_share=0.01,
    seed=6,
)
