r"""First weights of the lightweight network, on photos alone, small inputs first, on two CPU cores.

Whole people and places are held out. The pictures of sign_digits are numbered person by person, and 5602 falls between
two people. The first weights were trained with the rule `_img_5[6-9]\d\d\.`, which has eight pictures of one person
(5592 to 5599) in training and two in validation.
"""

from trainer.configs import TrainConfig
from trainer.data.augment import AugmentConfig

CONFIG = TrainConfig(
    variant="lightweight",
    minutes=95.0,
    batch_size=8,
    input_sizes=((0.0, 64), (0.25, 96), (0.55, 128)),
    learning_rate=1e-3,
    precision="mixed_bfloat16",
    augment=AugmentConfig(turn=25.0, any_turn_chance=0.3, shrink=2.2, shrink_skew=3.5),
    holdout=(r"^(96|996|3_1528505750\.77|Hand)_", r"_img_(560[2-9]|56[1-9]\d|5[7-9]\d\d)\."),
)
