r"""Goes on with the weights in the repository, on a processor: more hands at small inputs, which teach most a minute.

    python -m trainer train --config further --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine

For whoever has pictures of their own and no GPU. It ends by the clock (`--minutes`), with a rate that `further_end`
goes on from at 128 pixels, at which the lightweight weights are served. Here it is 96 pixels in batches of 32: an image
then costs about half as much as at 128 (`python -m benchmarks.training_speed --input-size 96 --batch-size 32`).
"""

from trainer.configs import TrainConfig
from trainer.configs.first import CONFIG as FIRST
from trainer.data.augment import AugmentConfig

CONFIG = TrainConfig(
    variant="lightweight",
    minutes=36.0,
    batch_size=32,
    input_sizes=((0.0, 96),),
    learning_rate=1e-3,
    warm_up=0.03,
    final_rate_share=0.4,
    clip_norm=50.0,
    ema_momentum=0.995,
    precision="mixed_bfloat16",
    augment=AugmentConfig(turn=25.0, any_turn_chance=0.3, shrink=2.2, shrink_skew=3.0),
    holdout=FIRST.holdout,
    validate_minutes=9.0,
    seed=5,
)
