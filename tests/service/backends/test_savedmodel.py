"""SavedModels of TensorFlow, small ones: what is checked, and that they compute what they hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.embedded import EmbeddedBackend
from service.backends.processor import multiplies_bfloat16
from service.backends.repository import Servable, ServableError, newest_servables, version_folders
from service.inference.errors import InternalError
from service.pose.heatmaps import decode
from tests.support.backend import spread_keypoints
from tests.support.executor import InlineExecutor
from tests.support.models import INPUT_SIZE
from tests.support.servables import write_card, write_detector_card, write_painting_model

pytestmark = pytest.mark.slow  # importing TensorFlow takes seconds


def only_servable(repository: Path) -> Servable:
    (servable,) = newest_servables(repository, 1)
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


def detector(
    output_name: str = "detections",
    shape: tuple[int, int] = (16, 7),
    input_shape: tuple[int | None, ...] = (None, 64, 64, 3),
) -> Any:
    """A detector that answers how bright each picture is, as a score."""
    import tensorflow as tf

    def serve(pixels: Any) -> dict[str, Any]:
        brightness = tf.reduce_mean(tf.cast(pixels, tf.float32), (1, 2, 3)) / 255
        return {output_name: tf.pad(brightness[:, None, None], ((0, 0), (0, shape[0] - 1), (0, shape[1] - 1)))}

    specification = tf.TensorSpec(input_shape, tf.uint8, name="image")
    return tf.function(serve, input_signature=[specification], autograph=False)


def test_detections_come_out_of_a_saved_model_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    from service.backends.savedmodel import open_servable

    save(write_detector_card(tmp_path), detector())
    run = open_servable(only_servable(tmp_path))
    rows = run(np.stack([np.full((64, 64, 3), level, np.uint8) for level in (255, 0, 51)]))
    assert rows.shape == (3, 16, 7)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, 0, 0], (1.0, 0.0, 0.2), atol=1e-6)
    assert not rows[:, 1:].any()


def test_detector_of_another_signature_is_refused(tmp_path: Path) -> None:
    from service.backends.savedmodel import open_servable

    wrong = {
        "output": detector(output_name="belief_maps"),
        r"\(None, 16, 6\)": detector(shape=(16, 6)),
        r"\(None, 15, 7\)": detector(shape=(15, 7)),
        r"\(1, 64, 64, 3\)": detector(input_shape=(1, 64, 64, 3)),
    }
    for version, (words, function) in enumerate(wrong.items(), start=1):
        save(write_detector_card(tmp_path, version=version), function)
        with pytest.raises(ServableError, match=words):
            open_servable(only_servable(tmp_path))


async def test_newer_detector_is_opened_while_the_service_runs_and_a_bad_one_is_not(tmp_path: Path) -> None:
    from service.backends.savedmodel import open_servable

    write_painting_model(tmp_path, spread_keypoints(INPUT_SIZE))
    backend = EmbeddedBackend(open_servable=open_servable, inference=InlineExecutor())
    await backend.load(version_folders(tmp_path))
    assert "there is no hand_detector" in (await backend.not_ready() or "")

    save(write_detector_card(tmp_path, version=1), detector())
    save(write_detector_card(tmp_path, version=2), detector(shape=(16, 6)))
    assert await backend.load(version_folders(tmp_path))
    assert (await backend.not_ready(), backend.detector().version) == (None, 1)

    save(write_detector_card(tmp_path, version=3), detector())
    assert await backend.load(version_folders(tmp_path))
    white = [np.full((64, 64, 3), 255, np.uint8)]
    rows = await backend.predict(backend.detector(), white, timeout_s=20)
    assert (backend.detector().version, rows.shape, rows.max()) == (3, (1, 16, 7), 1.0)


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


def convolutions(folder: Path) -> Servable:
    """A model with weights that bfloat16 cannot hold."""
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
    tf.saved_model.save(module, str(write_card(folder)), signatures={"serving_default": signature})
    return only_servable(folder)


@pytest.fixture
def precision_as_before() -> Iterator[None]:
    yield
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})


class TimedModel:
    """Takes as long as it is told in either precision, but for hiccups, and for longer at first."""

    def __init__(self, seconds: dict[bool, float]) -> None:
        self._seconds = seconds
        self._runs = dict.fromkeys(seconds, 0)
        self.time = 0.0

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        import tensorflow as tf

        assert crops.shape[1:] == (INPUT_SIZE, INPUT_SIZE, 3)
        bfloat16 = tf.config.optimizer.get_experimental_options()["auto_mixed_precision_onednn_bfloat16"]
        self._runs[bfloat16] += 1
        compiling_s = 10.0 * (1 + bfloat16) if self._runs[bfloat16] == 1 else 0.0
        hiccup_s = 5.0 if self._runs[bfloat16] == 3 else 0.0
        self.time += self._seconds[bfloat16] + compiling_s + hiccup_s
        return np.zeros((len(crops), 1, 1, 22), np.float32)


@pytest.mark.usefixtures("precision_as_before")
@pytest.mark.parametrize(("float32_s", "bfloat16_s", "quicker"), [(0.02, 0.01, True), (0.02, 0.03, False)])
def test_what_is_quicker_is_found_by_trying(float32_s: float, bfloat16_s: float, quicker: bool) -> None:
    from service.backends.savedmodel import bfloat16_is_quicker

    model = TimedModel({False: float32_s, True: bfloat16_s})
    assert bfloat16_is_quicker(model, INPUT_SIZE, now=lambda: model.time) is quicker


@pytest.mark.usefixtures("precision_as_before")
def test_precision_changes_belief_maps_by_a_rounding_at_the_most_and_can_be_changed_back(tmp_path: Path) -> None:
    from service.backends.savedmodel import multiply_in, open_servable

    run = open_servable(convolutions(tmp_path))
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    maps = {}
    for bfloat16 in (False, True):
        multiply_in(bfloat16=bfloat16)
        maps[bfloat16] = run(crops)
    assert maps[True].dtype == np.float32
    difference = np.abs(maps[False] - maps[True]).max()
    assert difference < 2**-7 * np.abs(maps[False]).max()
    if multiplies_bfloat16():  # TensorFlow may leave it out where it would be emulated
        assert difference > 0
    multiply_in(bfloat16=False)
    assert np.array_equal(run(crops), maps[False])
