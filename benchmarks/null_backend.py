"""The gateway with a model that costs nothing, or a constant time: what remains is what the gateway costs.

    python -m benchmarks.null_backend --model constant:10

Everything but the model is as `python -m service` runs it, and set by the same environment variables.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.peer_servers.work import input_size, open_model
from deploy.stand_in.repository import add_version
from service.backends.embedded import Run
from service.backends.repository import Servable
from service.bootstrap import serve
from service.inference.models import DetectorCard
from service.observability.logs import configure_logging
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from service.pose.preprocessing import CROP_PADDING
from service.settings import Settings


def one_hand(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One upright hand in each picture, of a size that has the model see all of it."""
    rows = np.zeros((len(pictures), DETECTIONS, len(DETECTION_COLUMNS)), np.float32)
    side = pictures.shape[1]
    rows[:, 0] = (1.0, side / 2, side / 2, side / CROP_PADDING, 0.0, -1.0, 1.0)
    return rows


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="The gateway without a real model.")
    parser.add_argument(
        "--model", default="null", help="null, or constant:<milliseconds>; @<side> for other crops than of 256"
    )
    arguments = parser.parse_args()

    def open_servable(servable: Servable) -> Run:
        if isinstance(servable.card, DetectorCard):
            return one_hand
        return open_model(arguments.model)

    with tempfile.TemporaryDirectory() as folder:
        add_version(Path(folder), "lightweight", 1, input_size=input_size(arguments.model))
        settings = Settings.from_environment({**os.environ, "HANDPOSE_MODEL_REPO": folder})
        configure_logging(settings.log_level, settings.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, on_ready=lambda *_: print("ready", flush=True), open_servable=open_servable))
    return 0


if __name__ == "__main__":
    sys.exit(main())
