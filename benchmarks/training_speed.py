"""What makes training quicker on a processor: batch normalisation in one kernel, and first blocks left as they are.

    python -m benchmarks.training_speed [--variant lightweight] [--input-size 128] [--batch-size 16] [--json FILE]

The networks are trained on the same ready-made batch in one process, in turns, so that what else the machine does
falls on all. Look at the ratio; images a second are of this machine and this minute.
"""

import argparse
import os
import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.report import add_json, show, write_json


def main(argv: list[str] | None = None) -> int:
    """Prints images a second of each, and their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=("lightweight", "standard"), default="lightweight")
    parser.add_argument("--input-size", type=int, default=128, help="side in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images a batch (%(default)s)")
    parser.add_argument("--precision", default="mixed_bfloat16", help="Keras's dtype policy (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each (%(default)s)")
    parser.add_argument("--updates", type=int, default=3, help="updates in a turn (%(default)s)")
    add_json(parser)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from trainer.models import layers

    keras.mixed_precision.set_dtype_policy(arguments.precision)
    rng = np.random.default_rng(0)
    size, count = arguments.input_size, arguments.batch_size
    crops = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    targets = rng.random((count, size // 8, size // 8, 22), np.float32)
    networks = {
        "one kernel": _compiled(arguments.variant),
        "one kernel, two blocks frozen": _compiled(arguments.variant, frozen_blocks=2),
    }
    with patch.object(layers, "BatchNormalization", keras.layers.BatchNormalization):
        networks["Keras's own"] = _compiled(arguments.variant)

    seconds = dict.fromkeys(networks, 0.0)
    for round_number in range(arguments.rounds + 1):  # the first compiles and is not counted
        print(f"round {round_number} of {arguments.rounds}", file=sys.stderr, flush=True)
        for name, network in networks.items():
            start = time.perf_counter()
            for _ in range(arguments.updates):
                network.train_on_batch(crops, [targets] * 3)
            if round_number:
                seconds[name] += time.perf_counter() - start
    images = arguments.rounds * arguments.updates * count
    reference = "Keras's own"
    rates = {name: images / taken for name, taken in seconds.items()}
    result = {
        "backend": keras.backend.backend(),
        "variant": arguments.variant,
        "input_size": size,
        "batch_size": count,
        "precision": arguments.precision,
        "images_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratios": {name: round(rate / rates[reference], 2) for name, rate in rates.items()},
    }
    rows = [[name, f"{rate:.1f}", f"{rate / rates[reference]:.2f}"] for name, rate in rates.items()]
    show(["network", "images a second", "times Keras's own"], rows)
    write_json(result, arguments.json)
    return 0


def _compiled(variant: str, frozen_blocks: int = 0) -> Any:
    """The network as it is trained, its first blocks left as they are."""
    import keras

    from trainer.devices import jit_pays
    from trainer.losses import BeliefMapLoss
    from trainer.models import build
    from trainer.run_network import freeze_blocks, served_from_bytes

    model = build(variant, batch_norm=True)
    freeze_blocks(model, frozen_blocks)
    network = served_from_bytes(model)
    optimizer = keras.optimizers.AdamW(1e-4, use_ema=True)
    network.compile(optimizer=optimizer, loss=[BeliefMapLoss() for _ in range(3)], jit_compile=jit_pays())
    return network


if __name__ == "__main__":
    sys.exit(main())
