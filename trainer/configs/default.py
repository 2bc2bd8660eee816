r"""Both networks trained as a whole on a GPU: inputs from 128 to 256 pixels, bfloat16, averaged weights.

    KERAS_BACKEND=jax python -m trainer train --config default --data coco:HANDS --holdout REGEX --run light
    KERAS_BACKEND=jax python -m trainer train --config default --variant standard --warm-start runs/light \
        --data coco:HANDS --holdout REGEX --run standard

`python -m trainer reproduce` does both and all that goes with them. The recipe counts updates, so a run cut into pieces
(`--stop-after-minutes 9`) has the batches and the schedule of one that was not.

Cost: 1.5 million images of 30 GFLOP on average for the lightweight network and of 127 for the standard one, which at
90 TFLOP/s is 8 and 36 minutes. Its batches take up to ten processor cores (docs/training.md). The recipe has not been
run to its end on a GPU yet.

Clipping: whole gradients have norms of 100 to 170 with fresh weights and of 15 to 19 with trained ones, so 50 tames the
first updates and outliers only.
"""

from trainer.configs import TrainConfig
from trainer.data.augment import AugmentConfig
from trainer.data.label_trust import LabelTrust

CONFIG = TrainConfig(
    variant="lightweight",
    steps=24_000,
    batch_size=64,
    input_sizes=((0.0, 128), (0.4, 192), (0.7, 256)),
    learning_rate=1e-3,
    schedule="cosine",
    warm_up=0.02,
    final_rate_share=0.01,
    weight_decay=1e-4,
    clip_norm=50.0,
    ema_momentum=0.999,
    precision="mixed_bfloat16",
    augment=AugmentConfig(
        turn=25.0,
        any_turn_chance=0.3,
        upright_chance=0.5,
        shrink=2.2,
        shrink_skew=3.5,
        shake_chance=0.12,
        coarse_chance=0.25,
    ),
    trust=LabelTrust(hidden=0.5, half_at_spread=0.02),
    fewest_keypoints=12,
    validation_samples=512,
    for_gpu=True,
)
