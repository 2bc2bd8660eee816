"""Golden answers: what goes into the card is what the service answers, and `models promote` takes it."""

import argparse
import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import config_text, without_detector
from service.backends.tensorflow_serving.management import add_arguments, run
from service.bootstrap import managed_servers
from service.pose.heatmaps import STRIDE, encode
from service.pose.keypoints import KEYPOINT_COUNT
from trainer import export, model_card, weights
from trainer.errors import RefusedError
from trainer.golden import TOLERANCE, golden_answers, golden_pictures
from trainer.models import build

SIZE = 64


def painting(points_in_input: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Belief maps of all keypoints of each crop at one point, input pixels."""
    keypoints = np.stack([np.tile(point, (KEYPOINT_COUNT, 1)) for point in points_in_input])
    cells = SIZE // STRIDE
    return encode(keypoints / STRIDE, np.ones(keypoints.shape[:-1], bool), (cells, cells))


def at_the_brightest(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Finds every keypoint where the picture is brightest, as a mean over its bright pixels."""
    points = []
    for crop in crops:
        rows, columns = np.nonzero(crop.mean(axis=-1) > 200)
        points.append(np.array((columns.mean() + 0.5, rows.mean() + 0.5)))
    return painting(points)


@pytest.fixture
def dot(tmp_path: Path) -> Path:
    """A wide black picture, 512 x 256, with a white square about (320, 96)."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[80:112, 304:336] = 255
    path = tmp_path / "dot.png"
    Image.fromarray(pixels).save(path)
    return path


def test_golden_keypoints_are_in_pixels_of_the_picture_that_is_kept(dot: Path) -> None:
    golden = golden_answers(at_the_brightest, [dot], SIZE)
    assert golden is not None
    (entry,) = golden["images"]
    with Image.open(io.BytesIO(base64.b64decode(entry["image"], validate=True))) as kept:
        assert (kept.format, kept.size) == ("JPEG", (256, 128))
    np.testing.assert_allclose(entry["keypoints"], [[160.0, 48.0]] * KEYPOINT_COUNT, atol=1.0)
    assert golden["tolerance"] == TOLERANCE


def test_a_picture_whose_answer_jumps_at_a_little_noise_is_left_out(dot: Path) -> None:
    def by_the_padding(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return painting([np.array((16.0 if crop[:8].std() == 0 else 48.0, 32.0)) for crop in crops])

    assert golden_answers(by_the_padding, [dot], SIZE) is None


def test_a_picture_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"none\.jpg: cannot be read"):
        golden_answers(at_the_brightest, [tmp_path / "none.jpg"], SIZE)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(RefusedError, match=r"text\.jpg"):
        golden_answers(at_the_brightest, [tmp_path / "text.jpg"], SIZE)


def test_the_pictures_that_ship_are_kept_in_the_card_byte_for_byte() -> None:
    pictures = golden_pictures()
    assert len(pictures) >= 5
    golden = golden_answers(lambda crops: painting([np.array((32.0, 32.0))] * len(crops)), pictures, SIZE)
    assert golden is not None
    assert [base64.b64decode(entry["image"]) for entry in golden["images"]] == [path.read_bytes() for path in pictures]


def steady_weights(path: Path, variant: str) -> Path:
    """A tiny network's weights: random ones, smoothed over space so that its answers have clear peaks."""
    model = build(variant, batch_norm=False, width_multiplier=1 / 16)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0.02, 0.05, weight.shape) for weight in model.weights])
    weights.save(model, path, weights.WeightsInfo(variant, "2026-01-02", SIZE, 1.25))
    return path


@pytest.mark.slow
def test_an_exported_version_is_promoted_by_its_golden_answers_and_a_changed_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = weights.load(steady_weights(tmp_path / "lightweight.npz", "lightweight"))
    repository = tmp_path / "repository"
    for _ in range(3):
        folder = export.export(stored, repository)
    card = model_card.read(folder)
    assert card.golden is not None
    assert len(card.golden["images"]) >= 3
    # The third version's card is of a network that answers otherwise.
    moved = [{**image, "keypoints": [[x + 20.0, y] for x, y in image["keypoints"]]} for image in card.golden["images"]]
    model_card.write(replace(card, golden={"images": moved}), folder)

    config = without_detector(config_text(repository, {"lightweight": ((1,), {"stable": 1})}))
    with StandIn(repository, config, arguments=("--model", "tensorflow")) as server:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        servers = managed_servers(
            (server.address,), config_file=server.config_file, repository=repository, patience_s=30.0
        )
        assert run(parser.parse_args(["promote", "lightweight@2"]), servers) == 0
        assert run(parser.parse_args(["promote", "lightweight@3"]), servers) == 1
    assert "is not what its card says: on golden image 1" in capsys.readouterr().err
