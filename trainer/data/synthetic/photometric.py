"""What a camera does to a picture: shake, focus, few pixels, exposure, colour balance, noise. Geometry never changes.

Compression happens when the picture is written, with the quality drawn here.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CameraFlaws:
    """One draw of everything a camera adds. Zero or one mean none, as the names suggest."""

    shake_pixels: float = 0.0
    shake_angle: float = 0.0
    blur_pixels: float = 0.0
    resolution: float = 1.0  # share of the pixels kept along each side
    gain: float = 1.0
    gamma: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignette: float = 0.0
    read_noise: float = 0.0  # grey levels
    shot_noise: float = 0.0  # grey levels at white
    noise_grain: float = 1.0  # pixels across a grain of noise
    jpeg_quality: int = 92


def draw_flaws(rng: np.random.Generator, size: int, *, low_light: bool) -> CameraFlaws:
    """Flaws as often and as bad as in everyday pictures; `low_light` makes them worse."""
    scale = size / 256.0
    shaken = rng.random() < (0.35 if low_light else 0.12)
    soft = rng.random() < 0.35
    tint = float(rng.normal(0.0, 0.06))
    noisy = float(rng.uniform(2.0, 9.0)) if low_light else float(rng.exponential(1.2))
    return CameraFlaws(
        shake_pixels=float(rng.uniform(2.0, 11.0)) * scale if shaken else 0.0,
        shake_angle=float(rng.uniform(0.0, np.pi)),
        blur_pixels=float(rng.uniform(0.3, 1.8)) * scale if soft else float(rng.uniform(0.0, 0.45)) * scale,
        resolution=float(rng.uniform(0.28, 0.8)) if rng.random() < 0.22 else 1.0,
        gain=float(np.exp(rng.normal(0.0, 0.10))),
        gamma=float(np.exp(rng.normal(0.0, 0.10))),
        contrast=float(np.exp(rng.normal(0.0, 0.12))),
        saturation=float(np.clip(rng.normal(1.0, 0.18), 0.0, 1.6)) if rng.random() > 0.02 else 0.0,
        balance=(float(np.exp(tint)), float(np.exp(rng.normal(0.0, 0.02))), float(np.exp(-tint))),
        vignette=float(rng.uniform(0.0, 0.35)) if rng.random() < 0.3 else 0.0,
        read_noise=noisy * 0.5,
        shot_noise=noisy,
        noise_grain=float(rng.uniform(1.0, 2.2)),
        jpeg_quality=int(rng.integers(38, 97)),
    )


def apply_flaws(picture: Bytes, flaws: CameraFlaws, rng: np.random.Generator) -> Bytes:
    """The picture [H, W, 3] (sRGB) as the flawed camera would deliver it."""
    image = Image.fromarray(picture)
    height, width = picture.shape[:2]
    if flaws.shake_pixels >= 1.0:
        image = _shake(image, flaws.shake_pixels, flaws.shake_angle)
    if flaws.blur_pixels > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(flaws.blur_pixels))
    values = np.asarray(image, dtype=np.float32)
    values = values * (np.array(flaws.balance, np.float32) * np.float32(flaws.gain))
    if flaws.vignette > 0.0:
        x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
        values *= (1.0 - np.float32(flaws.vignette) * (x * x + y * y) / 2.0)[..., None]
    grey = 0.299 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2]
    values = grey[..., None] + (values - grey[..., None]) * np.float32(flaws.saturation)
    values = (values - 128.0) * np.float32(flaws.contrast) + 128.0
    # A look-up table serves for the gamma: the values are about to become bytes anyway.
    table = (255.0 * (np.arange(256) / 255.0) ** flaws.gamma).astype(np.float32)
    values = table[np.clip(values, 0, 255).astype(np.uint8)]
    if flaws.shot_noise > 0.0 or flaws.read_noise > 0.0:
        values = values + _noise(values, flaws, rng)
    out: Bytes = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    if flaws.resolution < 1.0:
        small = (max(8, int(width * flaws.resolution)), max(8, int(height * flaws.resolution)))
        low = Image.fromarray(out).resize(small, Image.Resampling.BOX)
        out = np.asarray(low.resize((width, height), Image.Resampling.BICUBIC))
    return out


def _noise(values: npt.NDArray[np.float32], flaws: CameraFlaws, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    height, width = values.shape[:2]
    sigma = np.sqrt(flaws.read_noise**2 + flaws.shot_noise**2 * np.clip(values, 0, 255) / 255.0)
    white = rng.standard_normal((height, width, 3), dtype=np.float32)
    if flaws.noise_grain > 1.4:
        white = white * 0.6 + 0.5 * (np.roll(white, 1, axis=0) + np.roll(white, 1, axis=1))
    mono = white.mean(axis=2, keepdims=True)
    mixed: npt.NDArray[np.float32] = (sigma * (0.6 * white + 0.7 * mono)).astype(np.float32)
    return mixed


def _shake(image: Image.Image, length: float, angle: float) -> Image.Image:
    """Mean of copies shifted along a line centred on the picture, so that points stay where they are."""
    copies = int(np.clip(np.ceil(length), 3, 13))
    array = np.asarray(image, dtype=np.float32)
    height, width = array.shape[:2]
    reach = int(np.ceil(length / 2.0)) + 1
    padded = np.pad(array, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(array)
    for share in np.linspace(-0.5, 0.5, copies):
        dx = round(reach + share * length * np.cos(angle))
        dy = round(reach + share * length * np.sin(angle))
        total += padded[dy : dy + height, dx : dx + width]
    return Image.fromarray((total / copies).astype(np.uint8))
