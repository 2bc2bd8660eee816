"""First weights of the standard network: its stages 2 and 3 alone, on the features of `first`, on two CPU cores."""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.first import CONFIG as LIGHTWEIGHT

CONFIG: TrainConfig = replace(
    LIGHTWEIGHT,
    variant="standard",
    part="stages",
    minutes=22.0,
    input_sizes=((0.0, 128),),
    warm_up=0.05,
    seed=1,
)
