r"""The lightweight network after `further`, at the size it is served at and without its first two blocks.

    python -m trainer train --config further_end --warm-start runs/mine --data coco:HANDS --holdout REGEX --run mine-end

The rate begins where `further` left it and falls to almost nothing. Blocks 1 and 2 stay as they are: they see the image
at its whole and at half its size, so their gradients are three tenths of what an update costs.

What came of it: 58,496 samples in 28 minutes on two cores with AMX. With `further`, keypoints of rendered hands within
0.2 of the hand's size are 0.868 instead of 0.826, and the area under the curve on held-out photos 0.794 instead of
0.760.

From there on, on 12,000 new pictures and a slower machine (two cores without AMX, float32), `further` and this once
more (69,472 samples in 59 minutes, these with more turned, shaken and coarse pictures) made nothing better: 0.862 and
0.787. But the mean of those weights and the ones before did, and so did this configuration from such a mean on: twice,
with 28,224 and 25,792 samples, each time followed by the mean with what it had begun from or before
(`finish --mean-with`): 0.876 and 0.797.

Once more, for 52,384 samples in 65 minutes and with 12,000 further pictures: 0.885, and 0.882 as a mean with what it
had begun from; 0.794 and 0.797 on held-out photos. Of the 19 annotated pictures in 24 boxes each (`evaluate --boxes
24`) 0.678 and 0.704 instead of 0.727; but eight of them show two hands only, and with each hand counted once it is
0.751 and 0.773 instead of 0.779 (standard errors of the differences: 0.014 and 0.010). `further_coarse` began from the
mean.
"""

from dataclasses import replace

from trainer.configs import TrainConfig
from trainer.configs.further import CONFIG as FURTHER

CONFIG: TrainConfig = replace(
    FURTHER,
    minutes=28.0,
    input_sizes=((0.0, 128),),
    frozen_blocks=2,
    learning_rate=4e-4,
    warm_up=0.05,
    final_rate_share=0.01,
    seed=6,
)
