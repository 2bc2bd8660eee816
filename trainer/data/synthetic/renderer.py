"""Drawing with OpenGL, off screen: a list of meshes, a camera and light in; picture, depth and instances out.

Runs without a display or a graphics card (EGL with Mesa's llvmpipe). It knows nothing of hands or data sets.
"""

import os
from dataclasses import dataclass
from typing import Final

import moderngl
import numpy as np
import numpy.typing as npt

from trainer.data.synthetic import shaders
from trainer.data.synthetic.appearance import Material
from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.lights import Lighting
from trainer.errors import RefusedError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_NEAR: Final = 0.04
_FAR: Final = 30.0
_SHADOW_SIZE: Final = 320
_SHADOW_BIAS: Final = 0.0035  # metres
_FLOATS_A_VERTEX: Final = 16


class NoGraphicsError(RefusedError):
    """No OpenGL context could be made; the message says what to install."""


@dataclass(frozen=True)
class Mesh:
    """One thing to draw. Arrays have one row a vertex; positions are metres in the camera frame."""

    vertices: Floats  # [V, 3]
    normals: Floats  # [V, 3]
    rest: Floats  # [V, 3] where on the surface, for its patterns
    triangles: npt.NDArray[np.int32]  # [F, 3]
    material: Material
    instance: int  # what the instance picture holds here
    region: Floats | None = None  # [V, 4]
    nail: Floats | None = None  # [V, 3]
    texture: Bytes | None = None  # [H, W, 3] for textured skin
    casts_shadow: bool = True
    shadow_triangles: npt.NDArray[np.int32] | None = None  # what casts the shadow, if not `triangles`
    closed: bool = False  # its inside is never seen


@dataclass(frozen=True)
class Rendered:
    """A picture before any camera effects."""

    colour: Bytes  # [H, W, 4] sRGB, premultiplied by the alpha in the last channel
    depth: Floats  # [H, W] metres along z of the surface at each pixel's centre, inf where there is none
    instance: npt.NDArray[np.int32]  # [H, W] instance at each pixel's centre, 0 where there is none


def make_context() -> moderngl.Context:
    """A stand-alone EGL context. Raises NoGraphicsError."""
    # One rendering thread a worker: the workers share out the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        return moderngl.create_context(require=330, standalone=True, backend="egl")  # type: ignore[arg-type]
    except Exception as error:  # moderngl raises plain Exception
        raise NoGraphicsError(
            "no off-screen OpenGL 3.3 through EGL here; on Debian or Ubuntu install libegl1, libgl1 and "
            f"libgl1-mesa-dri (software rendering, no graphics card needed). The driver said: {error}"
        ) from error


class Renderer:
    """Draws scenes of one size; make one a process and keep it."""

    def __init__(self, width: int, height: int) -> None:
        """Compiles the programs and allocates the buffers. Raises NoGraphicsError."""
        ctx = make_context()
        self._ctx = ctx
        self._size = (width, height)
        samples = 4 if ctx.max_samples >= 4 else 0
        self._depth_program = ctx.program(shaders.DEPTH_VERTEX, shaders.DEPTH_FRAGMENT)
        self._shadow_program = ctx.program(
            shaders.DEPTH_VERTEX.replace("out float z;", "float z;"), shaders.SHADOW_FRAGMENT
        )
        self._shade = ctx.program(shaders.SHADE_VERTEX, shaders.SHADE_FRAGMENT)
        self._z = ctx.texture(self._size, 2, dtype="f4")
        self._z.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self._z.repeat_x = self._z.repeat_y = False
        self._z_frame = ctx.framebuffer([self._z], ctx.depth_renderbuffer(self._size))
        self._many = ctx.framebuffer(
            [ctx.renderbuffer(self._size, 4, samples=samples)], ctx.depth_renderbuffer(self._size, samples=samples)
        )
        self._plain = ctx.framebuffer([ctx.renderbuffer(self._size, 4)])
        self._shadow = ctx.depth_texture((_SHADOW_SIZE, _SHADOW_SIZE))
        self._shadow.compare_func = "<="
        self._shadow.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow_frame = ctx.framebuffer(depth_attachment=self._shadow)
        self._white = ctx.texture((1, 1), 3, b"\xff\xff\xff")
        ctx.enable(moderngl.DEPTH_TEST)
        # The picture's rows run downwards, which turns every triangle's winding round.
        ctx.front_face = "cw"

    def render(self, meshes: list[Mesh], camera: Camera, lighting: Lighting, shadow_about: Floats) -> Rendered:
        """Draw the meshes. `shadow_about` [N, 3] are the points that the shadow map must cover."""
        if (camera.width, camera.height) != self._size:
            raise ValueError(f"camera is {camera.width}x{camera.height}, renderer is {self._size[0]}x{self._size[1]}")
        ctx = self._ctx
        clip = camera.clip_matrix(_NEAR, _FAR)
        shadow_clip, shadow_depth = _shadow_matrix(lighting.directions[0], shadow_about)
        drawn: list[tuple[Mesh, list[moderngl.VertexArray], list[moderngl.Buffer | moderngl.Texture]]] = []
        width, height = self._size
        try:
            drawn.extend(self._upload(mesh) for mesh in meshes)
            self._shadow_frame.use()
            self._shadow_frame.clear(depth=1.0)
            _write(self._shadow_program, "clip", shadow_clip.T)
            for mesh, arrays, _ in drawn:
                if mesh.casts_shadow:
                    arrays[1].render()
            self._z_frame.use()
            self._z_frame.clear(1e9, 0.0, 0.0, 0.0, depth=1.0)
            _write(self._depth_program, "clip", clip.T)
            for mesh, arrays, _ in drawn:
                _write(self._depth_program, "instance", np.float32(mesh.instance))
                self._draw(arrays[0], mesh)
            raw = np.frombuffer(self._z.read(), np.float32).reshape(height, width, 2)
            self._many.use()
            self._many.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
            self._frame_uniforms(camera, clip, lighting, shadow_clip, _SHADOW_BIAS / shadow_depth)
            for mesh, arrays, kept in drawn:
                self._material_uniforms(mesh.material)
                texture = next((k for k in kept if isinstance(k, moderngl.Texture)), self._white)
                texture.use(2)
                self._draw(arrays[2], mesh)
            ctx.copy_framebuffer(self._plain, self._many)
            colour = np.frombuffer(self._plain.read(components=4), np.uint8).reshape(height, width, 4)
        finally:
            for _, arrays, kept in drawn:
                for array in arrays:
                    array.release()
                for resource in kept:
                    resource.release()
        depth = np.where(raw[..., 0] > 1e8, np.float32(np.inf), raw[..., 0])
        return Rendered(colour=colour, depth=depth, instance=np.round(raw[..., 1]).astype(np.int32))

    def close(self) -> None:
        """Give the context back."""
        self._ctx.release()

    def _draw(self, array: moderngl.VertexArray, mesh: Mesh) -> None:
        # Back faces of a closed skin would be drawn only to be covered.
        if mesh.closed:
            self._ctx.enable(moderngl.CULL_FACE)
        array.render()
        self._ctx.disable(moderngl.CULL_FACE)

    def _upload(self, mesh: Mesh) -> tuple[Mesh, list[moderngl.VertexArray], list[moderngl.Buffer | moderngl.Texture]]:
        count = len(mesh.vertices)
        data = np.zeros((count, _FLOATS_A_VERTEX), np.float32)
        data[:, 0:3], data[:, 3:6], data[:, 6:9] = mesh.vertices, mesh.normals, mesh.rest
        if mesh.region is not None:
            data[:, 9:13] = mesh.region
        if mesh.nail is not None:
            data[:, 13:16] = mesh.nail
        vertices = self._ctx.buffer(data.tobytes())
        indices = self._ctx.buffer(np.ascontiguousarray(mesh.triangles, np.int32).tobytes())
        shadow = indices
        if mesh.shadow_triangles is not None:
            shadow = self._ctx.buffer(np.ascontiguousarray(mesh.shadow_triangles, np.int32).tobytes())
        position = [(vertices, "3f 52x", "in_position")]
        arrays = [
            self._ctx.vertex_array(self._depth_program, position, indices),
            self._ctx.vertex_array(self._shadow_program, position, shadow),
            self._ctx.vertex_array(
                self._shade,
                [(vertices, "3f 3f 3f 4f 3f", "in_position", "in_normal", "in_rest", "in_region", "in_nail")],
                indices,
            ),
        ]
        kept: list[moderngl.Buffer | moderngl.Texture] = [vertices, indices]
        if shadow is not indices:
            kept.append(shadow)
        if mesh.texture is not None:
            h, w = mesh.texture.shape[:2]
            texture = self._ctx.texture((w, h), 3, np.ascontiguousarray(mesh.texture).tobytes(), alignment=1)
            texture.build_mipmaps()
            kept.append(texture)
        return mesh, arrays, kept

    def _frame_uniforms(
        self, camera: Camera, clip: Floats, lighting: Lighting, shadow_clip: Floats, shadow_bias: float
    ) -> None:
        program = self._shade
        self._shadow.use(0)
        self._z.use(1)
        for name, unit in (("shadow_map", 0), ("depth_map", 1), ("skin_texture", 2)):
            _write(program, name, np.int32(unit))
        _write(program, "clip", clip.T)
        _write(program, "shadow_clip", shadow_clip.T)
        _write(program, "shadow_bias", np.float32(shadow_bias))
        _write(program, "ambient", lighting.ambient)
        _write(program, "light_direction", lighting.directions)
        _write(program, "light_colour", lighting.colours)
        _write(program, "exposure", np.float32(lighting.exposure))
        _write(program, "size", np.array(self._size, np.float32))
        _write(program, "focal", np.float32(camera.focal))

    def _material_uniforms(self, material: Material) -> None:
        program = self._shade
        _write(program, "material", np.int32(material.kind))
        for name, value in (
            ("base", material.base),
            ("second", material.second),
            ("palm_colour", material.palm),
            ("nail_colour", material.nail),
            ("surface", material.surface),
            ("detail", material.detail),
            ("seed", material.seed),
        ):
            _write(program, name, np.array(value, np.float32))


def _write(program: moderngl.Program, name: str, value: npt.NDArray[np.generic] | np.generic) -> None:
    uniform = program.get(name, None)
    if isinstance(uniform, moderngl.Uniform):
        uniform.write(np.ascontiguousarray(value).tobytes())


def _shadow_matrix(towards: Floats, points: Floats) -> tuple[Floats, float]:
    """Orthographic view from a lamp that covers the points [N, 3], and its depth in metres."""
    forward = -towards.astype(np.float64)
    side = np.cross(forward, [0.0, 1.0, 0.0] if abs(forward[1]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(side, forward)
    axes = np.stack([side, up, forward])
    placed = points @ axes.T
    low, high = placed.min(axis=0), placed.max(axis=0)
    middle, half = (low + high) / 2.0, (high - low) / 2.0 * 1.06 + 1e-4
    matrix = np.eye(4)
    matrix[:3, :3] = axes / half[:, None]
    matrix[:3, 3] = -middle / half
    return matrix.astype(np.float32), float(2.0 * half[2])
