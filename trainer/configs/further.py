r"""Goes on with the weights in the repository, on a processor: more hands at small inputs, which teach most a minute.

    python -m trainer train --config further --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine

For whoever has pictures of their own and no GPU. It ends by the clock (`--minutes`), a fifth of it at 160 pixels, at
which the lightweight weights are served. Half of it is at 96 pixels, where an update costs about a third: the weights
that it first started from found 0.669 of the keypoints of rendered hands within 0.2 of the hand's size there, 0.677 at
160 pixels, so what they had still to learn was seen as well in small pictures.
"""

from trainer.configs import TrainConfig
from trainer.configs.first import CONFIG as FIRST
from trainer.data.augment import AugmentConfig

CONFIG = TrainConfig(
    variant="lightweight",
    minutes=84.0,
    batch_size=16,
    input_sizes=((0.0, 96), (0.5, 128), (0.8, 160)),
    learning_rate=8e-4,
    warm_up=0.03,
    final_rate_share=0.01,
    clip_norm=50.0,
    ema_momentum=0.995,
    precision="mixed_bfloat16",
    augment=AugmentConfig(turn=25.0, any_turn_chance=0.3, shrink=2.2, shrink_skew=3.0),
    holdout=FIRST.holdout,
    seed=3,
)
