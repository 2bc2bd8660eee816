"""What every peer does with a picture: the gateway's own decoding, cropping and map decoding, and the same answer.

The model is named by HANDPOSE_BENCH_MODEL: a SavedModel's folder, `null` (maps at once), or `constant:10` (maps after
10 milliseconds, whatever the batch), the last two of crops of 256 x 256 unless `@128` or the like follows.
HANDPOSE_BENCH_BATCH says how large batches may be, and HANDPOSE_BENCH_WORKERS how many processes run the model, where
they are set.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.backends.processor import multiplies_bfloat16
from service.pose.geometry import Box
from service.pose.heatmaps import STRIDE, decode, encode
from service.pose.images import decode_image
from service.pose.keypoints import KEYPOINT_COUNT, KEYPOINT_NAMES
from service.pose.preprocessing import Crop, crop

_SIZE: Final = 256  # of the input, in pixels, where there is no model and its name says nothing

MAX_BATCH_SIZE: Final = int(os.environ.get("HANDPOSE_BENCH_BATCH", "8"))
MAX_WAIT_S: Final = 0.005
INFERENCE_WORKERS: Final = int(os.environ.get("HANDPOSE_BENCH_WORKERS", "1"))
"""Processes with a model each, of the peers that can have several."""

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@cache
def input_size(name: str | None = None) -> int:
    """Side in pixels of the crops that the model wants: what its card says, or its name where it is none."""
    name = name or os.environ["HANDPOSE_BENCH_MODEL"]
    card = Path(name) / "model_card.json"
    if card.is_file():
        return int(json.loads(card.read_bytes())["input_size"])
    return int(name.partition("@")[2] or _SIZE)


def open_model(name: str | None = None, *, bfloat16: bool | None = None, at_once: int = 1) -> Run:
    """The model: crops uint8 [N, S, S, 3] to belief maps float32 [N, S / 8, S / 8, 22], S its input size; warmed up.

    It computes as the gateway's does, in bfloat16 where that is quicker, unless `bfloat16` says; `at_once` calls may
    run at the same time.
    """
    name = name or os.environ["HANDPOSE_BENCH_MODEL"]
    kind, _, milliseconds = name.partition("@")[0].partition(":")
    if kind in {"null", "constant"}:
        return without_model(float(milliseconds or 0) / 1000, input_size(name))
    import tensorflow as tf

    from service.backends import savedmodel

    savedmodel.configure(threads=0, at_once=at_once)
    function = tf.saved_model.load(name).signatures["serving_default"]

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps: NDArray[np.float32] = function(image=tf.constant(crops))["belief_maps"].numpy()
        return maps

    size = input_size(name)
    if bfloat16 is None:
        bfloat16 = multiplies_bfloat16() and savedmodel.bfloat16_is_quicker(run, size)
    savedmodel.multiply_in(bfloat16=bfloat16)
    for batch_size in (1, 2, MAX_BATCH_SIZE):
        run(np.zeros((batch_size, size, size, 3), np.uint8))
    return run


def without_model(delay_s: float, size: int = _SIZE) -> Run:
    """A hand in the same place in every crop, after a constant time."""
    cells = size // STRIDE
    steps = np.linspace(0.25, 0.75, KEYPOINT_COUNT, dtype=np.float32)
    points = np.stack((steps, np.roll(steps, 7)), axis=-1) * cells
    maps = encode(points, np.ones(KEYPOINT_COUNT, np.bool_), (cells, cells))

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if delay_s:
            time.sleep(delay_s)
        return np.repeat(maps[None], len(crops), axis=0)

    return run


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture on its way: the crop, and the picture's size."""

    crop: Crop
    width: int
    height: int


def prepare(body: bytes) -> Prepared:
    """Decode the picture and crop all of it."""
    size = input_size()
    picture = decode_image(body, enough_pixels=size)
    whole = Box(0.0, 0.0, float(picture.width), float(picture.height))
    return Prepared(crop(picture, whole, (size, size)), picture.width, picture.height)


def answer(prepared: Prepared, maps: NDArray[np.float32]) -> dict[str, Any]:
    """The JSON answer from a crop's maps [S / 8, S / 8, 22]."""
    found = decode(maps[None])
    points = prepared.crop.to_image(found.in_input[0])
    sigmas = found.sigmas[0] * (STRIDE * prepared.crop.image_pixels_per_input_pixel)
    keypoints = [
        {
            "id": index,
            "name": name,
            "x": round(x, 2),
            "y": round(y, 2),
            "x_norm": round(x / prepared.width, 5),
            "y_norm": round(y / prepared.height, 5),
            "score": round(score, 4),
            "sigma": round(sigma, 2),
        }
        for index, (name, (x, y), score, sigma) in enumerate(
            zip(KEYPOINT_NAMES, points.tolist(), found.scores[0].tolist(), sigmas.tolist(), strict=True)
        )
    ]
    box = {"x": 0.0, "y": 0.0, "width": float(prepared.width), "height": float(prepared.height)}
    return {
        "image": {"width": prepared.width, "height": prepared.height},
        "hands": [{"score": round(float(found.scores[0].mean()), 4), "box": box, "keypoints": keypoints}],
    }
