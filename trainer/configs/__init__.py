"""Recipes, one file each: what is trained and how.

A configuration file is Python with a `CONFIG` of type `TrainConfig`, and where the standard network is trained in
another way, a `STANDARD` beside it, which `--variant standard` takes. It names no folder of data: those are given on
the command line.
"""

import importlib
import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from service.pose.heatmaps import STRIDE
from service.pose.keypoints import KEYPOINT_COUNT
from trainer.data.augment import AugmentConfig
from trainer.data.label_trust import FULL_TRUST, LabelTrust
from trainer.detection.compose import Shares
from trainer.errors import RefusedError
from trainer.models.layers import FEATURE_BLOCKS, Variant
from trainer.weights import DETECTOR, input_step

Precision = Literal["float32", "mixed_bfloat16"]
"""Keras's dtype policies that a training may have."""


class ConfigError(RefusedError):
    """A configuration is missing or contradicts itself."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One recipe.

    Attributes:
        variant: which network; "hand_detector" has no use for `distil_weight`, `part`, `frozen_blocks`, `augment`,
            `trust`, `fewest_keypoints` and `split`.
        steps: updates in all; or None to go by the clock.
        minutes: where `steps` is None, how long to train. The schedule then follows the clock and fits a machine of any
            speed, but no two runs are the same.
        batch_size: samples an update.
        input_sizes: (share of the training after which it begins, input side in pixels), ascending from 0. Small
            inputs first make the early, cheap lessons cheap.
        learning_rate: highest rate of AdamW.
        schedule: "cosine" decays to `final_rate_share`; "steps" divides by 10 every `rate_step` updates.
        warm_up: share of the training over which the rate rises to its highest value.
        final_rate_share: last rate over the highest one, of the cosine.
        rate_step: updates between divisions by ten, of the steps schedule.
        weight_decay: AdamW's; 0 makes it Adam.
        clip_norm: largest norm of an update's whole gradient, which is scaled down to it; None leaves it as it is.
        distil_weight: share of a teacher's belief maps in the targets, from 0 to 1; above 0 a teacher has to be given.
        ema_momentum: of the running average of the weights, which is what is evaluated and exported.
        part: "all", or "stages" to train a standard network's stages 2 and 3 alone on the frozen features of a trained
            lightweight one (which a standard network can hold exactly).
        frozen_blocks: how many of the feature extractor's five blocks, from the image on, stay as they are, batch
            normalisation's averages included. These see the most pixels and learn the least late in a training, so an
            update without their gradients costs much less (FreezeOut, arXiv:1706.04983).
        precision: Keras's dtype policy. Numbers of 16 bits are quicker on GPUs and on processors with AMX, and much
            slower on some others (`python -m benchmarks.training_speed --precision`).
        augment: how samples vary.
        shares: what the detector's training pictures are made of; None is the default.
        trust: how much hidden keypoints and scattering labels count in the loss.
        fewest_keypoints: hands of which fewer keypoints are visible are not trained on.
        split: "names" keeps the pictures of `holdout` for validation; "8:1:1" splits at random as the paper does
            (`trainer.data.rhd.paper_split`), a tenth for validation and a tenth for tests.
        holdout: regular expressions of picture names that are kept for validation.
        seed: of the weights and of the batches.
        width_multiplier: below 1 makes narrow networks for tests.
        validation_samples: how many held-out hands are looked at during training, evenly spread; all at the end.
        validate_minutes, checkpoint_minutes, log_seconds: how often each is done.
        for_gpu: whether training without an accelerator is worth a warning.
    """

    variant: Variant | Literal["hand_detector"]
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    input_sizes: tuple[tuple[float, int], ...] = ((0.0, 128),)
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "steps"] = "cosine"
    warm_up: float = 0.03
    final_rate_share: float = 0.01
    rate_step: int = 10_000
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    distil_weight: float = 0.0
    ema_momentum: float = 0.99
    part: Literal["all", "stages"] = "all"
    frozen_blocks: int = 0
    precision: Precision = "float32"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    shares: Shares | None = None
    trust: LabelTrust = FULL_TRUST
    fewest_keypoints: int = 0
    split: Literal["names", "8:1:1"] = "names"
    holdout: tuple[str, ...] = ()
    seed: int = 0
    width_multiplier: float = 1.0
    validation_samples: int = 192
    validate_minutes: float = 5.0
    checkpoint_minutes: float = 3.0
    log_seconds: float = 20.0
    for_gpu: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("a configuration gives either steps or minutes")
        if (self.steps or self.minutes or 0) <= 0 or self.batch_size < 1:
            raise ConfigError("steps, minutes and batch_size must be positive")
        shares, sizes = [share for share, _ in self.input_sizes], [size for _, size in self.input_sizes]
        if not shares or shares[0] != 0.0 or sorted(shares) != shares:
            raise ConfigError(f"input_sizes must begin at share 0 and ascend, got {self.input_sizes}")
        step = input_step(self.variant)
        if any(size < 3 * STRIDE or size % step for size in sizes):
            raise ConfigError(f"input sizes must be multiples of {step} from {3 * STRIDE} on, got {sizes}")
        if self.variant == DETECTOR and (self.distil_weight, self.part, self.frozen_blocks) != (0.0, "all", 0):
            raise ConfigError("distil_weight, part and frozen_blocks are not for the hand detector")
        if not 0 <= self.fewest_keypoints <= KEYPOINT_COUNT:
            raise ConfigError(f"fewest_keypoints must be in 0..{KEYPOINT_COUNT}, got {self.fewest_keypoints}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be above 0, or None, got {self.clip_norm}")
        if not 0.0 <= self.distil_weight <= 1.0:
            raise ConfigError(f"distil_weight must be in 0..1, got {self.distil_weight}")
        if self.part == "stages" and self.variant != "standard":
            raise ConfigError("part 'stages' trains the standard network on a lightweight one's features")
        if not 0 <= self.frozen_blocks <= FEATURE_BLOCKS:
            raise ConfigError(f"frozen_blocks must be in 0..{FEATURE_BLOCKS}, got {self.frozen_blocks}")

    @property
    def final_input_size(self) -> int:
        """The input side in pixels at which the training ends and the weights are to be served."""
        return self.input_sizes[-1][1]

    def share_done(self, step: int, seconds: float) -> float:
        """How much of the training is done after so many updates and so long; 1 at its end, which it may be beyond."""
        return step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1.0))


def load_config(name: str, variant: Variant | None = None) -> TrainConfig:
    """The recipe of a name in this folder (`photos`) or of a Python file, for a variant where one is given.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: no such file")
        content = runpy.run_path(name)
    else:
        known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
        if name not in known:
            raise ConfigError(f"unknown configuration {name!r}; known: {', '.join(known)}, or a .py file")
        content = vars(importlib.import_module(f"{__name__}.{name}"))
    config = content.get("CONFIG")
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{name}: a configuration file must define CONFIG, a TrainConfig")
    if variant is None or variant == config.variant:
        return config
    if config.variant == DETECTOR:
        raise ConfigError(f"{name} trains the hand detector and no {variant} network")
    of_standard = content.get("STANDARD")
    if variant == "standard" and isinstance(of_standard, TrainConfig):
        return of_standard
    return replace(config, variant=variant)
