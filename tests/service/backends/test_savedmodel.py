"""SavedModels of TensorFlow, small ones: what is checked, and that they compute what they hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.backends.processor import multiplies_bfloat16
from service.backends.repository import ModelRepository, Servable, ServableError
from service.inference.errors import InternalError
from service.pose.heatmaps import decode
from tests.support.backend import spread_keypoints
from tests.support.models import INPUT_SIZE
from tests.support.servables import write_card, write_painting_model

pytestmark = pytest.mark.slow  # importing TensorFlow takes seconds


def only_servable(repository: Path) -> Servable:
    (servable,) = ModelRepository(repository).newest(1)
    return servable


def save(folder: Path, function: Any, name: str = "serving_default") -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(folder), signatures={name: function})


def test_keypoints_come_out_of_a_saved_model_in_the_order_of_the_crops(tmp_path: Path) -> None:
    from service.backends.savedmodel import open_servable

    keypoints = spread_keypoints(INPUT_SIZE)
    write_painting_model(tmp_path, keypoints)
    run = open_servable(only_servable(tmp_path))
    white = np.full((INPUT_SIZE, INPUT_SIZE, 3), 255, np.uint8)
    maps = run(np.stack([white, np.zeros_like(white), white]))
    assert maps.dtype == np.float32
    assert maps.shape == (3, INPUT_SIZE // 8, INPUT_SIZE // 8, 22)
    decoded = decode(maps)
    np.testing.assert_allclose(decoded.in_heatmap[0] * 8, keypoints, atol=0.05)
    np.testing.assert_allclose(decoded.in_heatmap[2] * 8, keypoints, atol=0.05)
    assert decoded.scores[1].max() == 0


def test_signature_of_other_names_types_or_shapes_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    from service.backends.savedmodel import open_servable

    def model(
        input_name: str = "image",
        output_name: str = "belief_maps",
        dtype: Any = tf.uint8,
        shape: tuple[int | None, ...] = (None, None, None, 3),
        channels: int = 22,
    ) -> Any:
        def serve(pixels: Any) -> dict[str, Any]:
            grey = tf.cast(pixels, tf.float32)[..., :1]
            return {output_name: tf.repeat(grey, channels, axis=-1)}

        return tf.function(serve, input_signature=[tf.TensorSpec(shape, dtype, name=input_name)], autograph=False)

    wrong = {
        "input": model(input_name="pixels"),
        "output": model(output_name="maps"),
        "float32": model(dtype=tf.float32),
        r"\(1, None, None, 3\)": model(shape=(1, None, None, 3)),
        r"\(None, None, None, 21\)": model(channels=21),
    }
    for version, (words, function) in enumerate(wrong.items(), start=1):
        folder = write_card(tmp_path, version=version)
        save(folder, function)
        with pytest.raises(ServableError, match=words) as caught:
            open_servable(only_servable(tmp_path))
        assert str(folder) in str(caught.value)


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    from service.backends.savedmodel import open_servable

    write_card(tmp_path, version=1)
    with pytest.raises(ServableError, match="not a SavedModel"):
        open_servable(only_servable(tmp_path))

    (write_card(tmp_path, version=2) / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(ServableError, match="not a SavedModel"):
        open_servable(only_servable(tmp_path))

    specification = tf.TensorSpec([None], tf.float32, name="image")
    other = tf.function(lambda image: {"belief_maps": image}, input_signature=[specification], autograph=False)
    save(write_card(tmp_path, version=3), other, "another_name")
    with pytest.raises(ServableError, match="no signature serving_default"):
        open_servable(only_servable(tmp_path))


def test_failure_of_tensorflow_becomes_internal(tmp_path: Path) -> None:
    from service.backends.savedmodel import open_servable

    write_painting_model(tmp_path, spread_keypoints(INPUT_SIZE))
    run = open_servable(only_servable(tmp_path))
    with pytest.raises(InternalError) as caught:
        run(np.zeros((1, 0, 8, 3), np.uint8))
    assert caught.value.__cause__ is not None


IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path

import numpy as np

from service.backends import savedmodel
from service.backends.repository import ModelRepository

repository, precision, answer = sys.argv[1:]
savedmodel.configure(threads=1, bfloat16=precision == "bfloat16")
(servable,) = ModelRepository(Path(repository)).newest(1)
crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
np.save(answer, savedmodel.open_servable(servable)(crops))
"""


def test_precision_changes_belief_maps_by_a_rounding_of_bfloat16_at_the_most(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    random = np.random.default_rng(0)
    module.kernel = tf.Variable(random.normal(size=(8, 8, 3, 64), scale=0.1).astype(np.float32))
    module.pointwise = tf.Variable(random.normal(size=(1, 1, 64, 22), scale=0.1).astype(np.float32))

    def serve(image: Any) -> dict[str, Any]:
        features = tf.nn.relu(tf.nn.conv2d(tf.cast(image, tf.float32) / 255 - 0.5, module.kernel, 8, "SAME"))
        return {"belief_maps": tf.nn.conv2d(features, module.pointwise, 1, "SAME")}

    specification = tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")
    signature = tf.function(serve, input_signature=[specification], autograph=False)
    tf.saved_model.save(module, str(write_card(tmp_path / "models")), signatures={"serving_default": signature})

    maps = {}
    for precision in ("float32", "bfloat16"):  # TensorFlow asks once a process
        answer = tmp_path / f"{precision}.npy"
        command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(tmp_path / "models"), precision, str(answer)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        maps[precision] = np.load(answer)
    difference = np.abs(maps["float32"] - maps["bfloat16"]).max()
    assert maps["bfloat16"].dtype == np.float32
    assert difference < 2**-7 * np.abs(maps["float32"]).max()
    if multiplies_bfloat16():  # TensorFlow may leave it out where it is slow
        assert difference > 0
