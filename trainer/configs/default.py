r"""Our recipe for both networks, for a machine with a GPU: inputs from 128 to 256 pixels, bfloat16, averaged weights.

    KERAS_BACKEND=jax python -m trainer train --config default --data coco:HANDS --holdout REGEX --run light
    KERAS_BACKEND=jax python -m trainer train --config default --variant standard --warm-start runs/light \
        --data coco:HANDS --holdout REGEX --run standard

`python -m trainer reproduce` does both and all that goes with it. It counts updates, so a run cut into pieces
(`--stop-after-minutes 9`) has exactly the batches and the schedule of one that was not; its weights are the same as far
as the backend is deterministic, which on a GPU it need not be.

Time: 1.5 million images, on average 30 GFLOP each for the lightweight network and 127 for the standard one. At the
90 TFLOP/s that one may hope for on an H100 that is 8 minutes and 36 minutes. This is arithmetic: the recipe has not
been run on a GPU yet. Its batches then take up to ten processor cores (docs/training.md).
Clipping: whole gradients had norms of 100 to 170 with fresh weights and of 15 to 19 with the first trained ones
(batches of 8 at 128 pixels), so 50 tames the first updates and outliers only.
Shaken and coarse pictures are for hands that are small or move, as in videos; what they are worth is not measured.
Result: none to state yet.
"""

from trainer.configs import TrainConfig
from trainer.data.augment import AugmentConfig

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
        turn=25.0, any_turn_chance=0.3, shrink=2.2, shrink_skew=3.5, shake_chance=0.12, coarse_chance=0.25
    ),
    validation_samples=512,
    for_gpu=True,
)
