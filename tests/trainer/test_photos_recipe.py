"""The `photos` recipe: the same seed gives the same weights, bit by bit, in one piece or in two.

`test_killed` has what a kill at any moment does to a training.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.checkpoints import AVERAGED, CHECKPOINT
from trainer.configs import load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sources import Source, WeightedSamples, read_sources
from trainer.train import Trainer

TINY = replace(
    load_config("photos"),
    steps=200,
    batch_size=2,
    input_sizes=((0.0, 24),),  # each size is compiled anew
    width_multiplier=0.03,
    log_seconds=1e6,
)


class _StoppedAt90(Trainer):
    """Is asked to stop after update 90, as by a signal."""

    def share_done(self, seconds: float) -> float:
        if self.progress.step == 90:
            self.ask_to_stop()
        return super().share_done(seconds)


@pytest.mark.slow
@pytest.mark.timeout(600)  # the network is compiled three times
def test_the_same_seed_gives_the_same_weights_in_one_piece_or_in_two(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=6, evaluation=2)
    data, nothing = read_sources([Source("rhd", tmp_path / "rhd")]), WeightedSamples((), ())

    def train(run: str, trainer: Callable[..., Trainer] = Trainer) -> int:
        return trainer(TINY, tmp_path / run, data, nothing, ImageStore()).run().step

    assert train("whole") == 200
    assert train("pieces", _StoppedAt90) == 90
    assert train("pieces") == 200
    for file in (CHECKPOINT, AVERAGED):
        with np.load(tmp_path / "whole" / file) as expected, np.load(tmp_path / "pieces" / file) as actual:
            assert sorted(expected.files) == sorted(actual.files)
            for name in expected.files:
                if name != "state":  # which holds the seconds
                    np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
