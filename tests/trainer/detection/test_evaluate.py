"""Measuring the detector: what counts as found, what is excused, and the figures of made-up detections."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pose.detections import DETECTIONS, Detection
from service.pose.geometry import Box, turn_to_upright
from tests.trainer.detection.pictures import hand, picture, write_set
from trainer.data.pipeline import ImageStore
from trainer.data.sample import DataError
from trainer.detection.evaluate import curve, detect, hands_of, judge, recall_at_alarms, report, worst_sheet
from trainer.detection.labels import LabelledHand, read_pictures


def seen(
    of: LabelledHand, score: float = 0.9, *, off: float = 0.0, scale: float = 1.0, right: float = 0.9
) -> Detection:
    """A detection of a hand, its middle off by a share of the size, its own size by a factor."""
    centre, size = of.upright_square()
    assert of.along is not None
    return Detection(
        score, (float(centre[0]) + off * size, float(centre[1])), size * scale, turn_to_upright(of.along), right
    )


def at(x: float, y: float, score: float = 0.9, size: float = 40.0) -> Detection:
    return Detection(score, (x, y), size, 0.0, 0.9)


ONE, OTHER = hand(60, 70, 50), hand(180, 170, 40, degrees=90, side="left")


@pytest.mark.parametrize(
    ("off", "scale", "found"),
    [(0.0, 1.0, True), (0.34, 1.0, True), (0.36, 1.0, False), (0.0, 1.59, True), (0.0, 1.61, False), (0.0, 0.6, False)],
)
def test_a_hand_is_found_by_a_detection_near_its_middle_and_of_its_size(off: float, scale: float, found: bool) -> None:
    assert judge(picture(ONE), [seen(ONE, off=off, scale=scale)]).verdicts == ((0,) if found else ("false alarm",))


def test_a_hand_is_found_once_and_the_surer_detection_finds_it() -> None:
    judged = judge(picture(ONE, OTHER), [seen(ONE, 0.5), seen(ONE, 0.8, off=0.2), seen(OTHER, 0.7)])
    assert [each.score for each in judged.detections] == [0.8, 0.7, 0.5]
    assert judged.verdicts == (0, 1, "false alarm")


def test_ignored_regions_and_hands_that_are_too_small_are_excused() -> None:
    small = hand(200, 30, 12)
    judged = judge(picture(ONE, small, ignored=(Box(100, 100, 50, 50),)), [at(120, 120), seen(small), at(220, 220)])
    assert sorted(map(str, judged.verdicts)) == ["excused", "excused", "false alarm"]
    assert len(hands_of([judged])) == 1
    assert not judged.is_empty


def test_figures_of_made_up_detections() -> None:
    judged = [
        judge(picture(ONE, group="a"), [seen(ONE, 0.9)]),
        judge(picture(OTHER, group="a"), [seen(OTHER, 0.6, right=0.8), at(30, 30, 0.75)]),
        judge(picture(group="b"), [at(30, 30, 0.45)]),
        judge(picture(group="b"), []),
    ]
    figures = report(judged)
    assert (figures["pictures"], figures["hand_free_pictures"], figures["hands"]) == (4, 2, 2)
    assert figures["recall"]["0.5"] == 1.0
    assert figures["recall"]["0.7"] == 0.5
    assert figures["false_alarms_a_picture"]["0.5"] == 0.25
    assert figures["false_alarms_a_picture"]["0.4"] == 0.5
    assert figures["hand_free_pictures_with_a_detection"]["0.5"] == 0.0
    assert figures["hand_free_pictures_with_a_detection"]["0.4"] == 0.5
    assert figures["recall_at_false_alarms_a_picture"] == {"0.01": 0.5, "0.03": 0.5, "0.1": 0.5, "0.3": 1.0}
    assert [figures["by_size"][band]["hands"] for band in ("6 to 12 %", "12 to 25 %", "over 25 %")] == [0, 2, 0]
    assert figures["by_size"]["over 25 %"]["recall"]["0.5"] is None
    assert figures["side_accuracy"] == 0.5  # the left hand was taken for a right one
    assert figures["direction_error_degrees"]["median"] == 0.0
    assert figures["by_group"]["b"]["hands"] == 0


def test_recall_over_false_alarms_rises_as_the_threshold_falls() -> None:
    judged = [judge(picture(ONE, OTHER), [seen(ONE, 0.9), at(30, 200, 0.8), seen(OTHER, 0.3)])]
    thresholds, alarms, recall = curve(judged)
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(alarms) >= 0).all()
    assert (np.diff(recall) >= 0).all()
    assert recall_at_alarms(judged, 0.5) == 0.5
    assert recall_at_alarms(judged, 1.0) == 1.0


def test_pictures_are_letterboxed_and_rows_come_back_in_pixels_of_the_picture(tmp_path: Path) -> None:
    true = hand(48, 60, 40)
    (labelled,) = read_pictures(write_set(tmp_path / "set", {"1.png": [true]}))
    centre, size = true.upright_square()

    def predict(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pictures.shape == (1, 192, 192, 3)
        rows = np.zeros((1, DETECTIONS, 7), np.float32)
        rows[0, 0] = (0.8, centre[0] * 2, centre[1] * 2, size * 2, 0.0, -1.0, 0.9)
        return rows

    store = ImageStore()
    (judged,) = detect(predict, [labelled], store, 192)
    assert judged.verdicts == (0,)
    assert isinstance(worst_sheet([judged], store), Image.Image)
    with pytest.raises(DataError, match="no picture"):
        detect(predict, [], store, 192)
