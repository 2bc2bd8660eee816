"""The detector's servable: what it computes, its signature, warm-up, card and golden answers."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from service.inference.models import DetectorCard
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from trainer import export, model_card, profile, weights
from trainer.cli import main
from trainer.errors import TrainerError
from trainer.golden import golden_answers, steady_hands
from trainer.models.detector import DetectorWidths, build_detector, decode

NARROW = DetectorWidths().scaled(0.1)


def trained(folder: Path) -> Path:
    """A tiny detector's weights file, with weights large enough for scores that differ."""
    model = build_detector(batch_norm=False, widths=NARROW)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        spread = 0.02 if layer.name == "grid" else 0.3
        layer.set_weights([rng.normal(0, spread, each.shape) for each in layer.weights])
    path = folder / "hand_detector.npz"
    weights.save(model, path, weights.WeightsInfo("hand_detector", created="2026-01-02", input_size=64))
    return path


def run_export(path: Path, repository: Path, *arguments: str) -> int:
    fixed = ["--variant", "hand_detector", "--weights", str(path), "--model-repo", str(repository)]
    return main(["export", *fixed, *arguments])


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weights file and the version folder exported from it, by the command."""
    folder = tmp_path_factory.mktemp("detector")
    path = trained(folder)
    assert run_export(path, folder / "repository") == 0
    return path, folder / "repository" / "hand_detector" / "1"


def test_the_servable_decodes_what_the_network_says_of_uint8_pictures(servable: tuple[Path, Path]) -> None:
    path, version_folder = servable
    network = weights.to_model(weights.load(path))
    signature: Any = tf.saved_model.load(str(version_folder)).signatures["serving_default"]
    for shape in ((1, 64, 64, 3), (3, 96, 128, 3)):
        pictures = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
        expected = np.asarray(decode(network(pictures.astype(np.float32) / 255 - 0.5)))
        outputs = signature(image=tf.constant(pictures))
        assert list(outputs) == ["detections"]
        actual = outputs["detections"].numpy()
        assert actual.shape == (shape[0], DETECTIONS, len(DETECTION_COLUMNS))
        np.testing.assert_allclose(actual[:, :, 0], expected[:, :, 0], atol=1e-4)
        np.testing.assert_allclose(actual[:, 0], expected[:, 0], rtol=1e-3, atol=1e-3)


def test_the_signature_is_the_agreed_one(servable: tuple[Path, Path]) -> None:
    loaded: Any = tf.saved_model.load(str(servable[1]))
    signature = loaded.signatures["serving_default"]
    ((), inputs) = signature.structured_input_signature
    assert inputs == {"image": tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")}
    (output,) = signature.structured_outputs.values()
    assert list(signature.structured_outputs) == ["detections"]
    assert output.dtype == tf.float32
    assert output.shape.as_list() == [None, DETECTIONS, len(DETECTION_COLUMNS)]


def test_the_card_is_read_by_trainer_and_service(servable: tuple[Path, Path]) -> None:
    path, version_folder = servable
    card = model_card.read(version_folder)
    assert isinstance(card, model_card.DetectorCard)
    assert (card.name, card.variant, card.version) == ("hand_detector", "hand_detector", 1)
    assert card.weights_sha256 == weights.file_sha256(path)
    assert card.parameters == weights.to_model(weights.load(path)).count_params()
    assert card.macs == profile.count_model(build_detector(batch_norm=False, input_size=64, widths=NARROW)).macs
    assert card.provenance == {"trained": "2026-01-02"}
    content = json.loads((version_folder / "model_card.json").read_text())
    assert model_card.DetectorCard.from_json(content) == card
    of_service = DetectorCard.model_validate(content)
    assert (of_service.input_size, of_service.columns) == (64, DETECTION_COLUMNS)
    with pytest.raises(model_card.CardError, match="columns has to be a list of names"):
        model_card.DetectorCard.from_json({**content, "columns": [1]})


def test_the_warm_up_holds_a_real_request_for_each_allowed_batch_size(servable: tuple[Path, Path]) -> None:
    signature: Any = tf.saved_model.load(str(servable[1])).signatures["serving_default"]
    records = tf.data.TFRecordDataset(str(servable[1] / "assets.extra" / "tf_serving_warmup_requests"))
    shapes = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("hand_detector", "serving_default")
        pictures = tf.make_ndarray(request.inputs["image"])
        assert len(signature(image=tf.constant(pictures))["detections"]) == len(pictures)
        shapes.append(pictures.shape)
    assert shapes == [(batch, 64, 64, 3) for batch in (1, 2, 4, 8, 16)]


def test_if_missing_leaves_what_is_there_and_sizes_that_do_not_fit_are_refused(
    servable: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, version_folder = servable
    repository = version_folder.parents[1]
    assert run_export(path, repository, "--if-missing") == 0
    assert capsys.readouterr().out == f"{version_folder} is up to date\n"
    assert run_export(path, repository, "--input-size", "72") == 2
    assert "input size 72 is not a positive multiple of 32" in capsys.readouterr().err
    assert export.existing_versions(version_folder.parent) == [1]


def test_a_servable_that_computes_something_else_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = export.load_servable

    def damaged(*arguments: Any) -> Any:
        predict = load(*arguments)
        return lambda pictures: predict(pictures) * np.float32(1.01)

    monkeypatch.setattr(export, "load_servable", damaged)
    with pytest.raises(TrainerError, match=r"differs from the Keras network by .* in score"):
        export.export(weights.load(trained(tmp_path)), tmp_path / "repository")
    assert list((tmp_path / "repository" / "hand_detector").iterdir()) == []


def test_all_networks_are_exported_by_default_and_missing_weights_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = weights.WEIGHTS_FOLDER

    def default_path(variant: str) -> Path:
        return (tmp_path if variant == weights.DETECTOR else ours) / f"{variant}.npz"

    monkeypatch.setattr(weights, "default_path", default_path)
    assert main(["export", "--model-repo", str(tmp_path / "repository")]) == 2
    assert f"no weights at {tmp_path / 'hand_detector.npz'}" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def rows(*hands: tuple[float, ...]) -> NDArray[np.float32]:
    """What a detector answers: these rows first, then none."""
    made = np.zeros((DETECTIONS, len(DETECTION_COLUMNS)), np.float32)
    for row, hand in enumerate(hands):
        made[row] = hand
    return made


SURE = (0.9, 20.0, 30.0, 16.0, 0.0, -1.0, 0.8)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A picture of 256 x 128 pixels: a pixel of a 64-pixel input is 4 of it, above and below are 16 of padding."""
    path = tmp_path / "wide.jpg"
    Image.fromarray(np.full((128, 256, 3), 90, np.uint8)).save(path)
    return path


def test_golden_hands_are_the_sure_ones_in_pixels_of_the_picture(wide: Path) -> None:
    unsure = (0.3, 50.0, 30.0, 16.0, 0.0, -1.0, 0.8)
    golden = golden_answers(lambda pictures: np.stack([rows(SURE, unsure)] * len(pictures)), [wide], 64, steady_hands)
    assert golden is not None
    (image,) = golden["images"]
    assert base64.b64decode(image["image"]) == wide.read_bytes()
    np.testing.assert_allclose(image["hands"], [[80.0, 56.0, 64.0, 0.0, -1.0, 0.8]], atol=1e-4)


def test_a_picture_without_hands_is_a_golden_answer_too(wide: Path) -> None:
    golden = golden_answers(lambda pictures: np.stack([rows()] * len(pictures)), [wide], 64, steady_hands)
    assert golden is not None
    assert golden["images"][0]["hands"] == []


@pytest.mark.parametrize(
    "answers",
    [
        [rows(SURE), rows()],
        [rows(SURE), rows((*SURE[:1], 21.0, *SURE[2:]))],
        [rows((0.52, *SURE[1:])), rows((0.52, *SURE[1:]))],
        [rows(SURE, (0.8, *SURE[1:])), rows(SURE, (0.8, *SURE[1:]))],
    ],
    ids=["comes and goes", "moves", "nearly not shown", "twice the same hand"],
)
def test_pictures_whose_answer_is_not_steady_are_left_out(answers: list[NDArray[np.float32]], wide: Path) -> None:
    assert golden_answers(lambda _: np.stack(answers), [wide], 64, steady_hands) is None


def test_an_exported_version_is_found_by_its_weights(servable: tuple[Path, Path], tmp_path: Path) -> None:
    card = model_card.read(servable[1])
    (tmp_path / "3").mkdir()
    model_card.write(replace(card, version=3), tmp_path / "3")
    assert export.find_exported(tmp_path, card.weights_sha256, 64) == 3
    assert export.find_exported(tmp_path, card.weights_sha256, 96) is None
