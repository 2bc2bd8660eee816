import numpy as np
import pytest
from PIL import Image

from service.pose.geometry import Affine, Box, crop_affine
from service.pose.images import DecodedImage
from service.pose.preprocessing import CROP_PADDING, PADDING_GREY, crop, hand_box_to_crop, warp


def picture_with_a_dot(size: tuple[int, int], left: int, top: int, side: int = 1) -> Image.Image:
    """Black, with one white square."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (left, top, left + side, top + side))
    return picture


def centre_of_brightness(pixels: np.ndarray) -> np.ndarray:
    """(x, y) in continuous pixels, of what is brighter than the padding."""
    light = np.where(pixels[..., 0] == PADDING_GREY, 0.0, pixels[..., 0].astype(np.float64))
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    centre: np.ndarray = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    return centre


def test_the_centre_of_a_pixel_lies_half_a_pixel_from_its_corner() -> None:
    """The convention of `service.pose.geometry`, seen on a single pixel."""
    affine = crop_affine(Box(2, 1, 4, 4), (64, 64))
    found = centre_of_brightness(warp(picture_with_a_dot((9, 7), 4, 2), affine, (64, 64)))
    np.testing.assert_allclose(found, affine.apply(np.array([4.5, 2.5])), atol=0.01)


@pytest.mark.parametrize("radians", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("extent", "side"), [(60, 10), (300, 40), (650, 60)])
def test_pixels_and_points_move_together(extent: float, side: int, mirrored: bool, radians: float) -> None:
    picture = picture_with_a_dot((900, 700), 420 - side // 2, 220 - side // 2, side)
    box = Box(420 - 0.4 * extent, 220 - 0.55 * extent, extent, extent)
    affine = crop_affine(box, (96, 96), radians=radians, mirrored=mirrored)
    found = centre_of_brightness(warp(picture, affine, (96, 96)))
    np.testing.assert_allclose(found, affine.apply(np.array([420.0, 220.0])), atol=0.12)


@pytest.mark.parametrize("extent", [37.3, 90.0, 171.7, 400.0])
def test_an_upright_crop_shows_what_a_hardly_turned_one_does(extent: float) -> None:
    """The two are resampled by different means; the corners of the picture are in some of these crops."""
    rows, columns = np.mgrid[:240, :320].astype(np.float64)
    waves = 190 + 40 * np.sin(columns / 17) * np.cos(rows / 23)
    picture = Image.fromarray(np.repeat(waves.astype(np.uint8)[..., None], 3, axis=-1))
    box = Box(200.3 - extent / 3, 150.6 - extent / 3, extent, extent)
    upright, turned = (warp(picture, crop_affine(box, (64, 64), radians=turn), (64, 64)) for turn in (0.0, 1e-6))
    inside = (upright != PADDING_GREY).all(axis=-1) & (turned != PADDING_GREY).all(axis=-1)
    assert inside.sum() > 0.3 * inside.size
    assert np.abs(upright.astype(int) - turned)[inside].max() <= 3
    assert ((upright == PADDING_GREY) != (turned == PADDING_GREY)).any(axis=-1).sum() <= 2 * 64  # along two edges


def test_an_identity_map_changes_no_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    np.testing.assert_array_equal(warp(Image.fromarray(pixels), Affine.identity(), (24, 16)), pixels)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = warp(Image.fromarray(stripes), Affine.scaling(1 / 16), (16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 1


def test_what_lies_outside_the_picture_is_grey() -> None:
    white = Image.new("RGB", (10, 10), (255, 255, 255))
    shown = warp(white, crop_affine(Box(0, -10, 20, 20), (32, 32)), (32, 32))
    assert (shown[:15] == PADDING_GREY).all()
    assert (shown[17:31, 1:15] == 255).all()
    assert (shown[:, 17:] == PADDING_GREY).all()


@pytest.mark.parametrize("box", [Box(500, 500, 20, 20), Box(500, 500, 9000, 9000), Box(-9100, 0, 9000, 9000)], ids=str)
def test_a_crop_that_misses_the_picture_is_all_grey(box: Box) -> None:
    shown = warp(Image.new("RGB", (64, 64)), crop_affine(box, (32, 32)), (32, 32))
    assert (shown == PADDING_GREY).all()


def test_a_picture_held_smaller_crops_like_the_full_one() -> None:
    full = picture_with_a_dot((640, 480), 400, 120, side=80)
    held = full.reduce(4)
    region = Box(300, 60, 240, 240)
    in_full = crop(DecodedImage(full, 640, 480), region, (64, 64))
    in_held = crop(DecodedImage(held, 640, 480, Affine.scaling(0.25)), region, (64, 64))
    assert in_held.image_to_input == in_full.image_to_input
    np.testing.assert_allclose(centre_of_brightness(in_held.pixels), centre_of_brightness(in_full.pixels), atol=0.1)


def test_keypoints_return_to_the_image_frame_after_letterbox() -> None:
    image = DecodedImage(picture_with_a_dot((640, 480), 396, 116, side=8), 640, 480)
    shown = crop(image, Box(360, 90, 80, 60), (64, 64))
    np.testing.assert_allclose(shown.to_image(np.array(centre_of_brightness(shown.pixels))), (400, 120), atol=0.2)
    assert shown.image_pixels_per_input_pixel == pytest.approx(80 / 64)


def test_a_hand_box_becomes_a_padded_square_about_the_same_centre() -> None:
    box = Box(100, 50, 80, 160)
    region = hand_box_to_crop(box)
    assert region.centre == box.centre
    assert region.width == region.height == 160 * CROP_PADDING
