"""Light: panoramas (read or invented), what they shed on a surface, and the lamps singled out of them.

A panorama is linear RGB [H, W, 3], row 0 straight up, columns once round. Directions are in the camera frame.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_LUMINANCE: Final = np.array([0.2126, 0.7152, 0.0722])
# Panoramas are reduced to this before anything is integrated over them.
_ROWS, _COLUMNS = 32, 64


@dataclass(frozen=True)
class Lighting:
    """All light of a scene, scaled so that a grey hand comes out at a middling brightness before exposure."""

    ambient: Floats  # [9, 3] coefficients for the shader's polynomial of the normal
    directions: Floats  # [3, 3] unit vectors towards the lamps; the first casts shadows
    colours: Floats  # [3, 3] reflected radiance of a white surface facing the lamp
    exposure: float


def _directions(rows: int, columns: int) -> tuple[Doubles, Doubles]:
    """Directions [rows, columns, 3] (y up, z forward at the middle column) and solid angles [rows, columns]."""
    polar = (np.arange(rows) + 0.5) / rows * np.pi
    around = ((np.arange(columns) + 0.5) / columns - 0.5) * 2.0 * np.pi
    p, a = np.meshgrid(polar, around, indexing="ij")
    directions = np.stack([np.sin(p) * np.sin(a), np.cos(p), np.sin(p) * np.cos(a)], axis=-1)
    area = np.sin(p) * (np.pi / rows) * (2.0 * np.pi / columns)
    return directions, area


def reduce_panorama(panorama: npt.NDArray[np.floating]) -> Doubles:
    """Box-filtered to 32 x 64."""
    h, w = panorama.shape[:2]
    rows = np.minimum((np.arange(h) * _ROWS) // h, _ROWS - 1)
    columns = np.minimum((np.arange(w) * _COLUMNS) // w, _COLUMNS - 1)
    bins = (rows[:, None] * _COLUMNS + columns[None]).reshape(-1)
    counts = np.bincount(bins, minlength=_ROWS * _COLUMNS).astype(np.float64)
    out = np.empty((_ROWS * _COLUMNS, 3))
    for c in range(3):
        out[:, c] = np.bincount(bins, weights=panorama[..., c].reshape(-1), minlength=_ROWS * _COLUMNS)
    filled: Doubles = (out / np.maximum(counts, 1.0)[:, None]).reshape(_ROWS, _COLUMNS, 3)
    return filled


def invent_panorama(rng: np.random.Generator, tint: Doubles | None = None) -> Doubles:
    """A made-up surrounding: ground, walls or sky, windows and lamps. `tint` [3] pulls it towards a colour."""
    directions, _ = _directions(_ROWS, _COLUMNS)
    up = directions[..., 1]
    top = np.exp(rng.normal(0.0, 0.13, 3)) * rng.uniform(0.3, 1.2)
    wall = np.exp(rng.normal(0.0, 0.13, 3)) * rng.uniform(0.2, 0.9)
    ground = np.exp(rng.normal(0.0, 0.18, 3)) * rng.uniform(0.05, 0.5)
    if tint is not None:
        normal = np.clip(tint / max(float(tint.mean()), 1e-3), 0.75, 1.3)
        top, wall, ground = (0.5 * x + 0.5 * normal * x.mean() for x in (top, wall, ground))
    blend = np.clip(up * rng.uniform(1.5, 6.0), -1.0, 1.0)[..., None]
    panorama = np.where(blend > 0, wall + (top - wall) * blend, wall + (ground - wall) * -blend)
    for _ in range(int(rng.integers(1, 5))):
        towards = rng.normal(size=3)
        towards[1] = abs(towards[1]) * rng.uniform(0.2, 1.5)
        towards /= np.linalg.norm(towards)
        warmth = rng.normal(0.0, 0.22)
        colour = np.exp([warmth, 0.0, -warmth]) * np.exp(rng.uniform(np.log(2.0), np.log(60.0)))
        size = float(rng.uniform(0.9, 0.996))
        lobe = np.clip((directions @ towards - size) / (1.0 - size) * 2.0, 0.0, 1.0)
        panorama = panorama + lobe[..., None] * colour * (0.04 / (1.0 - size)) ** 0.5
    return panorama


def light_from(
    panorama: npt.NDArray[np.floating],
    rotation: Doubles,
    rng: np.random.Generator,
    *,
    extra_lamps: int,
    brightness: float,
) -> Lighting:
    """Lighting of a panorama seen through `rotation` (panorama frame -> camera frame, y down).

    The brightest patch becomes a lamp of its own, because only a lamp throws a sharp shadow. `extra_lamps` (0..2) are
    drawn besides. `brightness` is the value that a white surface facing the camera should reach.
    """
    small = reduce_panorama(panorama)
    directions, area = _directions(_ROWS, _COLUMNS)
    turned = directions @ rotation.T
    luminance = small @ _LUMINANCE
    limit = 5.0 * float((luminance * area).sum() / area.sum())
    excess = np.clip(1.0 - limit / np.maximum(luminance, 1e-9), 0.0, 1.0)
    peak = np.unravel_index(int(np.argmax(luminance * excess)), luminance.shape)
    towards = turned[peak]
    near = np.clip((turned @ towards - 0.88) / 0.08, 0.0, 1.0)
    taken = small * (excess * near)[..., None]
    colour = (taken * area[..., None]).sum(axis=(0, 1)) / np.pi
    rest = small - taken
    x, y, z = turned[..., 0], turned[..., 1], turned[..., 2]
    polynomials = np.stack([np.ones_like(x), y, z, x, x * y, y * z, 3.0 * z * z - 1.0, x * z, x * x - y * y], axis=0)
    constants = np.array([0.282095, *[0.488603] * 3, 1.092548, 1.092548, 0.315392, 1.092548, 0.546274])
    # The last factors fade the higher bands: cut off sharply, a low sun would leave coloured dark spots opposite it.
    bands = np.array([1.0, *[2.0 / 3.0 * 0.9] * 3, *[0.25 * 0.65] * 5])
    ambient = np.einsum("khw,hwc,hw->kc", polynomials, rest, area) * (constants**2 * bands)[:, None]
    lamp_directions = np.zeros((3, 3))
    lamp_colours = np.zeros((3, 3))
    lamp_directions[:, 2] = -1.0
    lamp_directions[0], lamp_colours[0] = towards, colour
    level = float(ambient[0] @ _LUMINANCE) + 1e-6
    # A lamp may be harsh, not blinding.
    strongest = float(colour @ _LUMINANCE)
    most = level * float(rng.uniform(1.0, 6.0))
    if strongest > most:
        lamp_colours[0] *= most / strongest
    for i in range(extra_lamps):
        direction = rng.normal(size=3)
        direction[2] = -abs(direction[2]) if rng.random() < 0.7 else direction[2]
        lamp_directions[i + 1] = direction / np.linalg.norm(direction)
        warmth = float(rng.normal(0.0, 0.18))
        lamp_colours[i + 1] = level * rng.uniform(0.2, 1.5) * np.exp([warmth, 0.0, -warmth])
    # Brightness as the camera sees it: average over normals that face it.
    normals = np.array([[0, 0, -1.0], [0.6, 0, -0.8], [-0.6, 0, -0.8], [0, 0.6, -0.8], [0, -0.6, -0.8]])
    nx, ny, nz = normals.T
    basis = np.stack([np.ones(5), ny, nz, nx, nx * ny, ny * nz, 3 * nz * nz - 1, nx * nz, nx * nx - ny * ny])
    facing = np.maximum(normals @ lamp_directions.T, 0.0)
    white = np.maximum(basis.T @ ambient, 0.0).mean(axis=0) + (facing @ lamp_colours).mean(axis=0)
    seen = float(white @ _LUMINANCE)
    # Cameras balance most of a room's tint away.
    balance = (seen / np.maximum(white, 1e-6)) ** float(rng.uniform(0.5, 0.95))
    ambient, lamp_colours = ambient * balance, lamp_colours * balance
    return Lighting(
        ambient=ambient.astype(np.float32),
        directions=lamp_directions.astype(np.float32),
        colours=lamp_colours.astype(np.float32),
        exposure=brightness / max(seen, 1e-5),
    )


def view_panorama(panorama: Floats, rays: Doubles, rotation: Doubles) -> Floats:
    """The panorama along camera-frame rays [H, W, 3] -> linear RGB [H, W, 3], bilinear."""
    d = np.einsum("hwi,ij->hwj", rays, rotation)
    h, w = panorama.shape[:2]
    column = (np.arctan2(d[..., 0], d[..., 2]) / (2.0 * np.pi) + 0.5) * w - 0.5
    row = np.clip(np.arccos(np.clip(d[..., 1], -1.0, 1.0)) / np.pi * h - 0.5, 0.0, h - 1.001)
    c0, r0 = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    fc, fr = (column - c0)[..., None].astype(np.float32), (row - r0)[..., None].astype(np.float32)
    c0, c1 = c0 % w, (c0 + 1) % w
    r1 = np.minimum(r0 + 1, h - 1)
    upper = panorama[r0, c0] * (1 - fc) + panorama[r0, c1] * fc
    lower = panorama[r1, c0] * (1 - fc) + panorama[r1, c1] * fc
    out: Floats = (upper * (1 - fr) + lower * fr).astype(np.float32)
    return out
