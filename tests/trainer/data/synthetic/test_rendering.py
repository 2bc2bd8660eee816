"""Pictures and labels agree: what is drawn where, what hides what, left and right."""

from dataclasses import replace

import numpy as np
import pytest

from trainer.data.synthetic import props
from trainer.data.synthetic.annotate import OCCLUDED, OUTSIDE, VISIBLE, label_hand
from trainer.data.synthetic.appearance import draw_thing
from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.hands import mirrored
from trainer.data.synthetic.lights import Lighting, invent_panorama, light_from
from trainer.data.synthetic.mesh import vertex_normals
from trainer.data.synthetic.renderer import Mesh, Renderer
from trainer.data.synthetic.sample import make_sample, sample_generator
from trainer.data.synthetic.scene import FIRST_HAND, Scene, Stock, compose

SIZE = 96


def plain_light() -> Lighting:
    rng = np.random.default_rng(0)
    return light_from(invent_panorama(rng), np.eye(3), rng, extra_lamps=1, brightness=0.8)


def solid(shape: props.Solid, at: list[float], instance: int) -> Mesh:
    placed = shape.moved(np.eye(3), np.array(at))
    return Mesh(
        vertices=placed.vertices,
        normals=vertex_normals(placed.vertices, placed.triangles),
        rest=placed.local,
        triangles=placed.triangles,
        material=draw_thing(np.random.default_rng(1)),
        instance=instance,
    )


def test_a_ball_is_drawn_where_the_camera_projects_it(renderer: Renderer) -> None:
    camera = Camera(focal=120.0, centre_x=40.0, centre_y=52.0, width=SIZE, height=SIZE)
    ball = solid(props.ellipsoid((0.05, 0.05, 0.05)), [0.05, -0.1, 0.6], 7)
    picture = renderer.render([ball], camera, plain_light(), ball.vertices)
    rows, columns = np.nonzero(picture.instance == 7)
    centre = camera.project(np.array([[0.05, -0.1, 0.6]]))[0]

    assert [columns.mean() + 0.5, rows.mean() + 0.5] == pytest.approx(centre.tolist(), abs=0.5)
    assert picture.depth[int(centre[1]), int(centre[0])] == pytest.approx(0.55, abs=0.004)
    assert np.isinf(picture.depth[0, 0])
    assert picture.colour[int(centre[1]), int(centre[0]), 3] == 255
    assert picture.colour[0, 0].tolist() == [0, 0, 0, 0]


def test_the_renderer_refuses_a_camera_of_another_size(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="camera is 32x32"):
        renderer.render([], Camera(10.0, 16.0, 16.0, 32, 32), plain_light(), np.zeros((2, 3), np.float32))


def nearest_surface(scene: Scene, x: float, y: float) -> float:
    """Depth of the first surface along the ray through an image point, by intersecting every triangle."""
    ray = scene.camera.ray(np.array([x]), np.array([y]))[0]
    best = np.inf
    for mesh in scene.meshes:
        a, b, c = (mesh.vertices[mesh.triangles[:, i]].astype(np.float64) for i in range(3))
        ab, ac = b - a, c - a
        p = np.cross(ray, ac)
        det = (ab * p).sum(axis=1)
        det = np.where(np.abs(det) < 1e-18, 1e-18, det)
        u = (-a * p).sum(axis=1) / det
        q = np.cross(-a, ab)
        v = (q @ ray) / det
        t = (ac * q).sum(axis=1) / det
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0.04)
        if hit.any():
            best = min(best, float(t[hit].min() * ray[2]))
    return best


@pytest.mark.parametrize("index", range(4))
def test_visibility_agrees_with_rays_cast_at_the_surfaces(renderer: Renderer, stock: Stock, index: int) -> None:
    scene = compose(stock, "crop", SIZE, sample_generator(11, index))
    picture = renderer.render(scene.meshes, scene.camera, scene.lighting, scene.shadow_about)
    hand = scene.hands[0]
    label = label_hand(hand, scene.camera, picture)

    assert label is not None
    for k in range(21):
        x, y = label.keypoints_in_image[k]
        inside = 0 <= x < SIZE and 0 <= y < SIZE
        assert (label.visibility[k] == OUTSIDE) == (not inside)
        if not inside:
            continue
        # The depth picture has one value a pixel, taken at its centre.
        gap = hand.keypoints[k, 2] - nearest_surface(scene, np.floor(x) + 0.5, np.floor(y) + 0.5)
        limit = hand.flesh[k] + 0.003
        if abs(gap - limit) > 1e-4:
            assert label.visibility[k] == (VISIBLE if gap < limit else OCCLUDED), f"keypoint {k}"


def test_a_wall_in_front_hides_every_keypoint(renderer: Renderer, stock: Stock) -> None:
    scene = compose(stock, "crop", SIZE, sample_generator(5, 1))
    nearest = float(scene.hands[0].skin[:, 2].min())
    wall = solid(props.plane(4.0), [0.0, 0.0, nearest * 0.8], 255)
    picture = renderer.render([*scene.meshes, wall], scene.camera, scene.lighting, scene.shadow_about)
    inside = replace(scene.hands[0], instance=255)
    label = label_hand(inside, scene.camera, picture)

    assert label is not None
    assert VISIBLE not in label.visibility.tolist()
    assert OCCLUDED in label.visibility.tolist()


def test_mirroring_a_hand_swaps_its_side_and_turns_its_picture_round(renderer: Renderer, stock: Stock) -> None:
    hand = stock.hands[0].draw(np.random.default_rng(3), "right", holding=False)
    other = mirrored(hand)
    facing = np.diag([1.0, -1.0, -1.0]).astype(np.float32)
    camera = Camera(160.0, SIZE / 2, SIZE * 0.7, SIZE, SIZE)
    offset = np.array([0.0, 0.0, 0.4], np.float32)
    masks, points = [], []
    for one in (hand, other):
        mesh = Mesh(
            vertices=one.vertices @ facing.T + offset,
            normals=one.normals @ facing.T,
            rest=one.regions.rest,
            triangles=np.concatenate([one.hand_triangles, one.arm_triangles]),
            material=draw_thing(np.random.default_rng(0)),
            instance=FIRST_HAND,
            closed=True,
        )
        masks.append(renderer.render([mesh], camera, plain_light(), mesh.vertices).instance == FIRST_HAND)
        points.append(camera.project(one.keypoints @ facing.T + offset))

    assert (hand.handedness, other.handedness) == ("right", "left")
    assert points[1][:, 0] == pytest.approx(SIZE - points[0][:, 0], abs=1e-3)
    assert (masks[0][:, ::-1] == masks[1]).mean() > 0.995
    assert masks[0].sum() > 500
    # A right palm towards the camera, fingers up, has its thumb on the picture's right.
    assert points[0][4, 0] > points[0][20, 0]


def test_labels_hold_in_many_drawn_pictures(renderer: Renderer, stock: Stock) -> None:
    seen = {"left": 0, "right": 0}
    for index in range(12):
        sample = make_sample(stock, renderer, "crop", SIZE, 21, index)
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert sample.labels
        for label in sample.labels:
            seen[label.handedness] += 1
            assert np.abs(sample.camera.project(label.keypoints_in_camera) - label.keypoints_in_image).max() < 0.01
            assert label.area == (sample.mask == label.instance).sum()
            x, y, w, h = label.box_in_image
            rows, columns = np.nonzero(sample.mask == label.instance)
            assert columns.min() >= np.floor(x) - 1
            assert columns.max() <= np.ceil(x + w)
            assert rows.min() >= np.floor(y) - 1
            assert rows.max() <= np.ceil(y + h)
    assert min(seen.values()) > 0


def test_scenes_hold_no_one_or_several_hands(renderer: Renderer, stock: Stock) -> None:
    counts = {len(make_sample(stock, renderer, "scene", SIZE, 2, index).labels) for index in range(16)}

    assert 0 in counts
    assert 1 in counts
    assert max(counts) >= 2


def test_a_sample_depends_on_seed_and_index_alone(renderer: Renderer, stock: Stock) -> None:
    first = make_sample(stock, renderer, "mixed", SIZE, 9, 4)
    make_sample(stock, renderer, "mixed", SIZE, 9, 0)
    again = make_sample(stock, renderer, "mixed", SIZE, 9, 4)
    other = make_sample(stock, renderer, "mixed", SIZE, 10, 4)

    assert (first.image == again.image).all()
    assert (first.image != other.image).any()
