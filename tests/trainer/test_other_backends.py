"""Training, finishing and evaluating on JAX, on two devices, in a process in which TensorFlow cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.checkpoints import read_progress

ROOT = Path(__file__).parents[2]

CONFIG = """
from dataclasses import replace
from trainer.configs.smoke import CONFIG as SMOKE
CONFIG = replace(SMOKE, batch_size=2, width_multiplier=0.03, input_sizes=((0.0, 24),), precision="mixed_bfloat16",
                 clip_norm=1.0, holdout=("^evaluation/",),
                 log_seconds=0.0, checkpoint_minutes=0.0, validate_minutes=0.0)
"""
PROGRAM = """
import importlib.abc, sys

class WithoutTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError("there is no TensorFlow on this machine")

if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutTensorFlow())
    from trainer.cli import main
    train = ["train", "--config", "tiny.py", "--data", "rhd:rhd", "--run", "jax", "--workers", "1", "--steps", "3"]
    codes = [
        main(train),
        main(["finish", "--run", "jax", "--out", "lightweight.npz"]),
        main(["evaluate", "--weights", "lightweight.npz", "--data", "rhd:rhd"]),
    ]
    print(codes, "tensorflow" in sys.modules)
"""


@pytest.mark.slow
def test_on_jax_a_training_needs_no_tensorflow_and_uses_all_devices(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=4, evaluation=2)
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "program.py").write_text(PROGRAM)
    backend = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, **backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[-1] == "[0, 0, 0] False"
    assert "every batch is shared among 2 devices" in lines
    # Validation borrows the averaged weights between updates; training goes on from its own.
    assert len([line for line in lines if "validation of 2 hands" in line]) == 3
    progress = read_progress(tmp_path / "runs/jax")
    assert progress is not None
    assert progress.step == 3
