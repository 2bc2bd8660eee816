r"""Whether distillation works at all: `smoke` with a teacher. Its figures mean nothing.

    python -m trainer train --config smoke_distil --warm-start runs/LIGHT --teacher runs/STANDARD \
        --data KIND:PATH --run NAME
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.smoke import CONFIG as SMOKE

CONFIG: TrainConfig = replace(SMOKE, input_sizes=((0.0, 48),), distil_weight=0.5, seed=1)
