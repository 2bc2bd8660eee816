r"""The lightweight network after `further_end`, with more pictures that are shaken, or small and compressed.

    python -m trainer train --config further_coarse --warm-start trainer/weights/lightweight.npz --data coco:HANDS \
        --holdout REGEX --run mine
    python -m trainer finish --run mine --mean-with trainer/weights/lightweight.npz

Both sizes of `further` and `further_end` in one run, half of the time each, the first two blocks frozen throughout.

What came of it: 98,528 samples in 75 minutes on two cores without AMX, in float32, on 24,000 rendered pictures, from
the mean that `further_end` tells of. As a mean with it once more, it is the lightweight weights of the repository. Of
rendered hands 0.884 within 0.2 of the hand's size and 0.740 within 0.1 (before 0.876 and 0.726); of annotated pictures
in 24 boxes each, with each hand counted once, 0.789 and 0.573 (0.779 and 0.551; standard errors of the differences
0.010 and 0.016); of held-out photos 0.992 (0.991), but 0.792 under the curve (0.797).
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further_end import CONFIG as END

CONFIG: TrainConfig = replace(
    END,
    minutes=75.0,
    input_sizes=((0.0, 96), (0.5, 128)),
    learning_rate=8e-4,
    warm_up=0.04,
    final_rate_share=0.005,
    augment=replace(END.augment, shake_chance=0.12, coarse_chance=0.25),
    validate_minutes=25.0,
    checkpoint_minutes=5.0,
    ema_momentum=0.998,
    seed=9,
)
