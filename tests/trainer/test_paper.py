"""The paper's recipe on a miniature RHD: it runs some hundred updates and logs the schedule that it states."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.configs import load_config
from trainer.data.pipeline import ImageStore
from trainer.data.sources import Source, read_sources
from trainer.run_log import read_log
from trainer.train import Trainer, split_data


@pytest.mark.slow
def test_the_papers_recipe_logs_its_schedule_on_a_miniature_rhd(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=30, evaluation=10)
    paper = load_config("paper")
    # A 200th of the paper's updates, and of the updates between its divisions by ten; a narrow network, small pictures.
    config = replace(
        paper, steps=300, rate_step=50, width_multiplier=0.03, input_sizes=((0.0, 24),), log_seconds=0.0,
        checkpoint_minutes=1e6, validate_minutes=1e6,
    )  # fmt: skip
    train, validation = split_data(read_sources([Source("rhd", tmp_path / "rhd")]), config)
    progress = Trainer(config, tmp_path / "run", train, validation, ImageStore()).run()
    assert (progress.step, progress.samples) == (300, 300 * 8)
    logged = {int(row["step"]): row["learning_rate"] for row in read_log(tmp_path / "run") if "loss" in row}
    assert [logged[step] for step in (1, 50, 51, 101, 151, 201, 251, 300)] == pytest.approx(
        [1e-4, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-9], rel=1e-3
    )
