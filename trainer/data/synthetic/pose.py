"""How a hand is held: joint angles within anatomical limits, named gestures, and what keeps fingers apart.

Angles are degrees. For the four fingers: flexion of the base (MCP), middle (PIP) and end (DIP) joint, positive towards
the palm, and the sideways angle of the finger in the palm's plane, positive to the thumb's side. The thumb is given by
where its metacarpal points (`radial`: away from the hand's axis in the palm's plane; `palmar`: out of the palm), its
`roll` about itself, and the flexion of its two further joints. Turning angles into rotations needs the hand's own joint
positions (`PoseSolver`); deforming the skin is `skinning`.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.asset import FINGERS, HandAsset
from trainer.data.synthetic.shape import HandShape, mean_shape

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Lowest and highest angle of each column; the paper-wide ranges of healthy hands, rounded.
FINGER_LIMITS: Final = {
    "mcp": (-22.0, 92.0),
    "pip": (-4.0, 108.0),
    "dip": (-6.0, 75.0),
    "side": (-34.0, 26.0),
}
THUMB_LIMITS: Final = {
    "radial": (-8.0, 58.0),
    "palmar": (0.0, 62.0),
    "roll": (-12.0, 48.0),
    "mcp": (-8.0, 58.0),
    "ip": (-14.0, 80.0),
}
WRIST_LIMITS: Final = {"flexion": (-62.0, 68.0), "deviation": (-20.0, 30.0), "twist": (-25.0, 25.0)}

# Sideways angle of each finger (index..little) when closed and when fully spread.
_SIDE_CLOSED: Final = np.array([1.0, 0.0, -2.5, -7.0])
_SIDE_SPREAD: Final = np.array([17.0, 2.0, -13.0, -29.0])
# Turn of each finger's plane of flexion about its own length, so that bent fingers converge on the thumb's base.
_PLANE_TURN: Final = np.array([-6.0, 0.0, 7.0, 13.0])
_DIP_PER_PIP: Final = 0.64


@dataclass(frozen=True)
class HandPose:
    """Angles of one hand in degrees; see the module's text for their meaning."""

    fingers: Doubles  # [4, 4] index..little x (mcp, pip, dip, side)
    thumb: Doubles  # [5] radial, palmar, roll, mcp, ip
    wrist: Doubles  # [3] flexion, deviation, twist
    cup: float = 0.0  # 0..1, how far the palm is hollowed
    elbow: float = 0.0  # degrees of further bend at the elbow


def _fingers(*curls: tuple[float, float], spread: float) -> Doubles:
    angles = np.zeros((4, 4))
    for row, (mcp, pip) in enumerate(curls):
        angles[row, :3] = mcp, pip, pip * _DIP_PER_PIP
    angles[:, 3] = _SIDE_CLOSED + spread * (_SIDE_SPREAD - _SIDE_CLOSED)
    return angles


_STRAIGHT: Final = (2.0, 4.0)
_BENT: Final = (82.0, 95.0)
_THUMB: Final[dict[str, tuple[float, float, float, float, float]]] = {
    "open": (48.0, 16.0, 0.0, 4.0, 4.0),
    "side": (20.0, 10.0, 0.0, 8.0, 6.0),
    "up": (46.0, 6.0, -6.0, 0.0, -6.0),
    "across": (23.0, 55.0, 12.0, 25.0, 58.0),
    "folded": (8.0, 48.0, 14.0, 38.0, 26.0),
    "opposed": (22.0, 50.0, 30.0, 14.0, 18.0),
    "relaxed": (32.0, 30.0, 12.0, 14.0, 12.0),
}

# name -> four finger curls (mcp, pip), spread, thumb. Touching gestures are fitted by `_PINCHES`.
_GESTURES: Final[dict[str, tuple[tuple[tuple[float, float], ...], float, str]]] = {
    "open_palm": ((_STRAIGHT,) * 4, 0.7, "open"),
    "flat": (((0.0, 3.0),) * 4, 0.0, "side"),
    "relaxed": (((18.0, 24.0), (24.0, 30.0), (27.0, 32.0), (28.0, 34.0)), 0.25, "relaxed"),
    "fist": ((_BENT,) * 4, 0.1, "across"),
    "point": ((_STRAIGHT, _BENT, _BENT, _BENT), 0.1, "across"),
    "gun": ((_STRAIGHT, _BENT, _BENT, _BENT), 0.1, "up"),
    "two_gun": ((_STRAIGHT, _STRAIGHT, _BENT, _BENT), 0.0, "up"),
    "thumbs_up": ((_BENT,) * 4, 0.05, "up"),
    "victory": ((_STRAIGHT, _STRAIGHT, (72.0, 92.0), (74.0, 90.0)), 0.8, "folded"),
    "two": ((_STRAIGHT, _STRAIGHT, (72.0, 92.0), (74.0, 90.0)), 0.1, "folded"),
    "three": ((_STRAIGHT, _STRAIGHT, _STRAIGHT, (74.0, 90.0)), 0.6, "folded"),
    "three_with_thumb": ((_STRAIGHT, _STRAIGHT, _BENT, _BENT), 0.7, "open"),
    "four": ((_STRAIGHT,) * 4, 0.5, "folded"),
    "ok": (((48.0, 58.0), (14.0, 18.0), (8.0, 12.0), (4.0, 8.0)), 0.7, "opposed"),
    "pinch": (((50.0, 52.0), (58.0, 62.0), (62.0, 66.0), (64.0, 68.0)), 0.2, "opposed"),
    "pinch_middle": (((18.0, 20.0), (56.0, 54.0), (20.0, 24.0), (12.0, 18.0)), 0.5, "opposed"),
    "tripod": (((46.0, 50.0), (54.0, 58.0), (62.0, 78.0), (66.0, 84.0)), 0.1, "opposed"),
    "cone": (((48.0, 40.0), (52.0, 40.0), (52.0, 40.0), (50.0, 42.0)), 0.0, "opposed"),
    "grasp_wide": (((22.0, 34.0), (24.0, 36.0), (26.0, 38.0), (26.0, 38.0)), 0.45, "opposed"),
    "grasp": (((38.0, 52.0), (42.0, 56.0), (46.0, 58.0), (48.0, 60.0)), 0.25, "opposed"),
    "c_shape": (((26.0, 42.0), (28.0, 44.0), (30.0, 46.0), (32.0, 46.0)), 0.0, "opposed"),
    "rock": ((_STRAIGHT, _BENT, _BENT, _STRAIGHT), 0.5, "folded"),
    "i_love_you": ((_STRAIGHT, _BENT, _BENT, _STRAIGHT), 0.6, "open"),
    "call": ((_BENT, _BENT, _BENT, _STRAIGHT), 0.6, "open"),
    "little": ((_BENT, _BENT, _BENT, _STRAIGHT), 0.3, "across"),
    "claw": (((8.0, 62.0),) * 4, 0.7, "open"),
    "hook": (((4.0, 92.0),) * 4, 0.1, "side"),
    "table": (((76.0, 8.0),) * 4, 0.0, "side"),
    "middle": ((_BENT, _STRAIGHT, _BENT, _BENT), 0.0, "across"),
    "loose_fist": (((62.0, 78.0), (66.0, 80.0), (68.0, 80.0), (68.0, 78.0)), 0.15, "relaxed"),
}
# Gestures in which the thumb's tip meets others: the fingers (rows of `fingers`) that it touches.
_PINCHES: Final[dict[str, tuple[int, ...]]] = {
    "ok": (0,),
    "pinch": (0,),
    "pinch_middle": (1,),
    "tripod": (0, 1),
    "cone": (0, 1, 2, 3),
}
# Everyday poses more often than rare ones.
_COMMON: Final = ("open_palm", "relaxed", "fist", "point", "flat", "grasp", "pinch", "thumbs_up", "victory")
_HOLDING: Final = ("grasp", "grasp_wide", "c_shape", "pinch", "tripod", "loose_fist")


def gesture_names() -> tuple[str, ...]:
    """Names of the gestures, in a fixed order."""
    return tuple(_GESTURES)


def holding_names() -> tuple[str, ...]:
    """Gestures that may hold a thing."""
    return _HOLDING


def clamp(pose: HandPose) -> HandPose:
    """The nearest pose within the joint limits; a bent finger also loses its sideways freedom."""
    low, high = np.array(list(FINGER_LIMITS.values())).T
    fingers = np.clip(pose.fingers, low, high)
    # The ligaments beside a knuckle tighten with flexion.
    freedom = np.clip(1.0 - fingers[:, 0] / 85.0, 0.12, 1.0)
    fingers[:, 3] = _SIDE_CLOSED + (fingers[:, 3] - _SIDE_CLOSED) * freedom
    # The end joint follows the middle one: no bent tip on a straight finger, nor the reverse.
    dip = np.clip(fingers[:, 2], 0.3 * fingers[:, 1] - 6.0, 0.85 * fingers[:, 1] + 8.0)
    fingers[:, 2] = np.clip(dip, *FINGER_LIMITS["dip"])
    # Fingers keep their order side by side.
    for row in range(1, 4):
        gap = 1.5 if min(fingers[row, 0], fingers[row - 1, 0]) < 40.0 else 0.0
        fingers[row, 3] = min(fingers[row, 3], fingers[row - 1, 3] - gap)
    thumb_low, thumb_high = np.array(list(THUMB_LIMITS.values())).T
    wrist_low, wrist_high = np.array(list(WRIST_LIMITS.values())).T
    return HandPose(
        fingers=fingers,
        thumb=np.clip(pose.thumb, thumb_low, thumb_high),
        wrist=np.clip(pose.wrist, wrist_low, wrist_high),
        cup=float(np.clip(pose.cup, 0.0, 1.0)),
        elbow=float(np.clip(pose.elbow, -30.0, 70.0)),
    )


def blend(first: HandPose, second: HandPose, share: float) -> HandPose:
    """The pose `share` of the way from the first to the second, clamped."""
    keep = 1.0 - share
    return clamp(
        HandPose(
            fingers=keep * first.fingers + share * second.fingers,
            thumb=keep * first.thumb + share * second.thumb,
            wrist=keep * first.wrist + share * second.wrist,
            cup=keep * first.cup + share * second.cup,
            elbow=keep * first.elbow + share * second.elbow,
        )
    )


@dataclass(frozen=True)
class PosedRig:
    """Rotation and place of every bone of a posed hand, still in the (right) hand frame of the forearm."""

    rotations: Floats  # [B, 3, 3] world from rest
    origins: Floats  # [B, 3] joint positions
    keypoints: Floats  # [21, 3] metres


def _axis_rotation(axis: Doubles, degrees: float) -> Doubles:
    angle = np.deg2rad(degrees)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation: Doubles = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return rotation


def _shortest_rotation(start: Doubles, end: Doubles) -> Doubles:
    axis = np.cross(start, end)
    sine = float(np.linalg.norm(axis))
    if sine < 1e-9:
        return np.eye(3)
    return _axis_rotation(axis, float(np.rad2deg(np.arctan2(sine, float(start @ end)))))


class PoseSolver:
    """Turns angles into bone rotations, and draws poses whose fingers do not run through each other.

    Axes and rest angles are measured once on the mean hand and serve every shape.
    """

    def __init__(self, asset: HandAsset, rest: HandShape | None = None) -> None:
        """Measure on `rest`, by default the asset's mean hand."""
        rest = mean_shape(asset) if rest is None else rest
        self._rest = rest
        self._met: dict[str, HandPose] = {}  # touching gestures, fitted once on the mean hand
        joints = rest.joints.astype(np.float64)
        self._parents = asset.bone_parents
        self._chains = [[asset.bone(f"{f}_{i}") for i in (1, 2, 3)] for f in FINGERS]
        self._roots = [asset.bone(f"{f}_0") for f in FINGERS[1:]]
        self._hand, self._upper = asset.bone("hand"), asset.bone("upper_arm")
        z = np.array([0.0, 0.0, 1.0])
        self._axes: list[Doubles] = []
        self._side_axes: list[Doubles] = []
        self._rest_angles = np.zeros((4, 4))
        for row, chain in enumerate(self._chains[1:]):
            points = [*joints[chain], rest.tips[row + 1].astype(np.float64)]
            first = points[1] - points[0]
            along = np.array([first[0], first[1], 0.0])
            along /= np.linalg.norm(along)
            palmar = _axis_rotation(along, float(_PLANE_TURN[row])) @ z
            axis = np.cross(along, palmar)
            self._axes.append(axis / np.linalg.norm(axis))
            self._side_axes.append(-palmar)
            previous = 0.0
            for step in range(3):
                segment = points[step + 1] - points[step]
                angle = float(np.rad2deg(np.arctan2(segment @ palmar, segment @ along)))
                self._rest_angles[row, step] = angle - previous
                previous = angle
            self._rest_angles[row, 3] = np.rad2deg(np.arctan2(along[0], along[1]))
        thumb = [*joints[self._chains[0]], rest.tips[0].astype(np.float64)]
        steps = [thumb[i + 1] - thumb[i] for i in range(3)]
        self._thumb_direction = steps[0] / np.linalg.norm(steps[0])
        axis = np.cross(steps[1], steps[2])
        self._thumb_axis = axis / np.linalg.norm(axis)
        units = [s / np.linalg.norm(s) for s in steps]
        self._thumb_rest_ip = float(
            np.rad2deg(np.arcsin(np.clip(np.cross(units[1], units[2]) @ self._thumb_axis, -1, 1)))
        )
        # The metacarpal and the first phalanx of a straight thumb are in line; the rig's rest is a little bent.
        self._thumb_rest_mcp = float(
            np.rad2deg(np.arcsin(np.clip(np.cross(units[0], units[1]) @ self._thumb_axis, -1, 1)))
        )
        self._radii = self._flesh_radii(rest)
        self._apart = self._pairs_kept_apart()

    def solve(self, pose: HandPose, shape: HandShape) -> PosedRig:
        """Bone transforms and the 21 keypoints of a hand of this shape in this pose."""
        count = len(self._parents)
        local = np.tile(np.eye(3), (count, 1, 1))
        flexion, deviation, twist = pose.wrist
        local[self._hand] = (
            _axis_rotation(np.array([0.0, 1.0, 0.0]), twist)
            @ _axis_rotation(np.array([0.0, 0.0, 1.0]), deviation)
            @ _axis_rotation(np.array([1.0, 0.0, 0.0]), flexion)
        )
        local[self._upper] = _axis_rotation(np.array([0.0, 0.0, 1.0]), pose.elbow)
        for row, chain in enumerate(self._chains[1:]):
            delta = pose.fingers[row] - self._rest_angles[row]
            local[chain[0]] = _axis_rotation(self._side_axes[row], delta[3]) @ _axis_rotation(self._axes[row], delta[0])
            local[chain[1]] = _axis_rotation(self._axes[row], delta[1])
            local[chain[2]] = _axis_rotation(self._axes[row], delta[2])
        for row, most in ((2, 8.0), (3, 16.0)):
            local[self._roots[row]] = _axis_rotation(np.array([1.0, 0.25, 0.0]), most * pose.cup)
        radial, palmar, roll, mcp, ip = np.deg2rad(pose.thumb)
        towards = np.array([np.sin(radial) * np.cos(palmar), np.cos(radial) * np.cos(palmar), np.sin(palmar)])
        first, second, third = self._chains[0]
        local[first] = _axis_rotation(towards, -float(np.rad2deg(roll))) @ _shortest_rotation(
            self._thumb_direction, towards
        )
        local[second] = _axis_rotation(self._thumb_axis, float(np.rad2deg(mcp)) - self._thumb_rest_mcp)
        local[third] = _axis_rotation(self._thumb_axis, float(np.rad2deg(ip)) - self._thumb_rest_ip)

        joints = shape.joints.astype(np.float64)
        rotations = np.empty((count, 3, 3))
        origins = np.empty((count, 3))
        for bone, parent in enumerate(self._parents):
            if parent < 0:
                rotations[bone], origins[bone] = local[bone], joints[bone]
            else:
                rotations[bone] = rotations[parent] @ local[bone]
                origins[bone] = origins[parent] + rotations[parent] @ (joints[bone] - joints[parent])
        # The upper arm's head is the shoulder; it turns about the elbow, the forearm's head.
        rotations[self._upper] = local[self._upper]
        origins[self._upper] = joints[0] + local[self._upper] @ (joints[self._upper] - joints[0])
        keypoints = np.empty((21, 3))
        keypoints[0] = origins[self._hand]
        for finger, chain in enumerate(self._chains):
            keypoints[1 + 4 * finger : 4 + 4 * finger] = origins[chain]
            end = chain[2]
            keypoints[4 + 4 * finger] = origins[end] + rotations[end] @ (shape.tips[finger] - joints[end])
        return PosedRig(rotations.astype(np.float32), origins.astype(np.float32), keypoints.astype(np.float32))

    def penetration(self, keypoints: Floats) -> float:
        """How deep fingers lie inside each other or the palm, metres summed over the bad pairs (0 is none)."""
        scale = float(np.linalg.norm(keypoints[9] - keypoints[0])) / self._palm_length
        balls = self._balls(keypoints.astype(np.float64))
        difference = balls[:, None] - balls[None]
        distance = np.sqrt((difference**2).sum(axis=2))
        depth = (self._radii[:, None] + self._radii[None]) * scale * 0.78 - distance
        depth = np.where(self._apart, depth, 0.0)
        return float(np.maximum(depth, 0.0).sum())

    def draw(self, rng: np.random.Generator, shape: HandShape, *, holding: bool = False) -> tuple[HandPose, str]:
        """A random pose and what it was made from; the best of a few tries where fingers would collide."""
        best: tuple[float, HandPose, str] | None = None
        for _ in range(10):
            pose, name = self._propose(rng, shape, holding=holding)
            depth = self.penetration(self.solve(pose, shape).keypoints)
            if best is None or depth < best[0]:
                best = (depth, pose, name)
            if depth < 0.004:
                break
        assert best is not None
        return best[1], best[2]

    def gesture(self, name: str, shape: HandShape) -> HandPose:
        """A named gesture for a hand of this shape, tips meeting where they should.

        Raises ValueError for an unknown name.
        """
        if name not in _GESTURES:
            raise ValueError(f"unknown gesture {name!r}; known: {', '.join(_GESTURES)}")
        curls, spread, thumb = _GESTURES[name]
        curled = float(np.mean([pip for _, pip in curls])) / 100.0
        pose = HandPose(
            fingers=_fingers(*curls, spread=spread),
            thumb=np.array(_THUMB[thumb]),
            wrist=np.zeros(3),
            cup=0.6 * curled if thumb in ("opposed", "across") else 0.1,
        )
        pose = clamp(pose)
        if name in _PINCHES:
            if name not in self._met:
                self._met[name] = self._meet(pose, self._rest, _PINCHES[name], rounds=6)
            pose = self._meet(self._met[name], shape, _PINCHES[name], rounds=2)
        return pose

    def _propose(self, rng: np.random.Generator, shape: HandShape, *, holding: bool) -> tuple[HandPose, str]:
        kind = rng.random()
        names = gesture_names()
        if holding:
            name = str(rng.choice(_HOLDING))
            pose = self.gesture(name, shape)
            pose = self._jitter(pose, rng, 4.0)
        elif kind < 0.22:
            pose, name = self._random(rng), "random"
        else:
            common = rng.random() < 0.55
            name = str(rng.choice(_COMMON if common else names))
            pose = self.gesture(name, shape)
            if kind > 0.72:
                other = str(rng.choice(names))
                pose = blend(pose, self.gesture(other, shape), float(rng.uniform(0.15, 0.85)))
                name = f"{name}+{other}"
            elif kind > 0.6:
                pose = blend(pose, self._random(rng), float(rng.uniform(0.1, 0.45)))
            pose = self._jitter(pose, rng, float(rng.choice([2.5, 5.0, 8.0])))
        wrist = rng.normal(0.0, [16.0, 8.0, 8.0])
        return clamp(replace(pose, wrist=wrist, elbow=float(rng.uniform(-30.0, 60.0)))), name

    def _jitter(self, pose: HandPose, rng: np.random.Generator, amount: float) -> HandPose:
        noise = rng.normal(0.0, amount, (4, 4)) * np.array([1.0, 1.2, 0.7, 0.4])
        common = rng.normal(0.0, amount, 2)
        noise[:, :2] += common
        return clamp(
            replace(
                pose,
                fingers=pose.fingers + noise,
                thumb=pose.thumb + rng.normal(0.0, amount, 5) * np.array([0.8, 0.8, 0.5, 1.0, 1.2]),
                cup=pose.cup + float(rng.normal(0.0, 0.08)),
            )
        )

    def _random(self, rng: np.random.Generator) -> HandPose:
        curl = np.clip(rng.beta(0.8, 1.0) + rng.normal(0.0, 0.28, 4), 0.0, 1.0)
        curl[3] = 0.6 * curl[3] + 0.4 * curl[2]
        mcp = np.clip(curl + rng.normal(0.0, 0.25, 4), -0.15, 1.05) * 85.0
        pip = np.clip(curl + rng.normal(0.0, 0.2, 4), 0.0, 1.05) * 98.0
        dip = pip * np.clip(rng.normal(_DIP_PER_PIP, 0.12, 4), 0.35, 0.85)
        spread = float(rng.uniform(0.0, 1.0))
        side = _SIDE_CLOSED + spread * (_SIDE_SPREAD - _SIDE_CLOSED) + rng.normal(0.0, 2.5, 4)
        opposition = float(rng.uniform(0.0, 1.0))
        thumb = np.array(
            [
                (1.0 - opposition) * rng.uniform(15.0, 55.0) + opposition * rng.uniform(5.0, 28.0),
                (1.0 - opposition) * rng.uniform(4.0, 30.0) + opposition * rng.uniform(36.0, 58.0),
                40.0 * opposition * rng.uniform(0.6, 1.0) + rng.normal(0.0, 4.0),
                rng.uniform(-4.0, 45.0),
                rng.uniform(-8.0, 60.0),
            ]
        )
        fingers = np.stack([mcp, pip, dip, side], axis=1)
        return clamp(HandPose(fingers, thumb, np.zeros(3), cup=float(rng.uniform(0.0, 0.7))))

    def _meet(self, pose: HandPose, shape: HandShape, fingers: tuple[int, ...], *, rounds: int) -> HandPose:
        """Damped least squares over thumb and the touching fingers until the tips meet, pad to pad."""
        rows = list(fingers)
        start = np.concatenate([pose.thumb, pose.fingers[rows, 0], pose.fingers[rows, 1]])
        stiffness = np.concatenate([[1.0, 1.0, 1.5, 1.0, 1.0], np.full(len(rows), 1.0), np.full(len(rows), 1.0)])

        def posed(values: Doubles) -> HandPose:
            angles = pose.fingers.copy()
            angles[rows, 0] = values[5 : 5 + len(rows)]
            angles[rows, 1] = values[5 + len(rows) :]
            angles[rows, 2] = _DIP_PER_PIP * angles[rows, 1]
            return clamp(replace(pose, fingers=angles, thumb=values[:5]))

        thumb_gap = 0.0135 * float(np.linalg.norm(shape.joints[self._chains[2][0]])) / self._palm_length

        def error(values: Doubles) -> Doubles:
            points = self.solve(posed(values), shape).keypoints.astype(np.float64)
            thumb = points[4]
            gaps = []
            for row in rows:
                tip = points[8 + 4 * row]
                offset = tip - thumb
                length = float(np.linalg.norm(offset)) + 1e-9
                gaps.append(offset * (1.0 - thumb_gap / length))
            return np.concatenate([np.concatenate(gaps) * 1000.0, (values - start) * 0.02 * stiffness])

        values = start
        for _ in range(rounds):
            here = error(values)
            jacobian = np.stack([(error(values + 0.5 * unit) - here) / 0.5 for unit in np.eye(len(values))], axis=1)
            step = np.linalg.solve(jacobian.T @ jacobian + 0.05 * np.eye(len(values)), -jacobian.T @ here)
            values = values + np.clip(step, -15.0, 15.0)
        return posed(values)

    # Balls along the bones stand in for flesh: four a segment, for thumb (3 segments) and fingers (3), then the palm.
    def _balls(self, points: Doubles) -> Doubles:
        starts, ends = [], []
        for finger in range(5):
            base = 1 + 4 * finger
            for step in range(3):
                starts.append(points[base + step])
                ends.append(points[base + step + 1])
        for finger in range(1, 5):
            starts.append(points[0] * 0.75 + points[1 + 4 * finger] * 0.25)
            ends.append(points[1 + 4 * finger])
        start, end = np.array(starts), np.array(ends)
        shares = np.array([0.1, 0.37, 0.63, 0.9])
        balls: Doubles = (start[:, None] + shares[None, :, None] * (end - start)[:, None]).reshape(-1, 3)
        return balls

    def _flesh_radii(self, rest: HandShape) -> Doubles:
        keypoints = self.solve(self._rest_pose(), rest).keypoints
        self._palm_length = float(np.linalg.norm(keypoints[9] - keypoints[0]))
        balls = self._balls(keypoints.astype(np.float64))
        vertices = rest.vertices.astype(np.float64)
        radii = np.empty(len(balls))
        for i, ball in enumerate(balls):
            nearest = np.sort(np.linalg.norm(vertices - ball, axis=1))[:40]
            radii[i] = float(nearest.mean())
        return radii

    def _rest_pose(self) -> HandPose:
        direction = self._thumb_direction
        return HandPose(
            fingers=self._rest_angles.copy(),
            thumb=np.array(
                [
                    np.rad2deg(np.arctan2(direction[0], direction[1])),
                    np.rad2deg(np.arcsin(direction[2])),
                    0.0,
                    self._thumb_rest_mcp,
                    self._thumb_rest_ip,
                ]
            ),
            wrist=np.zeros(3),
        )

    @staticmethod
    def _pairs_kept_apart() -> npt.NDArray[np.bool_]:
        segments = [(finger, step) for finger in range(5) for step in range(3)] + [(f, -1) for f in range(1, 5)]
        count = len(segments)
        apart = np.zeros((count, count), dtype=bool)
        for i, (finger, step) in enumerate(segments):
            for j, (other, far) in enumerate(segments[:i]):
                if finger == other and not (step == -1 and far == 2):
                    continue
                if step == -1 and far == -1:
                    continue
                if -1 in (step, far):
                    # Flesh of the palm against middle and end segments; the thumb's ball grows out of the palm.
                    apart[i, j] = max(step, far) >= (2 if 0 in (finger, other) else 1)
                elif 0 in (finger, other):
                    apart[i, j] = (step if finger == 0 else far) >= 1
                else:
                    apart[i, j] = abs(finger - other) > 1 or min(step, far) >= 1
        return np.repeat(np.repeat(apart, 4, axis=0), 4, axis=1)
