"""Metrics against figures worked out by hand."""

import numpy as np
import pytest

from service.pose.geometry import Box
from trainer import metrics

ALL = np.ones((2, 21), bool)


def test_distances_are_euclidean() -> None:
    predicted = np.zeros((1, 21, 2))
    true = np.full((1, 21, 2), (3.0, 4.0))
    np.testing.assert_allclose(metrics.distances(predicted, true), 5.0)
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.distances(predicted, true[:, :5])


def test_pck_counts_distances_strictly_below_the_threshold_times_the_side() -> None:
    distance = np.full((2, 21), 10.0)
    sides = np.array([100.0, 200.0])
    assert metrics.pck(distance, sides, ALL, 0.1) == pytest.approx(0.5)
    assert metrics.pck(distance, sides, ALL, 0.11) == pytest.approx(1.0)
    assert metrics.pck(distance, sides, ALL, 0.04) == pytest.approx(0.0)


def test_pck_is_the_mean_over_keypoints_not_over_points() -> None:
    # Keypoint 0 is labelled twice and right once; keypoint 1 is labelled once and right.
    distance = np.full((2, 21), 99.0)
    counted = np.zeros((2, 21), bool)
    counted[:, 0], counted[0, 1] = True, True
    distance[0, 0], distance[0, 1] = 0.0, 0.0
    per_keypoint = metrics.pck_per_keypoint(distance, np.full(2, 100.0), counted, 0.2)
    np.testing.assert_allclose(per_keypoint[:2], [0.5, 1.0])
    assert np.isnan(per_keypoint[2:]).all()
    assert metrics.pck(distance, np.full(2, 100.0), counted, 0.2) == pytest.approx(0.75)


def test_what_is_not_labelled_never_counts() -> None:
    distance = np.zeros((2, 21))
    counted = ALL.copy()
    distance[1, 3], counted[1, 3] = 1000.0, False
    scores = metrics.score(distance, np.full(2, 50.0), counted)
    assert scores.pck_at_0_2 == 1.0
    assert scores.epe_px == 0.0
    assert scores.keypoints == 41


def test_perfect_keypoints_reach_095_in_mmposes_auc_and_almost_1_in_the_trapezoid() -> None:
    perfect = np.zeros((2, 21))
    assert metrics.auc_mmpose(perfect, ALL) == pytest.approx(0.95)
    assert metrics.auc_trapezoid(perfect, np.full(2, 80.0), ALL) == pytest.approx(1.0 - 0.5 / 60)


def test_mmposes_auc_is_the_mean_over_20_pixel_thresholds() -> None:
    # 3.0 px lies strictly below 4.5, 6, ..., 28.5: 17 of the 20 thresholds.
    assert metrics.auc_mmpose(np.full((2, 21), 3.0), ALL) == pytest.approx(17 / 20)


def test_trapezoid_auc_of_a_step_is_what_lies_to_its_right() -> None:
    distance, sides = np.full((2, 21), 15.0), np.full(2, 100.0)  # relative distance 0.15, half of the range
    assert metrics.auc_trapezoid(distance, sides, ALL) == pytest.approx(0.5, abs=0.01)


def test_epe_overall_and_per_keypoint() -> None:
    distance = np.arange(42, dtype=np.float64).reshape(2, 21)
    counted = ALL.copy()
    counted[1, 0] = False
    assert metrics.epe_per_keypoint(distance, counted)[0] == 0.0
    assert metrics.epe_per_keypoint(distance, counted)[1] == pytest.approx((1 + 22) / 2)
    assert metrics.epe(distance, counted) == pytest.approx((sum(range(42)) - 21) / 41)


def test_nothing_counted_gives_nan_and_no_warning() -> None:
    scores = metrics.score(np.zeros((2, 21)), np.ones(2), np.zeros((2, 21), bool))
    assert np.isnan([scores.pck_at_0_2, scores.epe_px, scores.auc_mmpose]).all()


def test_mmposes_rhd_box_is_a_fifth_larger_and_clipped_to_the_picture() -> None:
    assert metrics.mmpose_rhd_box(Box(100, 100, 50, 100), (320, 320)) == Box(95, 90, 60, 120)
    clipped = metrics.mmpose_rhd_box(Box(0, 200, 100, 120), (320, 320))
    sides = [clipped.x, clipped.y, clipped.width, clipped.height]
    np.testing.assert_allclose(sides, [0, 188, 110, 132])
    assert metrics.normalising_side(clipped) == pytest.approx(132)


def test_standard_errors_are_over_clusters_and_not_over_the_hands_in_them() -> None:
    rng = np.random.default_rng(0)
    of_person = rng.random(40) < 0.5  # each person's hands are all found or none is
    found = np.repeat(of_person, 25)
    distance = np.where(found, 0.0, 1.0)[:, None].repeat(21, axis=1)
    sides, counted = np.ones(1000), np.ones((1000, 21), bool)
    people, hands = [f"{n // 25}" for n in range(1000)], [f"{n}" for n in range(1000)]

    share = found.mean()
    for clusters, independent in ((people, 40), (hands, 1000)):
        error = metrics.clustered_standard_error(distance, sides, counted, clusters, [0.1])
        assert error == pytest.approx(np.sqrt(share * (1 - share) / independent), rel=0.1)


def test_one_cluster_tells_nothing_of_the_standard_error() -> None:
    assert np.isnan(metrics.clustered_standard_error(np.zeros((2, 21)), np.ones(2), ALL, ["a", "a"], [0.1, 0.2]))
