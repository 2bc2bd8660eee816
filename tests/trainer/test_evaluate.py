"""Evaluation: a network that knows the answer scores it, the protocols crop and divide as they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pose.heatmaps import STRIDE, encode
from service.pose.preprocessing import CROP_PADDING
from tests.trainer.data.fake_samples import dotted_sample
from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer import cli
from trainer.data.augment import UPRIGHT
from trainer.data.pipeline import ImageStore, make_crop
from trainer.data.sample import DataError, Sample
from trainer.evaluate import (
    Predict,
    contact_sheet,
    evaluate_samples,
    pck_of_turned_pictures,
    report,
    table,
    write_plots,
)
from trainer.turned_pictures import turned

SIZE = 256


def _oracle(samples: list[Sample], *, off_by_px: float = 0.0, size: int = SIZE) -> Predict:
    """Answers with the true belief maps of the samples in order, moved right by some input pixels."""
    answers = iter(samples)

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = []
        for _ in crops:
            sample = next(answers)
            crop = make_crop(sample, ImageStore(), size, np.random.default_rng(0))
            keypoints = crop.keypoints_in_input + np.array((off_by_px, 0.0))
            maps.append(encode(keypoints / STRIDE, sample.labelled, (size // STRIDE, size // STRIDE)))
        return np.stack(maps)

    return predict


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [dotted_sample(tmp_path, number) for number in range(5)]


def test_a_network_that_knows_the_answer_is_perfect(samples: list[Sample]) -> None:
    evaluation = evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE, batch_size=2)
    scores = evaluation.scores()
    assert scores.samples == 5
    assert scores.pck_at_0_1 == 1.0
    assert scores.epe_px < 0.02
    assert (evaluation.confidence > 0.8).all()


def test_distances_are_in_pixels_of_the_picture_and_of_the_crop(samples: list[Sample]) -> None:
    evaluation = evaluate_samples(_oracle(samples, off_by_px=8.0), samples, ImageStore(), SIZE)
    scale = SIZE / (CROP_PADDING * max(samples[0].box_in_image.width, samples[0].box_in_image.height))
    inner = evaluation.predicted_in_image[..., 0] < samples[0].box_in_image.centre[0]  # away from the border
    np.testing.assert_allclose(evaluation.distance_in_input[inner], 8.0, atol=0.1)
    np.testing.assert_allclose(evaluation.distance_px[inner], 8.0 / scale, atol=0.1 / scale)


def test_report_has_every_part_and_is_json(samples: list[Sample]) -> None:
    evaluation = evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE)
    content = report(evaluation)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["all"]["pck_at_0_2"] == 1.0
    assert content["by_data_set"]["fake"]["samples"] == 5
    assert content["hidden"]["pck_at_0_2"] is None
    assert len(content["by_keypoint"]) == 21
    assert "fake" in table(content)


def test_hands_are_reported_by_people_view_fingers_and_size_with_errors_over_groups_of_people(
    samples: list[Sample],
) -> None:
    told = [
        replace(sample, group="ann" if number < 2 else "bob", view="palm", extended=number)
        for number, sample in enumerate(samples)
    ]
    content = report(evaluate_samples(_oracle(told), told, ImageStore(), SIZE))

    assert {name: part["samples"] for name, part in content["by_group"].items()} == {"ann": 2, "bob": 3}
    assert content["by_view"]["palm"]["groups"] == 2
    assert [part["samples"] for part in content["by_fingers"].values()] == [2, 2, 1]
    assert content["by_size"]["1/4 to 1/2"]["samples"] == 5
    assert content["all"]["pck_at_0_1_se"] == 0.0
    assert content["by_group"]["ann"]["pck_at_0_1_se"] is None
    lines = table(content).splitlines()
    assert any(line.startswith("view: palm") and "1.0 ±0.0" in line for line in lines)
    assert "by_view" not in report(evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE))


def test_upright_crops_show_a_turned_hand_upright(samples: list[Sample]) -> None:
    seen: list[NDArray[np.float64]] = []

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        for sample, pixels in zip(samples, crops, strict=True):
            crop = make_crop(sample, ImageStore(), SIZE, np.random.default_rng(0), UPRIGHT)
            np.testing.assert_array_equal(crop.pixels, pixels)
            seen.append(crop.keypoints_in_input)
        cells = SIZE // STRIDE
        return encode(np.stack(seen) / STRIDE, np.ones((len(seen), 21), bool), (cells, cells))

    evaluation = evaluate_samples(predict, samples, ImageStore(), SIZE, upright=True)
    assert evaluation.scores().pck_at_0_1 == 1.0
    across, down = (seen[0][9] - seen[0][0]).tolist()
    assert abs(across) < 1e-6 < -down


@pytest.mark.parametrize("degrees", [0, 45, 90, 225])
def test_a_hand_in_a_turned_picture_is_where_its_pixels_are(
    samples: list[Sample], tmp_path: Path, degrees: int
) -> None:
    hand = samples[3]
    moved = turned(hand, ImageStore(), degrees, tmp_path / "turned.png")
    with Image.open(moved.image_path) as picture:
        pixels = np.asarray(picture.convert("L")).astype(float)
    pixels[(pixels < 60) | (np.abs(pixels - 128) < 1)] = 0.0  # the black of the picture, and the grey beyond it
    rows, columns = np.indices(pixels.shape) + 0.5
    bright = np.array([(pixels * columns).sum(), (pixels * rows).sum()]) / pixels.sum()
    assert np.abs(bright - moved.keypoints_in_image[3]).max() < 0.6


def test_a_network_is_measured_on_turned_pictures_with_the_turn_and_without(samples: list[Sample]) -> None:
    def in_the_middle(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        cells = SIZE // STRIDE
        return encode(np.full((len(crops), 21, 2), cells / 2), np.ones((len(crops), 21), bool), (cells, cells))

    shares = pck_of_turned_pictures(in_the_middle, samples[:1], ImageStore(), SIZE)
    assert list(shares) == ["0", "45", "90", "135", "180", "225", "270", "315"]
    assert all(set(share) == {"turn_given", "turn_not_given"} for share in shares.values())


def test_worst_hands_come_first(samples: list[Sample]) -> None:
    right, wrong = _oracle(samples), np.zeros((1, SIZE // STRIDE, SIZE // STRIDE, 22), np.float32)
    wrong[0, 0, 0] = 1.0
    calls = iter(range(len(samples)))

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = right(crops)
        return wrong if next(calls) == 3 else answer

    evaluation = evaluate_samples(predict, samples, ImageStore(), SIZE, batch_size=1)
    assert evaluation.worst(2)[0] == 3


def test_mmposes_rhd_protocol_crops_and_divides_by_the_larger_box(samples: list[Sample]) -> None:
    store = ImageStore()
    plain = evaluate_samples(_oracle(samples), samples, store, SIZE)
    protocol = evaluate_samples(_oracle(samples), samples, store, SIZE, protocol="mmpose-rhd")
    np.testing.assert_allclose(protocol.sides_px, 1.2 * plain.sides_px)


def test_head_protocol_needs_a_head_size(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="needs a head size"):
        evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE, protocol="head")


def test_further_boxes_lie_beside_the_labels_and_what_counts_is_divided_by_the_same(samples: list[Sample]) -> None:
    once = evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE)
    moved = evaluate_samples(_oracle(samples * 4), samples, ImageStore(), SIZE, boxes=4).samples
    again = evaluate_samples(_oracle(list(moved)), samples, ImageStore(), SIZE, boxes=4)

    assert [sample.box_in_image for sample in again.samples] == [sample.box_in_image for sample in moved]
    assert [sample.image_path for sample in moved] == [sample.image_path for sample in samples for _ in range(4)]
    np.testing.assert_array_equal(again.sides_px, np.repeat(once.sides_px, 4))
    for index, sample in enumerate(moved):
        label, box = samples[index // 4].box_in_image, sample.box_in_image
        side = max(label.width, label.height)
        assert (box == label) == (index % 4 == 0)
        assert np.abs(np.subtract(box.centre, label.centre)).max() <= 0.07 * side
        assert 0.85 <= box.width / label.width <= 1.25
    inside = again.distance_px[again.confidence > 0.8]  # what the crop shows
    assert len(inside) > 0.9 * again.distance_px.size
    assert inside.max() < 0.2


def test_no_box_at_all_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="at least 1 box"):
        evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE, boxes=0)


def test_evaluating_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no hand to evaluate"):
        evaluate_samples(_oracle([]), [], ImageStore(), SIZE)


def test_plots_are_written(samples: list[Sample], tmp_path: Path) -> None:
    evaluation = evaluate_samples(_oracle(samples), samples, ImageStore(), SIZE)
    write_plots(evaluation, ImageStore(), tmp_path / "plots")
    assert (tmp_path / "plots/pck.png").stat().st_size > 1000
    assert contact_sheet(evaluation, ImageStore(), [0, 1, 2], columns=2, side=48).size == (96, 96)


def test_missing_data_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["evaluate", "--variant", "lightweight", "--data", f"coco:{tmp_path / 'nowhere'}"])
    assert code == 2
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.slow
def test_skip_bad_counts_what_it_leaves_out_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer import weights
    from trainer.models import build

    write_miniature_rhd(tmp_path / "rhd", training=3, evaluation=1)
    (tmp_path / "rhd/training/color/00000.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "rhd/training/color/00002.png").unlink()
    path = tmp_path / "lightweight.npz"
    info = weights.WeightsInfo("lightweight", "2026-01-01", 32, 1.25)
    weights.save(build("lightweight", batch_norm=True, width_multiplier=0.03), path, info)
    arguments = ["evaluate", "--variant", "lightweight", "--data", f"rhd:{tmp_path / 'rhd'}"]
    arguments += ["--weights", str(path)]
    assert cli.main(arguments) == 2
    assert "00002.png: missing picture" in capsys.readouterr().err
    assert cli.main([*arguments, "--skip-bad", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["all"]["samples"] == 2
    assert json.loads(printed.out)["left_out"] == 2
    assert "left out 2 bad samples" in printed.err
    assert "00000.png" in printed.err


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rhd`, the tiny weights `lightweight.npz` (to be served at 64 px) and their servable."""
    from trainer import weights
    from trainer.models import build

    folder = tmp_path_factory.mktemp("network")
    write_miniature_rhd(folder / "rhd", training=2, evaluation=1)
    info = weights.WeightsInfo("lightweight", "2026-01-01", 64, 1.25)
    weights.save(build("lightweight", batch_norm=True, width_multiplier=0.05), folder / "lightweight.npz", info)
    export = ["export", "--variant", "lightweight", "--weights", str(folder / "lightweight.npz")]
    assert cli.main([*export, "--model-repo", str(folder / "repository")]) == 0
    return folder


def _evaluate(network: Path, *arguments: str) -> int:
    return cli.main(["evaluate", "--data", f"rhd:{network / 'rhd'}", "--json", *arguments])


def _refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_weights_file_is_evaluated_from_the_command_line(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--weights", str(network / "lightweight.npz")]
    assert _evaluate(network, *weights, "--variant", "lightweight", "--holdout", "^evaluation/") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["all"]["samples"] == 1
    assert content["input_size"] == 64
    assert _evaluate(network, *weights, "--input-size", "96") == 0
    assert json.loads(capsys.readouterr().out)["input_size"] == 96
    assert _evaluate(network, *weights, "--holdout", "^evaluation/", "--boxes", "3") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["all"]["samples"], content["boxes_a_hand"]) == (3, 3)
    assert content["command"].endswith("--boxes 3")
    with pytest.raises(SystemExit):
        _evaluate(network, *weights, "--boxes", "0")
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_servable_is_evaluated_as_its_card_says(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servable = ["--servable", str(network / "repository/cpm_lightweight/1")]
    assert _evaluate(network, *servable) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["variant"], content["input_size"]) == ("lightweight", 64)
    wrong = _refusal(capsys, _evaluate(network, *servable, "--variant", "standard"))
    assert "holds a lightweight network, not a standard one" in wrong


@pytest.mark.slow
def test_a_network_that_is_not_named_or_a_size_that_cannot_be_is_refused(
    network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name the network" in _refusal(capsys, _evaluate(network))
    weights = ["--weights", str(network / "lightweight.npz")]
    assert "100 is not a positive multiple of 8" in _refusal(
        capsys, _evaluate(network, *weights, "--input-size", "100")
    )
    assert "no servable there" in _refusal(capsys, _evaluate(network, "--servable", str(network)))
