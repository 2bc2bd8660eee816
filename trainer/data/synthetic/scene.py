"""What stands where: hands, arms, sleeves, bodies, things and light of one random picture, before it is drawn.

Two kinds: `crop`, one hand that fills much of the picture; `scene`, any number of hands (also none) with people
and clutter. Every random choice comes from the generator passed in.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic import props
from trainer.data.synthetic.annotate import PlacedHand, as_labelled_on_photos
from trainer.data.synthetic.appearance import (
    BODY,
    TEXTURED_SKIN,
    Material,
    as_colour,
    draw_cloth,
    draw_glove,
    draw_seed,
    draw_skin,
    draw_thing,
    linear,
)
from trainer.data.synthetic.asset import BodyAsset
from trainer.data.synthetic.backgrounds import PhotoFolder, invent_background
from trainer.data.synthetic.camera import Camera, draw_view, euler, framing_camera, random_rotation
from trainer.data.synthetic.hands import Handedness, HandSource, PosedHand
from trainer.data.synthetic.lights import Lighting, invent_panorama, light_from, view_panorama
from trainer.data.synthetic.mesh import vertex_normals
from trainer.data.synthetic.renderer import Mesh

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Kind = Literal["crop", "scene"]

PERSON: Final = 1  # instance of arms, sleeves and bodies
THING: Final = 255  # instance of everything else that is drawn
FIRST_HAND: Final = 2


@dataclass(frozen=True)
class Stock:
    """All that scenes are made from."""

    hands: tuple[HandSource, ...]  # drawn evenly
    body: BodyAsset
    panoramas: tuple[Floats, ...] = ()
    photos: PhotoFolder | None = None


@dataclass(frozen=True)
class Scene:
    """A picture to be drawn."""

    meshes: list[Mesh]
    camera: Camera
    lighting: Lighting
    background: Bytes  # [H, W, 3] sRGB
    hands: list[PlacedHand]
    shadow_about: Floats  # [N, 3]
    low_light: bool


def compose(stock: Stock, kind: Kind, size: int, rng: np.random.Generator) -> Scene:
    """A random picture of the given kind and size."""
    return _compose_crop(stock, size, rng) if kind == "crop" else _compose_scene(stock, size, rng)


@dataclass(frozen=True)
class _Outfit:
    """How one person's hands are dressed."""

    skin: Material
    glove: Material | None
    sleeve: Material | None
    cuff: float  # metres from the wrist
    looseness: float
    band: Material | None  # watch or bracelet
    ring: Material | None


def _draw_outfit(rng: np.random.Generator, age: float) -> _Outfit:
    return _Outfit(
        skin=draw_skin(rng, age),
        glove=draw_glove(rng) if rng.random() < 0.035 else None,
        sleeve=draw_cloth(rng) if rng.random() < 0.5 else None,
        cuff=float(rng.choice([rng.uniform(-0.01, 0.03), rng.uniform(0.02, 0.16)])),
        looseness=float(np.exp(rng.uniform(np.log(1.06), np.log(1.45)))),
        band=draw_thing(rng) if rng.random() < 0.10 else None,
        ring=_metal(rng) if rng.random() < 0.10 else None,
    )


def _metal(rng: np.random.Generator) -> Material:
    colour = linear([(212, 175, 80), (190, 192, 196), (60, 60, 64)][int(rng.integers(3))])
    return Material(kind=1, base=as_colour(colour), surface=(0.25, 4.0, 0.0, 1.0), seed=draw_seed(rng))


@dataclass(frozen=True)
class _Placement:
    """Hand frame -> camera frame."""

    rotation: Doubles
    offset: Doubles

    def points(self, values: npt.NDArray[np.floating]) -> Floats:
        placed: Floats = (np.einsum("vi,ji->vj", values, self.rotation) + self.offset).astype(np.float32)
        return placed

    def turn(self, values: npt.NDArray[np.floating]) -> Floats:
        turned: Floats = np.einsum("vi,ji->vj", values, self.rotation).astype(np.float32)
        return turned


def _solid_mesh(solid: props.Solid, material: Material, instance: int, *, casts_shadow: bool = True) -> Mesh:
    return Mesh(
        vertices=solid.vertices,
        normals=vertex_normals(solid.vertices, solid.triangles),
        rest=solid.local,
        triangles=solid.triangles,
        material=material,
        instance=instance,
        casts_shadow=casts_shadow,
    )


def _dress(hand: PosedHand, outfit: _Outfit, at: _Placement, instance: int, rng: np.random.Generator) -> list[Mesh]:
    """The meshes of a hand with its arm, sleeve and ornaments."""
    sleeve = outfit.sleeve
    bare_arm = len(hand.arm_triangles) > 0
    if not bare_arm and sleeve is None:
        sleeve = draw_cloth(rng)
    vertices, normals = at.points(hand.vertices), at.turn(hand.normals)
    regions = hand.regions
    skin = outfit.skin
    if hand.texture is not None:
        skin = replace(skin, kind=TEXTURED_SKIN, base=hand.texture_tint)
    worn = outfit.glove if hand.texture is None else None  # a texture may show a glove of its own

    def part(triangles: npt.NDArray[np.int32], material: Material, number: int) -> Mesh:
        return Mesh(
            vertices=vertices,
            normals=normals,
            rest=regions.rest,
            triangles=triangles,
            material=material,
            instance=number,
            region=regions.region,
            nail=regions.nail,
            texture=hand.texture,
            closed=True,
            casts_shadow=number != PERSON,
        )

    # One coarse shadow for hand and arm together.
    meshes = [replace(part(hand.hand_triangles, worn or skin, instance), shadow_triangles=hand.shadow_triangles)]
    path, radii = hand.arm_path.astype(np.float64), hand.arm_radii.astype(np.float64)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    # A mesh that ends at the wrist has its end in the sleeve.
    cuff = outfit.cuff if bare_arm else -0.012
    if bare_arm:
        arm = hand.arm_triangles
        forearm = (path[8] - path[0]) / np.linalg.norm(path[8] - path[0])
        depth = (hand.vertices - path[0]) @ forearm
        if sleeve is not None:
            # Skin that the sleeve hides is left out, so that it cannot poke through.
            arm = arm[(depth[arm] < max(cuff, 0.0) + 0.04).all(axis=1)]
        if worn is not None:
            gauntlet = (depth[arm] < 0.035).all(axis=1)
            if gauntlet.any():
                meshes.append(part(arm[gauntlet], worn, PERSON))
            arm = arm[~gauntlet]
        if len(arm):
            meshes.append(part(arm, outfit.skin, PERSON))
    if sleeve is not None:
        meshes.append(_sleeve(path, radii, along, cuff, outfit.looseness, sleeve, at, rng))
    elif outfit.band is not None and bare_arm:
        place = float(rng.uniform(0.012, 0.05))
        width = float(rng.uniform(0.004, 0.018))
        start = np.array([np.interp(place, along, path[:, c]) for c in range(3)])
        axis = (path[3] - path[0]) / np.linalg.norm(path[3] - path[0])
        radius = float(np.interp(place, along, radii)) * 1.04
        meshes.append(_band(start, axis, radius, width, outfit.band, at))
    if outfit.ring is not None and worn is None and hand.texture is None:
        finger = int(rng.integers(1, 5))
        base, middle = (
            hand.keypoints[1 + 4 * finger].astype(np.float64),
            hand.keypoints[2 + 4 * finger].astype(np.float64),
        )
        axis = (middle - base) / np.linalg.norm(middle - base)
        centre = base + 0.66 * (middle - base)
        offset = hand.vertices[np.unique(hand.hand_triangles)] - centre
        lengthwise = offset @ axis
        away = np.linalg.norm(offset - lengthwise[:, None] * axis, axis=1)
        near = (np.abs(lengthwise) < 0.004) & (away < 0.014)
        if near.sum() > 8:
            # The bone lies off the finger's middle; the ring goes round the flesh.
            ring = offset[near] - lengthwise[near, None] * axis
            middle_of = ring.mean(axis=0)
            radius = float(np.quantile(np.linalg.norm(ring - middle_of, axis=1), 0.8)) + 0.0006
            meshes.append(_band(centre + middle_of, axis, radius, 0.0035, outfit.ring, at))
    return meshes


def _band(centre: Doubles, axis: Doubles, radius: float, width: float, material: Material, at: _Placement) -> Mesh:
    steps = np.linspace(-0.5, 0.5, 4) * width
    path = centre + steps[:, None] * axis
    across = np.cross(axis, [0.3, 0.5, 0.81])
    radii = np.repeat((radius * np.array([0.97, 1.0, 1.0, 0.97]))[:, None], 26, axis=1)
    return _solid_mesh(props.tube(path, radii, across).moved(at.rotation, at.offset), material, PERSON)


def _sleeve(
    path: Doubles,
    radii: Doubles,
    along: Doubles,
    cuff: float,
    looseness: float,
    material: Material,
    at: _Placement,
    rng: np.random.Generator,
) -> Mesh:
    stations = np.concatenate([[cuff, cuff + 0.002, cuff + 0.012], np.linspace(cuff + 0.03, along[-1], 26)])
    points = np.stack([np.interp(stations, along, path[:, c]) for c in range(3)], axis=1)
    if cuff < 0:
        points[stations < 0] += (path[0] - path[1]) / np.linalg.norm(path[0] - path[1]) * -stations[stations < 0, None]
    width = np.interp(stations, along, np.maximum.accumulate(radii)) * looseness + 0.0015
    width[0] *= 0.93
    sides = 26
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    folds = np.zeros((len(stations), sides))
    for _ in range(5):
        waves, turns = float(rng.uniform(25.0, 110.0)), int(rng.integers(1, 4))
        folds += rng.uniform(0.0, 0.035) * np.sin(stations[:, None] * waves + turns * angle + rng.uniform(0, 6.3))
    table = width[:, None] * (1.0 + folds * min(1.0, 3.0 * (looseness - 0.95)))
    across = np.array([0.05, 0.1, 0.99])
    return _solid_mesh(props.tube(points, table, across, sides).moved(at.rotation, at.offset), material, PERSON)


def _held(hand: PosedHand, at: _Placement, rng: np.random.Generator) -> Mesh | None:
    """Something in the grip: its axis lies across the palm, its width is what the fingers leave."""
    k = hand.keypoints.astype(np.float64)
    tips = k[[4, 8, 12, 16]]
    if rng.random() < 0.3:
        # Pen-like, between the tips of thumb and index.
        centre = (k[4] + k[8]) / 2.0
        towards = (k[5] + k[6]) / 2.0 - centre
        axis = towards / np.linalg.norm(towards) + rng.normal(0.0, 0.25, 3)
        solid = props.cylinder(float(rng.uniform(0.003, 0.006)), float(rng.uniform(0.1, 0.18)))
        shift = float(rng.uniform(-0.02, 0.05))
    else:
        palm = k[[5, 9, 13, 17]].mean(axis=0)
        centre = 0.55 * tips.mean(axis=0) + 0.45 * palm
        axis = k[5] - k[17] + rng.normal(0.0, 0.012, 3)
        unit = axis / np.linalg.norm(axis)
        middle = 0.6 * palm + 0.4 * k[0]
        points = np.concatenate([k[3:5], k[6:9], k[10:13], k[14:17], palm[None], middle[None]])
        away = points - centre
        away = np.linalg.norm(away - (away @ unit)[:, None] * unit, axis=1)
        radius = float(away.min()) - 0.008
        if radius < 0.006:
            return None
        shape = rng.random()
        if shape < 0.55:
            solid = props.cylinder(radius, float(rng.uniform(0.09, 0.24)), float(rng.uniform(0.75, 1.1)))
        elif shape < 0.8:
            solid = props.ellipsoid((radius, float(radius * rng.uniform(1.0, 2.6)), radius))
        else:
            solid = props.box((1.4 * radius, float(rng.uniform(0.1, 0.18)), 1.4 * radius))
        shift = float(rng.uniform(-0.03, 0.03))
    axis = axis / np.linalg.norm(axis)
    side = np.cross(axis, [0.1, 0.2, 0.97])
    side /= np.linalg.norm(side)
    turn = np.stack([side, axis, np.cross(side, axis)], axis=1)
    placed = solid.moved(turn, centre + shift * axis).moved(at.rotation, at.offset)
    return _solid_mesh(placed, draw_thing(rng), THING)


def _random_solid(rng: np.random.Generator, size: float) -> props.Solid:
    shape = rng.random()
    if shape < 0.4:
        solid = props.box((size, float(size * rng.uniform(0.2, 1.2)), float(size * rng.uniform(0.05, 0.8))))
    elif shape < 0.75:
        solid = props.cylinder(
            float(size * rng.uniform(0.08, 0.4)), float(size * rng.uniform(0.6, 2.0)), float(rng.uniform(0.5, 1.2))
        )
    else:
        solid = props.ellipsoid((size / 2, float(size * rng.uniform(0.2, 0.6)), float(size * rng.uniform(0.2, 0.6))))
    return solid.moved(random_rotation(rng), np.zeros(3))


def _environment(stock: Stock, camera: Camera, rng: np.random.Generator) -> tuple[Bytes, Lighting, bool]:
    """Background, lighting, and whether it is a dim picture."""
    size = camera.width
    low_light = rng.random() < 0.09
    brightness = (
        float(np.exp(rng.uniform(np.log(0.14), np.log(0.42)))) if low_light else float(np.exp(rng.normal(-0.14, 0.2)))
    )
    lamps = int(rng.choice([0, 0, 1, 1, 2]))
    turn = (
        euler(float(rng.normal(0.0, 12.0)), 0.0, float(rng.normal(0.0, 10.0)))
        @ np.diag([1.0, -1.0, 1.0])
        @ euler(0.0, float(rng.uniform(-180.0, 180.0)), 0.0)
    )
    choice = rng.random()
    if stock.panoramas and choice < (0.35 if stock.photos else 0.7):
        panorama = stock.panoramas[int(rng.integers(len(stock.panoramas)))]
        lighting = light_from(panorama, turn, rng, extra_lamps=lamps, brightness=brightness)
        if rng.random() < 0.75:
            # The picture's part of the panorama may be a small one: look at it with a wider lens, out of focus.
            x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
            wide = Camera(size * float(rng.uniform(0.55, 1.3)), size / 2.0, size / 2.0, size, size)
            seen = view_panorama(panorama, wide.ray(x, y), turn) * lighting.exposure * float(rng.uniform(0.6, 1.5))
            seen = 1.0 - np.exp(-1.25 * seen)  # as the shader rolls off highlights
            encoded = np.clip(seen, 0.0, 1.0) ** (1.0 / 2.2)
            return (encoded * 255.0).astype(np.uint8), lighting, low_light
    photo = stock.photos is not None and choice < 0.85
    background = stock.photos.draw(rng, size) if photo and stock.photos is not None else invent_background(rng, size)
    tint = linear(background[::8, ::8].reshape(-1, 3)).mean(axis=0)
    invented = invent_panorama(rng, tint if rng.random() < 0.7 else None)
    lighting = light_from(invented, turn, rng, extra_lamps=lamps, brightness=brightness)
    if low_light:
        background = (background * float(np.clip(brightness * rng.uniform(0.8, 2.0), 0.15, 1.0)) ** (1 / 2.2)).astype(
            np.uint8
        )
    return background, lighting, low_light


def _draw_handedness(rng: np.random.Generator) -> Handedness:
    return "left" if rng.random() < 0.5 else "right"


def _draw_hand(stock: Stock, rng: np.random.Generator, handedness: Handedness, *, holding: bool) -> PosedHand:
    source = stock.hands[int(rng.integers(len(stock.hands)))]
    return source.draw(rng, handedness, holding=holding)


def _placed(hand: PosedHand, at: _Placement, instance: int) -> PlacedHand:
    return PlacedHand(
        handedness=hand.handedness,
        instance=instance,
        keypoints=as_labelled_on_photos(at.points(hand.keypoints).astype(np.float64)),
        flesh=hand.flesh,
        skin=at.points(hand.hand_vertices()),
        label=hand.label,
    )


def _arm_end_in_sight(hand: PosedHand, at: _Placement, camera: Camera) -> bool:
    """Whether the place where the arm was cut off would be seen."""
    end = at.points(hand.arm_path[-2:])
    if (end[:, 2] < 0.05).any():
        return True
    points = camera.project(end)
    margin = 0.12 * camera.width
    return bool(((points > -margin) & (points < camera.width + margin)).all(axis=1).any())


def _compose_crop(stock: Stock, size: int, rng: np.random.Generator) -> Scene:
    holding = rng.random() < 0.10
    hand = _draw_hand(stock, rng, _draw_handedness(rng), holding=holding)
    share = float(rng.uniform(0.40, 0.92))
    if rng.random() < 0.12:
        share = float(rng.uniform(0.92, 1.35))  # a crop that cuts off part of the hand
    reach = 0.5 * max(0.0, 1.0 - share) + 0.05
    shift = (float(rng.normal(0.0, 0.45 * reach)), float(rng.normal(0.0, 0.45 * reach)))
    for _ in range(8):
        rotation = draw_view(rng)
        distance = float(np.exp(rng.uniform(np.log(0.26), np.log(1.3))))
        centre = hand.keypoints.mean(axis=0) @ rotation.T
        at = _Placement(
            rotation, np.array([rng.normal(0, 0.12) * distance, rng.normal(0, 0.12) * distance, distance]) - centre
        )
        nearest = float(at.points(hand.vertices)[:, 2].min())
        if nearest < 0.07:
            continue
        camera = framing_camera(at.points(hand.keypoints), size, share, shift)
        if not _arm_end_in_sight(hand, at, camera):
            break
    else:
        # Seen from over the palm, with the arm leaving downwards.
        rotation = euler(0, 0, float(rng.normal(0, 20))) @ np.diag([1.0, -1.0, -1.0])
        centre = hand.keypoints.mean(axis=0) @ rotation.T
        at = _Placement(rotation, np.array([0.0, 0.0, 0.5]) - centre)
        camera = framing_camera(at.points(hand.keypoints), size, share, shift)
    background, lighting, low_light = _environment(stock, camera, rng)
    outfit = _draw_outfit(rng, hand.age)
    meshes = _dress(hand, outfit, at, FIRST_HAND, rng)
    placed = [_placed(hand, at, FIRST_HAND)]
    about = at.points(hand.vertices)
    if holding:
        thing = _held(hand, at, rng)
        if thing is not None:
            meshes.append(thing)
    place = about.mean(axis=0).astype(np.float64)
    if rng.random() < 0.08:
        # Something between camera and hand, covering a side of it.
        hand_points = placed[0].keypoints
        target = hand_points[int(rng.integers(21))] * float(rng.uniform(0.6, 0.92)) + rng.normal(0.0, 0.02, 3)
        solid = _random_solid(rng, float(rng.uniform(0.015, 0.07)) * 0.9)
        moved = solid.moved(np.eye(3), target)
        if float(moved.vertices[:, 2].min()) > 0.06:
            meshes.append(_solid_mesh(moved, draw_thing(rng), THING, casts_shadow=bool(rng.random() < 0.7)))
    if rng.random() < 0.10:
        second = _second_hand(stock, hand, at, camera, outfit, rng)
        if second is not None:
            meshes.extend(second[0])
            placed.append(second[1])
    if rng.random() < 0.30:
        meshes.extend(_surroundings(place, about, rng))
    return Scene(meshes, camera, lighting, background, placed, about, low_light)


def _second_hand(
    stock: Stock, hand: PosedHand, at: _Placement, camera: Camera, outfit: _Outfit, rng: np.random.Generator
) -> tuple[list[Mesh], PlacedHand] | None:
    """The other hand, close to the first but not in it."""
    other: Handedness = "right" if hand.handedness == "left" else "left"
    second = _draw_hand(stock, rng, other, holding=False)
    rotation = draw_view(rng) if rng.random() < 0.4 else euler(*rng.normal(0.0, 25.0, 3)) @ at.rotation
    first = at.points(hand.keypoints).astype(np.float64)
    for _ in range(6):
        direction = rng.normal(size=3) * [1.0, 1.0, 0.6]
        direction /= np.linalg.norm(direction)
        centre = first.mean(axis=0) + direction * float(rng.uniform(0.09, 0.22))
        place = _Placement(rotation, centre - second.keypoints.mean(axis=0) @ rotation.T)
        points = place.points(second.keypoints).astype(np.float64)
        gap = np.linalg.norm(points[:, None] - first[None], axis=2).min()
        skin = place.points(second.vertices)
        if gap > 0.03 and skin[:, 2].min() > 0.08 and not _arm_end_in_sight(second, place, camera):
            return _dress(second, outfit, place, FIRST_HAND + 1, rng), _placed(second, place, FIRST_HAND + 1)
    return None


def _surroundings(place: Doubles, about: Floats, rng: np.random.Generator) -> list[Mesh]:
    """A surface behind the hand that takes its shadow, and perhaps things on it."""
    behind = float(about[:, 2].max()) + float(rng.uniform(0.005, 0.25))
    tilt = euler(float(rng.normal(0.0, 25.0)), float(rng.normal(0.0, 20.0)), float(rng.uniform(-180, 180)))
    normal = tilt @ np.array([0.0, 0.0, -1.0])
    # Push the surface back until the whole hand is in front of it.
    centre = np.array([place[0], place[1], behind])
    gap = float(((about - centre) @ normal).min())
    if gap < 0.004:
        centre = centre + normal * (gap - 0.004)
    material = draw_thing(rng)
    material = replace(material, surface=(0.8, float(rng.uniform(0.1, 0.6)), 0.0003, material.surface[3] * 0.4))
    meshes = []
    solid = props.plane(12.0).moved(tilt, centre)
    if float(solid.vertices[:, 2].min()) > -40.0:
        meshes.append(_solid_mesh(solid, material, THING, casts_shadow=False))
    for _ in range(int(rng.integers(0, 4))):
        spread = float(rng.uniform(0.1, 0.4))
        along = tilt @ np.array([rng.normal(0, spread), rng.normal(0, spread), 0.0])
        thing = _random_solid(rng, float(rng.uniform(0.03, 0.18)))
        lift = float((thing.vertices @ normal).min())
        spot = centre + along - normal * lift
        moved = thing.moved(np.eye(3), spot)
        clear = np.linalg.norm(about[::20, None].astype(np.float64) - moved.vertices[None, ::5], axis=2).min()
        if clear > 0.015 and float(moved.vertices[:, 2].min()) > 0.3 * float(about[:, 2].min()) + 0.05:
            meshes.append(_solid_mesh(moved, draw_thing(rng), THING))
    return meshes


def _compose_scene(stock: Stock, size: int, rng: np.random.Generator) -> Scene:
    field = float(rng.uniform(38.0, 75.0))
    focal = size / 2.0 / float(np.tan(np.deg2rad(field) / 2.0))
    camera = Camera(focal, size / 2.0, size / 2.0, size, size)
    background, lighting, low_light = _environment(stock, camera, rng)
    meshes: list[Mesh] = []
    placed: list[PlacedHand] = []
    about: list[Floats] = [np.array([[-0.4, -0.4, 0.5], [0.4, 0.4, 1.2]], np.float32)]
    people = int(rng.choice([0, 1, 1, 1, 1, 2]))
    count = 0
    for _ in range(people):
        distance = float(np.exp(rng.uniform(np.log(0.7), np.log(1.9))))
        outfit = _draw_outfit(rng, float(rng.uniform(0.4, 1.0)))
        width = distance * size / focal
        # The body ends at the hips, which have to stay below the picture.
        low = max(0.0, 0.5 * width - 0.56)
        chest = np.array([rng.normal(0.0, 0.16) * width, low + rng.uniform(0.0, 0.25) * width, distance])
        facing = float(rng.normal(0.0, 28.0))
        body_turn = euler(float(rng.normal(0.0, 5.0)), facing, float(rng.normal(0.0, 6.0)))
        meshes.append(_torso(stock.body, outfit, chest, body_turn, rng))
        for side in ("left", "right"):
            result = None
            if rng.random() < 0.75:
                result = _reaching_hand(stock, side, chest, body_turn, camera, outfit, FIRST_HAND + count, rng)
            if result is None:
                meshes.append(_hidden_arm(side, chest, body_turn, outfit, rng))
                continue
            parts, label, points = result
            meshes.extend(parts)
            placed.append(label)
            about.append(points)
            count += 1
    for _ in range(int(rng.integers(0, 6))):
        far = float(rng.uniform(0.5, 3.0))
        spot = np.array([rng.normal(0, 0.35) * far, rng.normal(0.1, 0.35) * far, far])
        solid = _random_solid(rng, float(rng.uniform(0.05, 0.35))).moved(np.eye(3), spot)
        clear = all(np.linalg.norm(spot - p.keypoints.mean(axis=0)) > 0.3 for p in placed)
        if clear and float(solid.vertices[:, 2].min()) > 0.25:
            meshes.append(_solid_mesh(solid, draw_thing(rng), THING))
    return Scene(meshes, camera, lighting, background, placed, np.concatenate(about), low_light)


def _torso(body: BodyAsset, outfit: _Outfit, chest: Doubles, turn: Doubles, rng: np.random.Generator) -> Mesh:
    coefficients = np.clip(rng.normal(0.0, 0.7, len(body.directions)), -1.5, 1.5).astype(np.float32)
    points = body.mean + np.einsum("d,dnc->nc", coefficients, body.directions)
    count = len(body.head_weight)
    rest = points[:count].astype(np.float32)
    # The body's frame has z up and looks along -y; the camera frame has y down and looks along z.
    upright = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    vertices = (np.einsum("vi,ji->vj", rest, turn @ upright) + chest).astype(np.float32)
    neck = float(rng.uniform(0.03, 0.08))
    head = points[-1]
    cloth = np.clip((neck - rest[:, 2]) / 0.01, 0.0, 1.0) * (body.head_weight < 0.5)
    # Hair lies above and behind a slanted plane through the head.
    crown = rest - (head + np.array([0.0, -0.017, 0.084]))
    line = float(rng.uniform(0.0, 0.06))
    hair = np.clip((crown[:, 2] * 1.3 + crown[:, 1] + line) / 0.012, 0.0, 1.0) * (body.head_weight > 0.5)
    if rng.random() < 0.08:
        hair = hair * 0.0
    dark = linear(rng.choice([(30, 24, 20), (70, 48, 30), (140, 105, 60), (150, 150, 150)]))
    shirt = outfit.sleeve or draw_cloth(rng)
    material = Material(
        kind=BODY,
        base=outfit.skin.base,
        second=shirt.base,
        palm=as_colour(dark),
        surface=(0.6, 0.5, 0.0006, 1.0),
        seed=draw_seed(rng),
    )
    region = np.zeros((count, 4), np.float32)
    region[:, 0], region[:, 1] = cloth, hair
    return Mesh(
        vertices=vertices,
        normals=vertex_normals(vertices, body.triangles),
        rest=rest,
        triangles=body.triangles,
        material=material,
        instance=PERSON,
        region=region,
    )


def _reaching_hand(
    stock: Stock,
    side: str,
    chest: Doubles,
    turn: Doubles,
    camera: Camera,
    outfit: _Outfit,
    instance: int,
    rng: np.random.Generator,
) -> tuple[list[Mesh], PlacedHand, Floats] | None:
    """A hand held up in front of its body: the arm comes from the shoulder's side."""
    handedness: Handedness = "left" if side == "left" else "right"
    hand = _draw_hand(stock, rng, handedness, holding=False)
    # A person who faces the camera has the left shoulder on the picture's right.
    outwards = 1.0 if side == "left" else -1.0
    shoulder = chest + turn @ np.array([outwards * 0.17, 0.02, 0.0])
    for _ in range(12):
        reach = rng.uniform([-0.15, -0.35, -0.55], [0.35, 0.45, -0.12]) * [outwards, 1.0, 1.0]
        wrist = shoulder + turn @ reach
        if wrist[2] < 0.3 or not 0.2 < np.linalg.norm(wrist - shoulder) < 0.6:
            continue
        # The elbow hangs below and outside the line from shoulder to wrist.
        upper, fore = 0.29, 0.25
        line = wrist - shoulder
        length = float(np.clip(np.linalg.norm(line), 0.08, upper + fore - 0.01))
        unit = line / np.linalg.norm(line)
        along = (upper**2 - fore**2 + length**2) / (2.0 * length)
        sag = float(np.sqrt(max(upper**2 - along**2, 1e-4)))
        hang = np.array([outwards * 0.5, 1.0, 0.1]) + rng.normal(0.0, 0.25, 3)
        hang -= unit * (hang @ unit)
        elbow = shoulder + unit * along + sag * hang / np.linalg.norm(hang)
        forearm = wrist - elbow
        forearm /= np.linalg.norm(forearm)
        twist = float(rng.uniform(0.0, 360.0))
        own = hand.keypoints[0] - hand.arm_path[8]
        own = own / np.linalg.norm(own)
        rotation = _aligned(own.astype(np.float64), forearm, twist)
        at = _Placement(rotation, wrist - hand.keypoints[0] @ rotation.T)
        points = at.points(hand.keypoints)
        if points[:, 2].min() < 0.25:
            continue
        image = camera.project(points)
        middle = image.mean(axis=0)
        if ((middle < 0.04 * camera.width) | (middle > 0.96 * camera.width)).any():
            continue
        box = np.ptp(image, axis=0).max() / camera.width
        if not 0.05 < box < 0.6:
            continue
        # The arm is redrawn along shoulder, elbow and wrist, so that it belongs to the body.
        bent = np.concatenate([np.linspace(wrist, elbow, 9)[:-1], np.linspace(elbow, shoulder, 8)])
        bent[1:-1] = 0.25 * bent[:-2] + 0.5 * bent[1:-1] + 0.25 * bent[2:]
        local = (bent - at.offset) @ rotation
        hand = replace(hand, arm_path=local.astype(np.float32))
        long_enough = outfit
        if outfit.sleeve is None:
            long_enough = replace(outfit, sleeve=_bare(outfit.skin), cuff=0.17, looseness=1.0)
        return _dress(hand, long_enough, at, instance, rng), _placed(hand, at, instance), at.points(hand.keypoints)
    return None


def _hidden_arm(side: str, chest: Doubles, turn: Doubles, outfit: _Outfit, rng: np.random.Generator) -> Mesh:
    """An arm whose hand is behind its owner's back."""
    outwards = 1.0 if side == "left" else -1.0
    shoulder = chest + turn @ np.array([outwards * 0.17, 0.02, 0.0])
    elbow = shoulder + turn @ np.array([outwards * rng.uniform(0.02, 0.10), 0.27, rng.uniform(0.02, 0.10)])
    wrist = chest + turn @ np.array([outwards * 0.03, 0.38, 0.22])
    path = np.concatenate([np.linspace(wrist, elbow, 9)[:-1], np.linspace(elbow, shoulder, 8)])
    path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
    radii = np.linspace(0.028, 0.05, len(path))
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    here = _Placement(np.eye(3), np.zeros(3))
    looseness = outfit.looseness if outfit.sleeve else 1.0
    return _sleeve(path, radii, along, 0.0, looseness, outfit.sleeve or _bare(outfit.skin), here, rng)


def _bare(skin: Material) -> Material:
    """Skin colour for the part of a bare arm that is drawn as a tube."""
    return Material(
        kind=1, base=skin.base, second=skin.base, surface=(0.55, 0.7, 0.0003, 40.0), detail=(0.0, 0.0, 0.04, 0.0)
    )


def _aligned(start: Doubles, end: Doubles, twist: float) -> Doubles:
    """A rotation that takes one unit vector to another, with a free turn about it (degrees)."""
    side = np.cross(start, [0.31, 0.55, 0.77])
    side /= np.linalg.norm(side)
    first = np.stack([start, side, np.cross(start, side)], axis=1)
    other = np.cross(end, [0.77, 0.31, 0.55])
    other /= np.linalg.norm(other)
    second = np.stack([end, other, np.cross(end, other)], axis=1)
    a = np.deg2rad(twist)
    spin = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    rotation: Doubles = second @ spin @ first.T
    return rotation
