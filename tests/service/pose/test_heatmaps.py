import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.pose.geometry import Box, crop_affine
from service.pose.heatmaps import STRIDE, TARGET_SIGMA, decode, encode
from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT

ALL_LABELLED = np.ones(KEYPOINT_COUNT, np.bool_)
HALF_A_TENTH_OF_A_PIXEL = 0.05  # in input pixels: what the codec promises away from borders


def random_keypoints(seed: int, size: tuple[int, int], margin: float, batch: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).uniform(margin, np.array(size) - margin, (batch, KEYPOINT_COUNT, 2))


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_keypoints_survive_encoding_and_decoding(size: tuple[int, int], seed: int) -> None:
    in_heatmap = random_keypoints(seed, size, margin=4)
    decoded = decode(encode(in_heatmap, np.ones(in_heatmap.shape[:-1], np.bool_), size))
    assert np.abs(decoded.in_heatmap - in_heatmap).max() * STRIDE < HALF_A_TENTH_OF_A_PIXEL


@pytest.mark.parametrize("seed", range(20))
def test_keypoints_in_an_image_survive_a_random_crop(seed: int) -> None:
    random = np.random.default_rng(seed)
    box = Box(*random.uniform(-50, 400, 2), *random.uniform(40, 700, 2))
    affine = crop_affine(box, (256, 256), radians=random.uniform(-np.pi, np.pi), mirrored=bool(seed % 2))
    in_input = random_keypoints(seed, (256, 256), margin=4 * STRIDE, batch=1)[0]
    in_image = affine.inverse().apply(in_input)

    maps = encode(affine.apply(in_image) / STRIDE, ALL_LABELLED, (32, 32))
    back_in_input = decode(maps[None]).in_heatmap[0] * STRIDE
    back_in_image = affine.inverse().apply(back_in_input)

    assert np.abs(back_in_input - in_input).max() < HALF_A_TENTH_OF_A_PIXEL
    assert np.abs(back_in_image - in_image).max() < HALF_A_TENTH_OF_A_PIXEL / affine.scale


def test_a_keypoint_at_a_cell_centre_peaks_there_with_value_one() -> None:
    maps = encode(np.full((KEYPOINT_COUNT, 2), (5.5, 9.5)), ALL_LABELLED, (16, 20))
    assert maps.shape == (20, 16, CHANNEL_COUNT)
    assert maps[9, 5, 0] == 1.0
    np.testing.assert_allclose(maps[9, 6, 0], np.exp(-0.5 / TARGET_SIGMA**2), rtol=1e-6)


def test_the_background_is_what_the_keypoints_leave() -> None:
    maps = encode(random_keypoints(0, (32, 32), 4)[0], ALL_LABELLED, (32, 32))
    np.testing.assert_allclose(maps[..., -1], 1 - maps[..., :-1].max(axis=-1), atol=1e-6)


def test_an_unlabelled_keypoint_leaves_an_empty_map_and_no_warning() -> None:
    labelled = ALL_LABELLED.copy()
    labelled[3] = False
    points = np.full((KEYPOINT_COUNT, 2), 8.0)
    points[3] = np.nan
    maps = encode(points, labelled, (16, 16))
    assert not maps[..., 3].any()
    assert np.isfinite(maps).all()


@pytest.mark.parametrize("size", [(16, 16), (32, 32)])
def test_keypoints_at_the_very_border_survive_as_well(size: tuple[int, int]) -> None:
    in_heatmap = random_keypoints(3, size, margin=0.0, batch=200)
    decoded = decode(encode(in_heatmap, np.ones(in_heatmap.shape[:-1], np.bool_), size))
    assert np.abs(decoded.in_heatmap - in_heatmap).max() * STRIDE < HALF_A_TENTH_OF_A_PIXEL


def test_a_keypoint_just_outside_the_map_is_found_where_it_is() -> None:
    points = np.full((KEYPOINT_COUNT, 2), (-0.4, 8.0))
    found = decode(encode(points, ALL_LABELLED, (16, 16))[None]).in_heatmap[0]
    np.testing.assert_allclose(found, points, atol=0.01)


def test_the_score_is_the_peak() -> None:
    maps = encode(random_keypoints(1, (32, 32), 4), np.ones((8, KEYPOINT_COUNT), np.bool_), (32, 32))
    sure, unsure = decode(maps), decode(maps * 0.25)
    np.testing.assert_allclose(unsure.scores, sure.scores * 0.25, rtol=1e-5)
    assert (sure.scores > 0.8).all()
    np.testing.assert_allclose(unsure.in_heatmap, sure.in_heatmap, atol=1e-3)


def test_nothing_underflows_on_the_way() -> None:
    """Arithmetic on denormal numbers takes many times as long: it was most of what decoding cost."""
    maps = encode(random_keypoints(0, (32, 32), 4), np.ones((8, KEYPOINT_COUNT), np.bool_), (32, 32))
    faint_background = np.maximum(maps, np.float32(1e-30))
    decode(maps)  # the matrices for this size are made once
    with np.errstate(under="raise"):
        decode(maps)
        decode(faint_background)


def test_what_is_far_below_any_belief_tells_nothing() -> None:
    maps = encode(random_keypoints(0, (32, 32), 4), np.ones((8, KEYPOINT_COUNT), np.bool_), (32, 32))
    clean, faint = decode(np.where(maps > 1e-10, maps, 0)), decode(np.where(maps > 1e-10, maps, 1e-11))
    np.testing.assert_array_equal(clean.in_heatmap, faint.in_heatmap)
    np.testing.assert_array_equal(clean.scores, faint.scores)
    np.testing.assert_array_equal(clean.sigmas, faint.sigmas)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -1e30])
def test_what_is_no_belief_counts_as_none(odd: float) -> None:
    maps = encode(random_keypoints(0, (16, 16), 6, batch=2), np.ones((2, KEYPOINT_COUNT), np.bool_), (16, 16))
    expected = decode(maps)
    maps[:, 0, :3, :] = odd
    decoded = decode(maps)
    np.testing.assert_allclose(decoded.in_heatmap, expected.in_heatmap, atol=1e-5)
    np.testing.assert_array_equal(decoded.scores, expected.scores)
    np.testing.assert_allclose(decoded.sigmas, expected.sigmas, atol=1e-5)


def test_noise_moves_a_keypoint_less_than_a_cell_beside_it_says() -> None:
    random = np.random.default_rng(0)
    in_heatmap = random_keypoints(1, (32, 32), 8)
    maps = encode(in_heatmap, np.ones(in_heatmap.shape[:-1], np.bool_), (32, 32))
    maps += random.normal(0, 0.05, maps.shape).astype(np.float32)
    distances = np.linalg.norm(decode(maps).in_heatmap - in_heatmap, axis=-1)
    assert np.median(distances) < 0.08  # without smoothing it is 0.11


def test_an_empty_map_has_no_score_and_no_spread() -> None:
    decoded = decode(np.zeros((1, 16, 16, CHANNEL_COUNT), np.float32))
    assert not decoded.scores.any()
    assert not decoded.sigmas.any()
    assert (decoded.in_heatmap == 0.5).all()


def test_maps_are_left_as_they_are() -> None:
    maps = np.random.default_rng(0).normal(0, 1, (2, 16, 16, CHANNEL_COUNT)).astype(np.float32)
    before = maps.copy()
    decode(maps)
    np.testing.assert_array_equal(maps, before)


def test_scores_are_probabilities_whatever_the_network_says() -> None:
    maps = np.random.default_rng(0).normal(0, 100, (2, 16, 16, CHANNEL_COUNT))
    scores = decode(maps).scores
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_the_spread_is_the_targets_and_grows_with_a_second_peak() -> None:
    points = random_keypoints(2, (32, 32), 6, batch=1)
    labelled = np.ones((1, KEYPOINT_COUNT), np.bool_)
    clear = encode(points, labelled, (32, 32))
    doubtful = clear + 0.8 * encode(32 - points, labelled, (32, 32))
    spread = decode(clear).sigmas
    np.testing.assert_allclose(spread, TARGET_SIGMA, rtol=0.06)
    apart = np.linalg.norm(points - 16, axis=-1) > 3
    assert (decode(doubtful).sigmas[apart] > 1.5 * spread[apart]).all()


def test_a_batch_gives_what_its_members_give_alone() -> None:
    maps = np.random.default_rng(0).uniform(0, 1, (4, 16, 24, CHANNEL_COUNT)).astype(np.float32)
    together = decode(maps)
    for index in range(4):
        alone = decode(maps[index : index + 1])
        np.testing.assert_allclose(together.in_heatmap[index], alone.in_heatmap[0], atol=1e-5)
        np.testing.assert_allclose(together.sigmas[index], alone.sigmas[0], rtol=1e-4)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (1, 8, 8, CHANNEL_COUNT), elements=st.floats(width=32)))
def test_any_maps_decode_to_finite_points_near_the_map(maps: np.ndarray) -> None:
    decoded = decode(maps)
    assert np.isfinite(decoded.in_heatmap).all()
    assert decoded.in_heatmap.min() >= -1
    assert decoded.in_heatmap.max() <= 9
    assert np.isfinite(decoded.sigmas).all()
    assert ((decoded.scores >= 0) & (decoded.scores <= 1)).all()


@pytest.mark.parametrize("shape", [(8, 8, 22), (1, 8, 8, 21), (1, 2, 8, 22)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="belief maps must be"):
        decode(np.zeros(shape, np.float32))


def test_keypoints_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="keypoints must be"):
        encode(np.zeros((20, 2)), np.ones(20, np.bool_), (16, 16))
