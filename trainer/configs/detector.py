r"""The hand detector: finds every hand of a picture, where it points and which side it is.

    python -m trainer train --config detector --run detector --holdout 'GROUP|OTHER-GROUP' \
        --data scenes:SCENES --data close:REAL_HANDS --data rendered:RENDERS
    python -m trainer finish --run detector

SCENES are photos in which every hand is labelled, and photos without a hand; REAL_HANDS photos of one hand; RENDERS
what `synth --kind scene` made. docs/training.md goes through it.
"""

from trainer.configs import TrainConfig
from trainer.detection.compose import Shares

CONFIG = TrainConfig(
    variant="hand_detector",
    steps=12_000,
    batch_size=32,
    input_sizes=((0.0, 192), (0.55, 256)),
    learning_rate=2e-3,
    warm_up=0.03,
    final_rate_share=0.01,
    weight_decay=1e-4,
    clip_norm=10.0,
    ema_momentum=0.998,
    shares=Shares(),
    validation_samples=256,
    validate_minutes=10.0,
    checkpoint_minutes=3.0,
)
