"""The paper's recipe to the letter, on RHD: batch 8, Adam, 1e-4 divided by 10 every 10,000 of 60,000 updates.

    python -m trainer train --config paper --data rhd:RHD_published_v2 --run paper

The set is split 8:1:1 over both of its parts. The paper leaves open, and this project chooses: augmentation, the size
of the target Gaussians, batch normalisation while training, the loss's form (summed over a map's cells, averaged over
maps), and the running average of the weights, which is evaluated. It trains the lightweight network, with
`--variant standard` the other. It has not been run to its end here, so there is no result to state.
"""

from trainer.configs import TrainConfig

CONFIG = TrainConfig(
    variant="lightweight",
    steps=60_000,
    batch_size=8,
    input_sizes=((0.0, 256),),
    learning_rate=1e-4,
    schedule="steps",
    rate_step=10_000,
    warm_up=0.0,
    weight_decay=0.0,
    split="8:1:1",
)
