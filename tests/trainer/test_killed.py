"""A training that is killed outright, at any moment, and begun again ends with the weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.checkpoints import AVERAGED, CHECKPOINT, read_progress

ROOT = Path(__file__).parents[2]
STEPS = 8

# As `smoke`, but smaller, and with a line, a checkpoint and averaged weights after every update.
CONFIG = f"""
from dataclasses import replace
from trainer.configs.smoke import CONFIG as SMOKE
CONFIG = replace(SMOKE, steps={STEPS}, batch_size=2, width_multiplier=0.03, input_sizes=((0.0, 24), (0.5, 32)),
                 holdout=("^evaluation/",), log_seconds=0.0, checkpoint_minutes=0.0, validate_minutes=1e6)
"""
# Operation by operation: tracing takes longer than so few updates.
EAGERLY = "import sys, tensorflow as tf; tf.config.run_functions_eagerly(True); from trainer.cli import main; "


def start(folder: Path, run: str) -> "subprocess.Popen[str]":
    train = ["train", "--config", "tiny.py", "--data", "rhd:rhd", "--run", run, "--workers", "0"]
    return subprocess.Popen(
        [sys.executable, "-c", EAGERLY + "sys.exit(main(sys.argv[1:]))", *train],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # three trainings, each with a start of TensorFlow
def test_a_killed_and_resumed_training_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=6, evaluation=2)
    (tmp_path / "tiny.py").write_text(CONFIG)
    with start(tmp_path, "whole") as whole:
        whole.communicate()

    kill_at = random.SystemRandom().randint(2, STEPS - 3)
    with start(tmp_path, "killed") as killed:
        assert killed.stdout is not None
        # The line comes after the update and before its checkpoint: it dies while it writes that, or soon after.
        for line in killed.stdout:
            if line.startswith(f"step {kill_at} "):
                killed.kill()
    assert killed.returncode == -signal.SIGKILL
    progress = read_progress(tmp_path / "runs/killed")
    assert progress is not None
    assert kill_at - 1 <= progress.step < STEPS, f"killed at update {kill_at}"

    with start(tmp_path, "killed") as resumed:
        printed = resumed.communicate()[0]
    assert f"going on from step {progress.step}" in printed
    assert (whole.returncode, resumed.returncode) == (0, 0)

    # `seconds` apart, which is in the state, every array of model, optimiser and averages.
    for file in (CHECKPOINT, AVERAGED):
        with np.load(tmp_path / "runs/whole" / file) as expected, np.load(tmp_path / "runs/killed" / file) as actual:
            assert sorted(expected.files) == sorted(actual.files)
            for name in expected.files:
                if name != "state":
                    np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
