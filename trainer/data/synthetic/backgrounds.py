"""What is behind the hands: photographs, panoramas, or made-up pictures. Returns plain pictures; no light, no hands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from trainer.errors import RefusedError

Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class FolderError(RefusedError):
    """A folder given by the user that is missing or holds nothing usable; the message names it."""


@dataclass(frozen=True)
class PhotoFolder:
    """Photographs for backgrounds, in the order of their names."""

    paths: tuple[Path, ...]

    @staticmethod
    def open(folder: Path) -> "PhotoFolder":
        """Every picture below the folder. Raises FolderError."""
        paths = list_files(folder, PICTURE_SUFFIXES, "background photographs")
        return PhotoFolder(paths)

    def draw(self, rng: np.random.Generator, size: int) -> Bytes:
        """A random square cut-out [size, size, 3] of a random photograph, perhaps mirrored."""
        path = self.paths[int(rng.integers(len(self.paths)))]
        scale, at_x, at_y, mirror = float(rng.uniform(0.35, 1.0)), *rng.random(2), rng.random() < 0.5
        try:
            with Image.open(path) as image:
                image.draft("RGB", (int(size / scale), int(size / scale)))
                side = max(1.0, scale * min(image.size))
                left, top = at_x * (image.width - side), at_y * (image.height - side)
                cut = image.convert("RGB").resize(
                    (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
                )
        except (OSError, ValueError) as error:
            raise FolderError(f"{path}: not a readable picture ({error})") from error
        if mirror:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(cut)


def list_files(folder: Path, suffixes: tuple[str, ...], what: str) -> tuple[Path, ...]:
    """Files below a folder by suffix, sorted. Raises FolderError where there is no folder or no such file."""
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder (wanted {what})")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        raise FolderError(f"{folder}: no {what} in it (looked for {', '.join(suffixes)})")
    return tuple(found)


def _as_bytes(values: npt.NDArray[np.floating]) -> Bytes:
    picture: Bytes = np.clip(values, 0, 255).astype(np.uint8)
    return picture


def _colour(rng: np.random.Generator, palette: Doubles | None = None) -> tuple[int, int, int]:
    if palette is not None and rng.random() < 0.93:
        value = palette[int(rng.integers(len(palette)))] + rng.normal(0.0, 12.0, 3)
    else:
        value = rng.uniform(0, 255, 3)
    r, g, b = np.clip(value, 0, 255).astype(int)
    return int(r), int(g), int(b)


def _palette(rng: np.random.Generator) -> Doubles:
    """A few colours that go together: mostly dull, as in rooms and streets."""
    grey = float(rng.uniform(25, 225))
    hue = rng.normal(0.0, 1.0, 3)
    dull = float(rng.exponential(14.0))
    shades = grey + rng.normal(0.0, 48.0, (5, 1)) + dull * hue + rng.normal(0.0, 9.0, (5, 3))
    if rng.random() < 0.35:
        shades[4] = rng.uniform(0, 255, 3)
    return np.clip(shades, 0, 255)


def _clouds(rng: np.random.Generator, size: int, first: int, octaves: int) -> Doubles:
    """Smooth noise [size, size] around 0."""
    total = np.zeros((size, size))
    weight = 1.0
    for octave in range(octaves):
        cells = min(first * 2**octave, size)
        coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        weight *= float(rng.uniform(0.4, 0.75))
    return total


def _wall(rng: np.random.Generator, size: int) -> Bytes:
    palette = _palette(rng)
    start, end = (np.array(_colour(rng, palette), dtype=np.float64) for _ in range(2))
    angle = float(rng.uniform(0.0, 2.0 * np.pi))
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    t = np.clip(0.5 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None]
    t = t * float(rng.uniform(0.0, 0.8))
    picture = start * (1 - t) + end * t
    picture += (_clouds(rng, size, int(rng.integers(2, 10)), 3) * rng.uniform(0.0, 9.0))[..., None]
    return _as_bytes(picture)


def _clutter(rng: np.random.Generator, size: int) -> Bytes:
    palette = _palette(rng)
    image = Image.fromarray(_wall(rng, size))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(6, 45))):
        x, y = rng.uniform(-0.2, 1.1, 2) * size
        w, h = np.exp(rng.uniform(np.log(0.03), np.log(0.7), 2)) * size
        colour = _colour(rng, palette)
        kind = rng.random()
        if kind < 0.45:
            draw.rectangle([x, y, x + w, y + h], fill=colour)
            if rng.random() < 0.3:
                step = max(3.0, w / float(rng.integers(3, 12)))
                other = _colour(rng, palette)
                for k in range(int(w / step)):
                    draw.rectangle([x + k * step, y, x + k * step + step * 0.45, y + h], fill=other)
        elif kind < 0.65:
            draw.ellipse([x, y, x + w, y + h], fill=colour)
        elif kind < 0.85:
            points = [(float(px), float(py)) for px, py in np.array([x, y]) + rng.normal(0.0, 0.5, (4, 2)) * [w, h]]
            draw.polygon(points, fill=colour)
        else:
            end = np.array([x, y]) + rng.normal(0.0, 0.6, 2) * size
            draw.line([x, y, float(end[0]), float(end[1])], fill=colour, width=int(rng.integers(1, max(2, size // 20))))
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.02 * size))))
    shade = 1.0 + 0.12 * _clouds(rng, size, 3, 2)
    picture = np.asarray(image) * shade[..., None] + (_clouds(rng, size, size // 4, 2) * rng.uniform(0, 7))[..., None]
    return _as_bytes(picture)


def _texture(rng: np.random.Generator, size: int) -> Bytes:
    palette = _palette(rng)
    field = _clouds(rng, size, int(rng.integers(2, 30)), 5)
    if rng.random() < 0.35:
        # Grain along one direction, as in wood or woven cloth.
        x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
        angle = float(rng.uniform(0, np.pi))
        field = (
            np.sin((x * np.cos(angle) + y * np.sin(angle)) * float(rng.uniform(20, 150)) + 1.5 * field) + 0.4 * field
        )
    t = np.clip(field * float(rng.uniform(0.2, 0.5)) + 0.5, 0, 1)
    stops = np.linspace(0, 1, 3)
    picture = np.stack([np.interp(t, stops, palette[:3, c]) for c in range(3)], axis=-1)
    return _as_bytes(picture)


def _room(rng: np.random.Generator, size: int) -> Bytes:
    palette = _palette(rng)
    image = Image.fromarray(_wall(rng, size))
    draw = ImageDraw.Draw(image)
    floor = float(rng.uniform(0.45, 0.95)) * size
    slope = float(rng.normal(0.0, 0.08)) * size
    draw.polygon([(0, floor), (size, floor + slope), (size, size), (0, size)], fill=_colour(rng, palette))
    for _ in range(int(rng.integers(1, 7))):
        x, w = float(rng.uniform(-0.1, 0.9)) * size, float(rng.uniform(0.08, 0.5)) * size
        top = float(rng.uniform(-0.1, 0.7)) * size
        h = float(rng.uniform(0.1, 0.6)) * size
        draw.rectangle([x, top, x + w, top + h], fill=_colour(rng, palette))
        inner = float(rng.uniform(0.03, 0.15)) * min(w, h)
        bright = rng.random() < 0.3
        fill = (245, 246, 250) if bright else _colour(rng, palette)
        draw.rectangle([x + inner, top + inner, x + w - inner, top + h - inner], fill=fill)
        if rng.random() < 0.4:
            for k in range(1, int(rng.integers(2, 6))):
                level = top + h * k / 6.0
                draw.line([x, level, x + w, level], fill=_colour(rng, palette), width=max(1, size // 90))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.025 * size))))
    picture = np.asarray(image) + (_clouds(rng, size, size // 3, 2) * rng.uniform(0, 5))[..., None]
    return _as_bytes(picture)


def invent_background(rng: np.random.Generator, size: int) -> Bytes:
    """A made-up background [size, size, 3], sRGB: mostly as pale as walls, tables and clothes are."""
    maker = [_wall, _clutter, _clutter, _texture, _room][int(rng.integers(5))]
    background = maker(rng, size)
    if rng.random() < 0.25:
        return background
    grey = background.mean(axis=2, keepdims=True)
    pale: Bytes = (grey + float(rng.uniform(0.1, 0.5)) * (background - grey)).astype(np.uint8)
    return pale
