"""One finished picture with its labels: composes, draws, spoils it like a camera, and labels it."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from trainer.data.synthetic.annotate import VISIBLE, HandLabel, label_hand
from trainer.data.synthetic.camera import Camera
from trainer.data.synthetic.photometric import apply_flaws, draw_flaws
from trainer.data.synthetic.renderer import Renderer
from trainer.data.synthetic.scene import Kind, Scene, Stock, compose

Bytes = npt.NDArray[np.uint8]
SetKind = Literal["crop", "scene", "mixed"]

_CROPS_IN_A_MIXED_SET: Final = 0.7
_FEWEST_SEEN: Final = 6
_TRIES: Final = 4


@dataclass(frozen=True)
class Sample:
    """A picture ready to be written."""

    image: Bytes  # [H, W, 3] sRGB
    labels: list[HandLabel]
    camera: Camera
    mask: Bytes  # [H, W] instances: 0 background, 1 arm or body, 255 thing, else a hand
    jpeg_quality: int
    kind: Kind


def sample_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample: they depend on nothing but the set's seed and the sample's index."""
    return np.random.default_rng([seed, index])


def make_sample(stock: Stock, renderer: Renderer, kind: SetKind, size: int, seed: int, index: int) -> Sample:
    """Sample `index` of the set with this seed. The renderer must be of the same size."""
    rng = sample_generator(seed, index)
    chosen: Kind = kind if kind != "mixed" else ("crop" if rng.random() < _CROPS_IN_A_MIXED_SET else "scene")
    sample = finish(compose(stock, chosen, size, rng), renderer, chosen, rng)
    for _ in range(_TRIES - 1):
        if chosen == "scene" or _worth_a_crop(sample):
            break
        sample = finish(compose(stock, chosen, size, rng), renderer, chosen, rng)
    return sample


def _worth_a_crop(sample: Sample) -> bool:
    """Whether enough of a hand is seen: now and then an arm or a thing covers it all."""
    return any(int((label.visibility == VISIBLE).sum()) >= _FEWEST_SEEN for label in sample.labels)


def finish(scene: Scene, renderer: Renderer, kind: Kind, rng: np.random.Generator) -> Sample:
    """Draw a composed scene and label it."""
    rendered = renderer.render(scene.meshes, scene.camera, scene.lighting, scene.shadow_about)
    alpha = rendered.colour[..., 3:].astype(np.float32) / 255.0
    image = rendered.colour[..., :3] + scene.background * (1.0 - alpha)
    flaws = draw_flaws(rng, scene.camera.width, low_light=scene.low_light)
    flawed = apply_flaws(np.clip(image + 0.5, 0, 255).astype(np.uint8), flaws, rng)
    labels = [label_hand(hand, scene.camera, rendered) for hand in scene.hands]
    return Sample(
        image=flawed,
        labels=[label for label in labels if label is not None],
        camera=scene.camera,
        mask=rendered.instance.astype(np.uint8),
        jpeg_quality=flaws.jpeg_quality,
        kind=kind,
    )
