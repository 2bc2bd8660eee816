r"""Goes on with the weights in the repository, on a processor: more hands at the size of serving, at a lower rate.

    python -m trainer train --config further --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine

For whoever has pictures of their own and no GPU. It ends by the clock (`--minutes`), a fifth of it at 160 pixels, at
which the lightweight weights are served. It has not been run to its end, so there is no result to state.
"""

from trainer.configs import TrainConfig
from trainer.configs.first import CONFIG as FIRST
from trainer.data.augment import AugmentConfig

CONFIG = TrainConfig(
    variant="lightweight",
    minutes=80.0,
    batch_size=16,
    input_sizes=((0.0, 128), (0.8, 160)),
    learning_rate=6e-4,
    warm_up=0.03,
    final_rate_share=0.01,
    clip_norm=50.0,
    ema_momentum=0.995,
    precision="mixed_bfloat16",
    augment=AugmentConfig(turn=25.0, any_turn_chance=0.3, shrink=2.2, shrink_skew=3.0),
    holdout=FIRST.holdout,
    seed=2,
)
