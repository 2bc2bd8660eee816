import numpy as np
import pytest

from trainer.data.synthetic.lights import Lighting, invent_panorama, light_from, reduce_panorama, view_panorama


def shed(light: Lighting, normal: list[float]) -> np.ndarray:
    """What a white surface reflects, by the shader's formula."""
    x, y, z = normal
    basis = np.array([1, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y])
    lamps = np.maximum(light.directions @ np.array(normal), 0.0) @ light.colours
    reflected: np.ndarray = (basis @ light.ambient + lamps) * light.exposure
    return reflected


def test_even_surroundings_shed_the_same_on_every_side() -> None:
    light = light_from(np.ones((32, 64, 3)), np.eye(3), np.random.default_rng(0), extra_lamps=0, brightness=0.7)

    for normal in ([0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0]):
        assert shed(light, normal) == pytest.approx([0.7] * 3, rel=0.02)


def test_a_bright_spot_becomes_a_lamp_in_its_direction() -> None:
    panorama = np.full((32, 64, 3), 0.2)
    panorama[8:10, 48:50] = 300.0
    light = light_from(panorama, np.eye(3), np.random.default_rng(0), extra_lamps=0, brightness=0.7)
    polar, around = 9 / 32 * np.pi, (49 / 64 - 0.5) * 2 * np.pi
    expected = [np.sin(polar) * np.sin(around), np.cos(polar), np.sin(polar) * np.cos(around)]

    assert light.directions[0] @ np.array(expected) > 0.99
    assert shed(light, expected).mean() > 1.5 * shed(light, [-v for v in expected]).mean()


def test_looking_along_a_ray_finds_what_the_panorama_has_there() -> None:
    panorama = np.zeros((32, 64, 3), np.float32)
    panorama[:16] = 1.0  # the upper half

    up = view_panorama(panorama, np.array([[[0.0, 1.0, 0.0]]]), np.eye(3))
    down = view_panorama(panorama, np.array([[[0.0, -1.0, 0.0]]]), np.eye(3))

    assert up.max() == pytest.approx(1.0)
    assert down.max() == pytest.approx(0.0)


def test_invented_surroundings_are_finite_and_never_dark_as_a_whole() -> None:
    for seed in range(20):
        panorama = invent_panorama(np.random.default_rng(seed))
        assert np.isfinite(panorama).all()
        assert panorama.min() >= 0.0
        assert panorama.mean() > 0.05


def test_reducing_keeps_the_mean() -> None:
    panorama = np.random.default_rng(1).random((64, 128, 3))

    assert reduce_panorama(panorama).mean() == pytest.approx(panorama.mean())
