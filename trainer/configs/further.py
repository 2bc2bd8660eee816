r"""Goes on with the weights in the repository, on a processor: more hands at small inputs, which teach most a minute.

    python -m trainer train --config further --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine

For whoever has pictures of their own and no GPU. It ends by the clock (`--minutes`), at 128 pixels, at which the
lightweight weights are served. Half of it is at 96 pixels, where an update costs about a half: the weights that it
first started from found 0.669 of the keypoints of rendered hands within 0.2 of the hand's size there, 0.677 at 160
pixels, so what they had still to learn was seen as well in small pictures.

What came of it: the lightweight weights of the repository, 0.826 of those keypoints instead of 0.677 after 114,112
samples in 84 minutes on two cores (docs/models/lightweight.md). They had their last fifth at 160 pixels, which is left
out here: it was too short to gain anything there (0.786).
"""

from trainer.configs import TrainConfig
from trainer.configs.first import CONFIG as FIRST
from trainer.data.augment import AugmentConfig

CONFIG = TrainConfig(
    variant="lightweight",
    minutes=84.0,
    batch_size=16,
    input_sizes=((0.0, 96), (0.5, 128)),
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
