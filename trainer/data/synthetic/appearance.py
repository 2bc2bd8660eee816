"""What surfaces look like: skin tones and textures, gloves, cloth and things, and the skin's regions.

Colours are linear RGB unless a name says sRGB. The shading itself is in `shaders`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.asset import FINGERS, HandAsset
from trainer.data.synthetic.mesh import vertex_normals
from trainer.data.synthetic.shape import mean_shape

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

SKIN: Final = 0
THING: Final = 1
BODY: Final = 2
TEXTURED_SKIN: Final = 3

# sRGB tones of the back of a hand, evenly stepped from the lightest to the darkest; drawn evenly along this line.
_TONES_SRGB: Final = np.array(
    [
        (238, 196, 176),
        (229, 181, 157),
        (218, 165, 137),
        (205, 149, 119),
        (188, 131, 99),
        (165, 110, 79),
        (140, 90, 63),
        (113, 70, 49),
        (88, 54, 39),
        (66, 41, 31),
    ]
)


@dataclass(frozen=True)
class Material:
    """The uniforms of one draw call; see `shaders` for how each is used."""

    kind: int
    base: Colour
    second: Colour = (1.0, 1.0, 1.0)
    palm: Colour = (1.0, 1.0, 1.0)
    nail: Colour = (1.0, 1.0, 1.0)
    surface: tuple[float, float, float, float] = (0.5, 1.0, 0.0, 1.0)
    detail: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    seed: Colour = (0.0, 0.0, 0.0)


def linear(srgb: npt.ArrayLike) -> Doubles:
    """sRGB in 0..255 -> linear 0..1."""
    value = np.asarray(srgb, dtype=np.float64) / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def as_colour(value: npt.ArrayLike) -> Colour:
    """Three floats, clipped to 0.003..1."""
    r, g, b = np.clip(np.asarray(value, dtype=np.float64), 0.003, 1.0)
    return float(r), float(g), float(b)


def draw_seed(rng: np.random.Generator) -> Colour:
    """An offset into the noise, so that no two surfaces share a pattern."""
    x, y, z = rng.uniform(0.0, 40.0, 3)
    return float(x), float(y), float(z)


def skin_tone(lightness: float) -> Doubles:
    """Linear colour of the back of a hand; `lightness` runs from 0 (darkest) to 1 (lightest)."""
    place = (1.0 - lightness) * (len(_TONES_SRGB) - 1)
    tones = linear(_TONES_SRGB)
    return np.array([np.interp(place, np.arange(len(tones)), tones[:, c]) for c in range(3)])


def draw_skin(rng: np.random.Generator, age: float) -> Material:
    """A person's skin; older hands are more wrinkled and mottled."""
    lightness = float(rng.uniform(0.0, 1.0))
    tone = skin_tone(lightness) * np.exp(rng.normal(0.0, 0.07)) * np.exp(rng.normal(0.0, [0.03, 0.045, 0.06]))
    # Palms carry little melanin: the darker the skin, the larger the step to the palm.
    share = 0.25 + 0.45 * (1.0 - lightness)
    palm = tone ** (1.0 - share) * (skin_tone(0.80) * np.array([1.0, 0.92, 0.88])) ** share
    palm = palm * np.exp(rng.normal(0.0, 0.05))
    flush = 1.0 - np.array([0.06, 0.26, 0.24]) * rng.uniform(0.3, 1.5) * (0.5 + 0.5 * lightness)
    nail = tone**0.55 * linear((236, 184, 172)) ** 0.45
    if rng.random() < 0.12:
        nail = linear(rng.uniform(20, 235, 3)) if rng.random() < 0.5 else linear((170, 20, 40)) * rng.uniform(0.4, 1.3)
    old = float(np.clip((age - 0.66) / 0.34, 0.0, 1.0))
    wrinkle = 0.15 + 0.9 * old * float(rng.uniform(0.5, 1.2)) + 0.15 * float(rng.random())
    return Material(
        kind=SKIN,
        base=as_colour(tone),
        second=as_colour(flush),
        palm=as_colour(palm),
        nail=as_colour(nail),
        surface=(
            float(rng.uniform(0.36, 0.62)),
            float(rng.choice([rng.uniform(0.4, 1.0), rng.uniform(1.0, 1.9)])),
            float(rng.uniform(0.00025, 0.0005)),
            1.0,
        ),
        detail=(
            wrinkle,
            float(rng.uniform(0.10, 0.34)) + 0.10 * old,
            float(rng.uniform(0.0, 0.35)) * (0.3 + old) * (0.3 + lightness),
            float(rng.choice([-0.06, 0.0, 0.04])),
        ),
        seed=draw_seed(rng),
    )


def draw_glove(rng: np.random.Generator) -> Material:
    """A glove in place of skin: thin rubber, knitted or working gloves."""
    colours = [
        (60, 110, 190),
        (235, 235, 235),
        (25, 25, 28),
        (200, 190, 60),
        (150, 60, 40),
        (70, 90, 60),
        (130, 130, 135),
    ]
    colour = linear(colours[int(rng.integers(len(colours)))]) * np.exp(rng.normal(0.0, 0.2))
    rubber = rng.random() < 0.5
    return Material(
        kind=THING,
        base=as_colour(colour),
        second=as_colour(colour * rng.uniform(0.6, 1.2)),
        surface=(
            float(rng.uniform(0.3, 0.5) if rubber else rng.uniform(0.7, 0.95)),
            float(rng.uniform(0.8, 1.6) if rubber else 0.3),
            float(0.0002 if rubber else 0.0006),
            float(rng.uniform(80.0, 300.0)),
        ),
        detail=(3.0, 0.5, float(0.04 if rubber else rng.uniform(0.15, 0.4)), 0.0),
        seed=draw_seed(rng),
    )


def draw_cloth(rng: np.random.Generator) -> Material:
    """Sleeve cloth: plain, striped, checked or mottled."""
    colour = linear(rng.choice([rng.uniform(10, 245, 3), np.full(3, rng.uniform(10, 245))]))
    other = linear(rng.uniform(10, 245, 3))
    keep = float(rng.choice([0.15, 0.4, 0.8]))
    colour, other = (c.mean() + keep * (c - c.mean()) for c in (colour, other))
    return Material(
        kind=THING,
        base=as_colour(colour),
        second=as_colour(other),
        surface=(0.9, float(rng.uniform(0.1, 0.4)), 0.0007, float(rng.uniform(30.0, 150.0))),
        detail=(float(rng.choice([0, 0, 0, 1, 2, 3, 4])), 0.3, float(rng.uniform(0.08, 0.35)), 0.0),
        seed=draw_seed(rng),
    )


def draw_thing(rng: np.random.Generator) -> Material:
    """A thing's surface: any colour, plain or patterned, matt or shiny."""
    colour, other = linear(rng.uniform(8, 245, 3)), linear(rng.uniform(8, 245, 3))
    # Most things are dull.
    keep = float(rng.choice([0.08, 0.25, 0.5, 1.0]))
    colour, other = (c.mean() + keep * (c - c.mean()) for c in (colour, other))
    return Material(
        kind=THING,
        base=as_colour(colour),
        second=as_colour(other),
        surface=(
            float(rng.uniform(0.2, 0.9)),
            float(rng.uniform(0.3, 2.2)),
            0.0003,
            float(np.exp(rng.uniform(np.log(8.0), np.log(150.0)))),
        ),
        detail=(
            float(rng.choice([0, 0, 1, 2, 3, 4, 5, 6])),
            float(rng.uniform(0.0, 1.2)),
            float(rng.uniform(0.0, 0.2)),
            0.0,
        ),
        seed=draw_seed(rng),
    )


@dataclass(frozen=True)
class SkinRegions:
    """Per-vertex inputs of the skin shader: rest position [V, 3], region [V, 4], nail [V, 3]."""

    rest: Floats
    region: Floats
    nail: Floats


def skin_regions(asset: HandAsset) -> SkinRegions:
    """Where palm, joints, fingers and nails lie on the asset's skin, measured once on the mean hand."""
    hand = mean_shape(asset)
    vertices = hand.vertices
    normals = vertex_normals(vertices, asset.triangles)
    count = len(vertices)
    joints = hand.joints
    forearm = asset.weights[:, asset.bone("forearm")] + asset.weights[:, asset.bone("upper_arm")]
    # Fingers face their own way, so the inner side is judged in each finger's frame.
    inner = normals[:, 2].copy()
    along = np.zeros(count, np.float32)
    on_finger = np.zeros(count, np.float32)
    flush = np.zeros(count, np.float32)
    nail = np.full((count, 3), (9.0, -9.0, -1.0), np.float32)
    ends = asset.mean[-5:]
    for number, finger in enumerate(FINGERS):
        bones = [asset.bone(f"{finger}_{i}") for i in (1, 2, 3)]
        owned = asset.weights[:, bones].sum(axis=1)
        first = bones[1:] if finger == "thumb" else bones
        points = np.stack([*(joints[b] for b in first), ends[number]])
        offset = 3 - len(first)
        of_finger = owned > 0.35
        steps = np.diff(points, axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        units = steps / lengths[:, None]
        if finger == "thumb":
            bend = np.cross(units[0], units[1])
            lateral = bend / np.linalg.norm(bend)
        else:
            lateral = np.cross(units[-1], np.array([0.0, 0.0, 1.0]))
            lateral /= np.linalg.norm(lateral)
        palmar = np.cross(lateral, units[-1])
        inner = np.where(of_finger, normals @ palmar, inner).astype(np.float32)
        best = np.full(count, np.inf)
        place = np.zeros(count)
        for step, (start, unit, length) in enumerate(zip(points[:-1], units, lengths, strict=True)):
            t = (vertices - start) @ unit / length
            low = -0.6 if step == 0 else 0.0
            clipped = np.clip(t, low, 1.0)
            distance = np.linalg.norm(vertices - (start + clipped[:, None] * unit * length), axis=1)
            closer = distance < best
            best = np.where(closer, distance, best)
            place = np.where(closer, step + offset + clipped, place)
        along = np.where(of_finger, place, along).astype(np.float32)
        on_finger = np.where(of_finger, np.clip(owned, 0.0, 1.0), on_finger).astype(np.float32)
        # Knuckles and fingertips are redder.
        for k, point in enumerate(points[:-1]):
            reach = 0.011 if k == 0 else 0.009
            bump = np.exp(-((np.linalg.norm(vertices - point, axis=1) / reach - 0.8).clip(0.0) ** 2))
            flush = np.maximum(flush, 0.8 * bump * (normals @ palmar < 0.35) * (owned > 0.05))
        tip = np.exp(-((np.linalg.norm(vertices - ends[number], axis=1) / 0.011) ** 2))
        flush = np.maximum(flush, tip * of_finger)
        # The nail: a plate on the far half of the last segment's back.
        end = points[-1]
        last = (vertices - end) @ units[-1]
        near = of_finger & (last > -1.1 * lengths[-1])
        # Directly behind the tip the finger's half width gives the nail's.
        band = of_finger & (last > -0.010) & (last < -0.005)
        width = float(np.abs((vertices[band] - end) @ lateral).max())
        centre = float(((vertices[band] - end) @ lateral).mean())
        across = ((vertices - end) @ lateral - centre) / (0.80 * width)
        length = 0.52 * lengths[-1] if finger != "thumb" else 0.50 * lengths[-1]
        forward = (last + length) / length
        back = -(normals @ palmar)
        values = np.stack([across, forward, back], axis=1).astype(np.float32)
        nail = np.where(near[:, None], values, nail)
    palm = np.clip((inner + 0.12) / 0.5, 0.0, 1.0)
    palm = palm * palm * (3.0 - 2.0 * palm)
    # The inner forearm is like the rest of the arm, only a little lighter.
    palm = palm * (1.0 - 0.8 * np.clip(forearm * 1.1, 0.0, 1.0))
    region = np.stack([palm, np.clip(flush, 0.0, 1.0), along, on_finger], axis=1).astype(np.float32)
    return SkinRegions(rest=vertices.astype(np.float32), region=region, nail=nail)
