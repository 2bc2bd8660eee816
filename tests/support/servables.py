"""Model repositories made on the spot: cards alone, or small SavedModels whose answer is known."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.backends.repository import Servable
from service.inference.models import DetectorCard, Variant
from tests.support.backend import detection, maps_of, rows_of, same_hand_everywhere
from tests.support.models import DETECTOR_SIZE, INPUT_SIZE, detector_card, model_card


def write_card(
    repository: Path,
    variant: Variant = "lightweight",
    *,
    version: int = 1,
    input_size: int = INPUT_SIZE,
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Write a version folder with a card only; `changes` replaces fields of the card. Returns the folder."""
    card = model_card(variant, version=version, input_size=input_size)
    folder = repository / card.name / str(version)
    folder.mkdir(parents=True)
    (folder / "model_card.json").write_text(json.dumps({**card.model_dump(mode="json"), **(changes or {})}))
    return folder


def write_detector_card(repository: Path, *, version: int = 1, changes: Mapping[str, object] | None = None) -> Path:
    """The same for the hand detector."""
    card = detector_card(version=version)
    folder = repository / card.name / str(version)
    folder.mkdir(parents=True)
    (folder / "model_card.json").write_text(json.dumps({**card.model_dump(mode="json"), **(changes or {})}))
    return folder


def run_without_model(servable: Servable) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """In place of a loaded servable: what a `FakeBackend` answers."""

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if isinstance(servable.card, DetectorCard):
            return rows_of(len(crops), (detection(),))
        return same_hand_everywhere(list(crops))

    return run


def write_steady_detector(repository: Path, *detections: Sequence[float], version: int = 1) -> Path:
    """Write a hand detector that answers these rows, whatever it is shown. Imports TensorFlow."""
    import tensorflow as tf

    folder = write_detector_card(repository, version=version)
    module = tf.Module()
    module.rows = tf.Variable(rows_of(1, detections))

    def serve(image: Any) -> dict[str, Any]:
        return {"detections": tf.repeat(module.rows, tf.shape(image)[0], axis=0)}

    specification = tf.TensorSpec([None, DETECTOR_SIZE, DETECTOR_SIZE, 3], tf.uint8, name="image")
    signature = tf.function(serve, input_signature=[specification], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    return folder


def write_painting_model(
    repository: Path,
    keypoints_in_input: NDArray[np.floating],
    variant: Variant = "lightweight",
    *,
    version: int = 1,
    input_size: int = INPUT_SIZE,
) -> Path:
    """Write a servable that paints the belief maps of these keypoints [21, 2] (x, y), whatever it is shown.

    Nearly whatever: where the crop's upper left pixel is black, all maps are empty. Imports TensorFlow.
    """
    import tensorflow as tf

    folder = write_card(repository, variant, version=version, input_size=input_size)
    module = tf.Module()
    module.maps = tf.Variable(maps_of(keypoints_in_input[None], input_size))

    def serve(image: Any) -> dict[str, Any]:
        seen = tf.cast(tf.reduce_any(image[:, 0, 0, :] > 0, axis=-1), tf.float32)
        return {"belief_maps": module.maps * seen[:, None, None, None]}

    specification = tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")
    signature = tf.function(serve, input_signature=[specification], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    return folder
