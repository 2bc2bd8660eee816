"""A quick check that training works: a narrow network and small pictures, for a minute or less.

    python -m trainer train --config smoke --data KIND:PATH --run smoke

Its figures mean nothing. `--distil-weight 0.5 --teacher RUN` checks distillation as well.
"""

from trainer.configs import TrainConfig

CONFIG = TrainConfig(
    variant="lightweight",
    steps=60,
    batch_size=4,
    input_sizes=((0.0, 32), (0.5, 48)),
    width_multiplier=0.1,
    ema_momentum=0.9,
    holdout=(r"^evaluation/", r"[05]\.(jpg|png)$"),
    validation_samples=16,
    validate_minutes=0.2,
    checkpoint_minutes=0.1,
    log_seconds=2.0,
)
