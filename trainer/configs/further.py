r"""Goes on with the weights in the repository, on a processor: more hands at small inputs, which teach most a minute.

    python -m trainer train --config further --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine

For whoever has pictures of their own and no GPU. It ends by the clock (`--minutes`), with a rate that `further_end`
goes on from at 128 pixels, at which the lightweight weights are served. Here it is 96 pixels in batches of 32: an image
then costs 0.58 of what it does at 128 (`python -m benchmarks.training_speed --input-size 96 --batch-size 32`).

What came of it: 86,944 samples in 36 minutes on two cores with AMX, from the weights of the third run. Held-out photos,
looked at in 96 pixels: PCK@0.1 0.968, PCK@0.2 0.992. `further_end` says what became of that.
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
