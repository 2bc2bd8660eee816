"""The `photos` recipe: the same seed gives the same weights, in one piece or killed and resumed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.checkpoints import AVERAGED, CHECKPOINT
from trainer.configs import load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sources import Source, read_sources, split_by_name
from trainer.train import Trainer

STEPS = 200
TINY = replace(
    load_config("photos"),
    steps=STEPS,
    batch_size=2,
    input_sizes=((0.0, 24),),  # each size is compiled once a run
    width_multiplier=0.03,
    holdout=("^evaluation/",),
    log_seconds=1e6,
)


class _StoppedAt90(Trainer):
    """Is asked to stop after update 90, and leaves a checkpoint."""

    def share_done(self, seconds: float) -> float:
        if self.progress.step == 90:
            self.ask_to_stop()
        return super().share_done(seconds)


class _KilledError(Exception):
    """Takes the place of a SIGKILL (`test_killed` has a real one)."""


class _KilledAt120(Trainer):
    """Dies after update 120, without a checkpoint since it began."""

    def share_done(self, seconds: float) -> float:
        if self.progress.step == 120:
            raise _KilledError
        return super().share_done(seconds)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_seed_gives_the_same_weights_also_when_killed_and_resumed(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=6, evaluation=2)
    data = split_by_name(read_sources([Source("rhd", tmp_path / "rhd")]), TINY.holdout)

    def train(run: str, trainer: Callable[..., Trainer] = Trainer) -> int:
        return trainer(TINY, tmp_path / run, *data, ImageStore()).run().step

    assert train("once") == train("again") == STEPS
    assert train("killed", _StoppedAt90) == 90
    with pytest.raises(_KilledError):
        train("killed", _KilledAt120)
    assert train("killed") == STEPS

    for run in ("again", "killed"):
        for file in (CHECKPOINT, AVERAGED):
            with np.load(tmp_path / "once" / file) as expected, np.load(tmp_path / run / file) as actual:
                assert sorted(expected.files) == sorted(actual.files)
                for name in expected.files:
                    if name != "state":  # which holds the seconds
                        np.testing.assert_array_equal(actual[name], expected[name], err_msg=f"{run}: {name}")
