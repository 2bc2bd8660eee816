"""The pinhole camera: projection in the project's pixel convention, and choosing one that frames a hand.

Camera frame: x right, y down, z forward, metres. Image frame: continuous pixels, pixel i covers [i, i + 1), so a point
at (0, 0) is the top left corner of the image and W, H its right and lower edge. No lens distortion.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """Intrinsics in pixels of an image of `width` x `height`."""

    focal: float
    centre_x: float
    centre_y: float
    width: int
    height: int

    def project(self, points: npt.NDArray[np.floating]) -> Doubles:
        """Points [N, 3] in the camera frame (metres, z > 0) -> [N, 2] in the image frame (pixels)."""
        z = points[:, 2].astype(np.float64)
        x = self.focal * points[:, 0] / z + self.centre_x
        y = self.focal * points[:, 1] / z + self.centre_y
        return np.stack([x, y], axis=1)

    def clip_matrix(self, near: float, far: float) -> Floats:
        """Camera frame -> OpenGL clip space [4, 4]; row 0 of the picture is the frame buffer's lowest, read first."""
        w, h = self.width, self.height
        return np.array(
            [
                [2.0 * self.focal / w, 0.0, 2.0 * self.centre_x / w - 1.0, 0.0],
                [0.0, 2.0 * self.focal / h, 2.0 * self.centre_y / h - 1.0, 0.0],
                [0.0, 0.0, (far + near) / (far - near), -2.0 * far * near / (far - near)],
                [0.0, 0.0, 1.0, 0.0],
            ],
            dtype=np.float32,
        )

    def ray(self, x: Doubles, y: Doubles) -> Doubles:
        """Unit directions [..., 3] in the camera frame of image points."""
        rays = np.stack([(x - self.centre_x) / self.focal, (y - self.centre_y) / self.focal, np.ones_like(x)], axis=-1)
        unit: Doubles = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
        return unit


def framing_camera(points: npt.NDArray[np.floating], size: int, share: float, shift: tuple[float, float]) -> Camera:
    """A square camera in which the points' box has side `share * size`, its centre `shift * size` off the middle.

    The optical axis need not meet the image's middle: this is a square cut from a larger photograph.
    """
    plane = points[:, :2].astype(np.float64) / points[:, 2:].astype(np.float64)
    low, high = plane.min(axis=0), plane.max(axis=0)
    focal = share * size / float((high - low).max())
    middle = (low + high) / 2.0
    return Camera(
        focal=focal,
        centre_x=size * (0.5 + shift[0]) - focal * float(middle[0]),
        centre_y=size * (0.5 + shift[1]) - focal * float(middle[1]),
        width=size,
        height=size,
    )


def random_rotation(rng: np.random.Generator) -> Doubles:
    """A rotation drawn uniformly."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def euler(x: float, y: float, z: float) -> Doubles:
    """Rotation by degrees about x, then y, then z (fixed axes)."""
    a, b, c = np.deg2rad([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    rotation: Doubles = rz @ ry @ rx
    return rotation


def draw_view(rng: np.random.Generator) -> Doubles:
    """Rotation from the hand frame to the camera frame: mostly onto palm or back with the fingers up, as on photos.

    Some hands are seen from all round: photos show the side of a hand too rarely to teach it.
    """
    if rng.random() < 0.12:
        return random_rotation(rng)
    # Hand frame has y to the fingers and z out of the palm; the camera looks along +z with y down.
    facing = np.diag([1.0, -1.0, -1.0])
    turn = (
        float(rng.uniform(-180.0, 180.0)) if rng.random() < 0.3 else float(rng.choice([0.0, 180.0]) + rng.normal(0, 30))
    )
    tilt = float(np.clip(rng.normal(0.0, 25.0), -80.0, 80.0))
    roll = float(rng.normal(0.0, 35.0)) if rng.random() < 0.7 else float(rng.uniform(-180.0, 180.0))
    rotation: Doubles = euler(0, 0, roll) @ euler(tilt, 0, 0) @ facing @ euler(0, turn, 0)
    return rotation
