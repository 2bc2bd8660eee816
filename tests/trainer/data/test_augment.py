"""Augmentation: labels move with the pixels, hands change sides, and nothing changes when nothing is asked."""

from dataclasses import replace

import numpy as np
import pytest

from service.pose.geometry import Affine, Box, crop_affine
from service.pose.preprocessing import CROP_PADDING, hand_box_to_crop
from tests.trainer.data.fake_samples import fake_sample
from trainer.data.augment import (
    NO_AUGMENTATION,
    UPRIGHT,
    AugmentConfig,
    draw,
    handedness_after,
    photometric,
    upright_turn,
)

BOX = Box(30.0, 20.0, 40.0, 60.0)
HAND = replace(fake_sample(), box_in_image=BOX)
SIZE = (64, 64)


def test_no_augmentation_is_servings_crop() -> None:
    augmentation = draw(np.random.default_rng(0), HAND, SIZE, NO_AUGMENTATION)
    assert not augmentation.mirrored
    expected = crop_affine(hand_box_to_crop(BOX), SIZE)
    np.testing.assert_allclose(augmentation.image_to_input.coefficients(), expected.coefficients())
    crop = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(photometric(crop, np.random.default_rng(0), NO_AUGMENTATION), crop)


def test_the_affine_stays_a_similarity_whose_sign_tells_the_mirror() -> None:
    rng = np.random.default_rng(1)
    mirrored = []
    for _ in range(50):
        augmentation = draw(rng, HAND, SIZE, AugmentConfig())
        a, b, _, d, e, _ = augmentation.image_to_input.coefficients()
        assert a * b + d * e == pytest.approx(0.0, abs=1e-9)
        assert np.hypot(a, d) == pytest.approx(np.hypot(b, e))
        assert (augmentation.image_to_input.determinant < 0) == augmentation.mirrored
        mirrored.append(augmentation.mirrored)
    assert 10 < sum(mirrored) < 40


def test_scale_stays_between_the_configured_limits_and_near_servings_crop() -> None:
    rng = np.random.default_rng(2)
    config = AugmentConfig(shrink=2.5, enlarge=1.15)
    serving = crop_affine(hand_box_to_crop(BOX), SIZE).scale
    ratios = np.array([serving / draw(rng, HAND, SIZE, config).image_to_input.scale for _ in range(300)])
    assert ratios.min() >= 1 / 1.15 - 1e-9
    assert ratios.max() <= 2.5 + 1e-9
    assert np.median(ratios) < 1.3
    assert ratios.max() > 1.8


def test_the_hands_middle_stays_in_the_crop() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        middle = draw(rng, HAND, SIZE, AugmentConfig()).image_to_input.apply(np.array(BOX.centre))
        assert (middle > 0).all()
        assert (middle < 64).all()


def test_most_hands_stay_near_upright_and_some_turn_anywhere() -> None:
    rng = np.random.default_rng(4)
    config = AugmentConfig(turn=15.0, any_turn_chance=0.2, mirror_chance=0.0)
    turns = []
    for _ in range(400):
        a, _, _, d, _, _ = draw(rng, HAND, SIZE, config).image_to_input.coefficients()
        turns.append(abs(np.degrees(np.arctan2(d, a))))
    assert np.mean(np.array(turns) < 45) > 0.7
    assert max(turns) > 120


@pytest.mark.parametrize("degrees", [0, 45, 100, 180, 290])
def test_an_upright_hand_points_up_however_it_lay_and_its_crop_fits_it(degrees: int) -> None:
    picture_turned = Affine.rotation(np.radians(degrees))
    hand = fake_sample(keypoints=picture_turned.apply(fake_sample().keypoints_in_image))
    keypoints = draw(np.random.default_rng(0), hand, SIZE, UPRIGHT).image_to_input.apply(hand.keypoints_in_image)

    across, down = keypoints[9] - keypoints[0]
    assert across == pytest.approx(0.0, abs=1e-6)
    assert down < 0
    box = Box.around(keypoints)
    assert max(box.width, box.height) == pytest.approx(64 / CROP_PADDING)
    assert box.centre == pytest.approx((32.0, 32.0))


def test_upright_hands_vary_about_upright_and_only_as_many_as_asked() -> None:
    hand = fake_sample()  # its middle finger points to the left
    config = AugmentConfig(upright_chance=0.5, turn=10.0, any_turn_chance=0.0, mirror_chance=0.0)
    rng = np.random.default_rng(0)
    turned = []
    for _ in range(300):
        keypoints = draw(rng, hand, SIZE, config).image_to_input.apply(hand.keypoints_in_image)
        across, down = keypoints[9] - keypoints[0]
        turned.append(abs(np.degrees(np.arctan2(across, -down))))
    upright = np.array(turned) < 45
    assert 0.4 < upright.mean() < 0.6
    assert 4 < np.mean(np.array(turned)[upright]) < 12


def test_a_hand_without_wrist_or_middle_finger_has_no_turn_and_is_cut_as_it_lies() -> None:
    labelled = np.ones(21, bool)
    labelled[9] = False
    hand = fake_sample(labelled=labelled)
    assert upright_turn(hand) is None
    rng = np.random.default_rng(0)
    assert draw(rng, hand, SIZE, UPRIGHT) == draw(np.random.default_rng(0), hand, SIZE, NO_AUGMENTATION)


def test_a_mirrored_left_hand_is_a_right_hand() -> None:
    assert handedness_after("left", mirrored=True) == "right"
    assert handedness_after("right", mirrored=True) == "left"
    assert handedness_after("left", mirrored=False) == "left"
    assert handedness_after(None, mirrored=True) is None


def test_photometric_variation_keeps_shape_and_type_and_is_repeatable() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    chances = [name for name in AugmentConfig.__dataclass_fields__ if name.endswith("_chance")]
    always = replace(AugmentConfig(), **dict.fromkeys(chances, 1.0))
    first = photometric(crop, np.random.default_rng(5), always)
    assert first.shape == crop.shape
    assert first.dtype == np.uint8
    assert (first != crop).any()
    np.testing.assert_array_equal(first, photometric(crop, np.random.default_rng(5), always))


def test_photometric_variation_leaves_its_input_alone() -> None:
    crop = np.full((32, 32, 3), 100, np.uint8)
    photometric(crop, np.random.default_rng(6), AugmentConfig(patch_chance=1.0, colour_chance=1.0))
    assert (crop == 100).all()


@pytest.mark.parametrize("chance", ["blur_chance", "shake_chance", "coarse_chance"])
def test_what_blurs_a_crop_moves_nothing(chance: str) -> None:
    crop = np.zeros((97, 65, 3), np.uint8)
    crop[30:34, 40:44] = 255
    config = replace(NO_AUGMENTATION, **{chance: 1.0})
    rng = np.random.default_rng(7)
    rows, columns = np.indices(crop.shape[:2]) + 0.5
    spreads = []
    for _ in range(40):
        light = photometric(crop, rng, config)[..., 0].astype(np.float64)
        light[light < 16] = 0.0  # what a JPEG adds about it
        weights = light / light.sum()
        centre = np.array([(weights * columns).sum(), (weights * rows).sum()])
        assert np.abs(centre - (42, 32)).max() < 0.6
        spreads.append((weights * (np.square(columns - centre[0]) + np.square(rows - centre[1]))).sum())
    assert np.median(spreads) > 1.1 * (4 * 4 - 1) / 6  # the square's own


def test_nothing_is_varied_where_no_chance_is_given() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(photometric(crop, np.random.default_rng(1), NO_AUGMENTATION), crop)
