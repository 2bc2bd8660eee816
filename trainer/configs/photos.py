r"""Photos with labelled hands, and rendered hands beside them.

    python -m trainer train --config photos --run light --holdout '^(SOURCE|OTHER-SOURCE)_' \
        --data coco:REAL_HANDS@57% --data coco:MORE_PHOTOS@10% --data coco:DIGITS@10% --data coco:RENDERS@23%
    python -m trainer finish --run light
    python -m trainer train --config photos --variant standard --run standard --holdout '^(SOURCE|OTHER-SOURCE)_' \
        --data … --warm-start runs/light/weights/lightweight.npz
    python -m trainer finish --run standard --features runs/light/weights/lightweight.npz

REAL_HANDS, MORE_PHOTOS and DIGITS are folders of photos in COCO form, RENDERS is what `synth` made; the percentages are
each folder's share of the samples drawn. Any folders in any number will do. `--holdout` names, by the beginning of
their file names, the sources to validate on. docs/training.md goes through it.

From nothing it is as above; `--warm-start trainer/weights/lightweight.npz` starts from given weights, and on a CPU
`--frozen-blocks 2` then saves three tenths of the time. On a GPU give `--precision mixed_bfloat16`, and for a larger
input at the end `--input-sizes 0:128,0.5:192`. The same command goes on with a run that was stopped.

What it holds:

* Small inputs first: an image at 96 pixels costs 0.58 of one at 128.
* In 0.55 of the crops the hand is turned upright and cut as a detection cuts it; of the others a fifth is turned by any
  angle, because a `roi` and `whole=true` bring no direction.
* Hidden or uncertain keypoints (v = 1) count half; hands whose labels scatter count less, half at a spread of 0.02.
  Hands of which fewer than 12 keypoints can be seen are left out.
* Half of the hands are mirrored; a tenth is shaken and a fifth is coarse, as in videos.
* Averaged weights are what is validated and written.

With `--variant standard` only stages 2 and 3 are trained, on the frozen features of the lightweight network.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.data.augment import AugmentConfig
from trainer.data.label_trust import LabelTrust

CONFIG = TrainConfig(
    variant="lightweight",
    steps=20_000,
    batch_size=32,
    input_sizes=((0.0, 96), (0.45, 128)),
    learning_rate=8e-4,
    warm_up=0.03,
    final_rate_share=0.01,
    weight_decay=1e-4,
    clip_norm=50.0,
    ema_momentum=0.999,
    augment=AugmentConfig(
        turn=18.0,
        any_turn_chance=0.2,
        upright_chance=0.55,
        shrink=1.8,
        shrink_skew=3.0,
        shake_chance=0.1,
        coarse_chance=0.2,
    ),
    trust=LabelTrust(hidden=0.5, half_at_spread=0.02),
    fewest_keypoints=12,
    validation_samples=256,
    validate_minutes=20.0,
    checkpoint_minutes=4.0,
)

STANDARD: TrainConfig = replace(CONFIG, variant="standard", part="stages", steps=8_000, input_sizes=((0.0, 128),))
