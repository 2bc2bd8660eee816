"""Reads and writes one network's trained weights: `<variant>.npz` and, beside it, `<variant>.json`.

The .npz holds the served network (batch normalisation folded) as float16, one array per variable, named
`<layer>/<variable>`, for example `conv1_2/pointwise_kernel`; half precision halves what the repository
carries and costs less than rounding in any layer. The .json says where the weights come from and what was
measured. No pickle on either side: arrays of any other kind are refused. Checkpoints of a training in
progress are not kept here.

A standard network that shares the features of a lightweight one (trained with part "stages") can be stored as its
stages 2 and 3 alone, a third of the size: the .npz then holds these and, as `features_sha256`, the digest of the
lightweight weights, which lie beside it as `lightweight.npz`. Reading puts both together.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.atomic_files import replaced_atomically
from trainer.errors import RefusedError

if TYPE_CHECKING:
    import keras

FORMAT = 1
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DETECTOR = "hand_detector"
"""What the weights of the hand detector have in place of a variant of the keypoints' network."""
VARIANTS = ("standard", "lightweight", DETECTOR)
_DETECTOR_MARK = "grid/kernel"
_SEPARABLE_MARK = "conv1_2/depthwise_kernel"
_STANDARD_MARK = "conv1_2/kernel"
_FEATURES_SHA256 = "features_sha256"
_OWN_STAGES = ("stage2_", "stage3_")
_SAME_FEATURES = 4e-3  # relative distance that rounding to half precision can make


class WeightsError(RefusedError):
    """A weights file that is missing, damaged, or meant for something else."""


@dataclass(frozen=True)
class WeightsInfo:
    """What is known about a set of weights; the content of the .json file.

    `created` is the date of training (ISO 8601). `input_size` is the input's side in pixels the network was
    trained at and is to be served at. `target_sigma_in_cells` is the standard deviation of the target
    Gaussians in belief-map cells, `crop_padding` the factor between a hand's box and its crop. The detector has
    no belief maps and so no such deviation. `provenance`
    is free JSON: the data, the recipe, samples seen, what the weights are good for. `metrics` is free JSON:
    only what was measured, keyed by the data it was measured on.
    """

    variant: str
    created: str
    input_size: int
    target_sigma_in_cells: float | None = None
    crop_padding: float = 1.25
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; allowed: {', '.join(VARIANTS)}")
        step = input_step(self.variant)
        if self.input_size < step or self.input_size % step:
            raise ValueError(f"input size {self.input_size} is not a positive multiple of {step}")
        numbers = {"target_sigma_in_cells": self.target_sigma_in_cells, "crop_padding": self.crop_padding}
        if self.variant == DETECTOR and numbers.pop("target_sigma_in_cells") is not None:
            raise ValueError("the detector has no target_sigma_in_cells")
        for name, value in numbers.items():
            if value is None or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} {value} is not a positive number")


@dataclass(frozen=True)
class StoredWeights:
    """A weights file as read: arrays by `<layer>/<variable>`, its info, the .npz file's digest.

    The arrays are float16; kernels that were put together from a lightweight network's are float32.
    """

    variant: str
    arrays: Mapping[str, npt.NDArray[np.floating]]
    info: WeightsInfo
    sha256: str


def input_step(variant: str) -> int:
    """What the sides of this network's input are multiples of, in pixels."""
    return 32 if variant == DETECTOR else 8


def default_path(variant: str) -> Path:
    """Where the repository keeps the weights of `variant`."""
    return WEIGHTS_FOLDER / f"{variant}.npz"


def path_in_run(run_folder: Path, variant: str) -> Path:
    """Where `finish` writes the weights of the run in this folder, unless it is told otherwise."""
    return run_folder / "weights" / f"{variant}.npz"


def info_path(path: Path) -> Path:
    """The .json file that belongs to the weights file `path`."""
    return path.with_suffix(".json")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the weights file; WeightsError if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise WeightsError(f"no weights at {path}: train them first, or name a file with --weights") from None


def features_path(path: Path) -> Path:
    """Where the lightweight weights lie whose features the stages in `path` need."""
    return path.with_name("lightweight.npz")


def save(model: keras.Model, path: Path, info: WeightsInfo, *, features: Path | None = None) -> None:
    """Writes `model` (folded first, where it has batch normalisation) to `path` (.npz) and `info` beside it.

    Both files are written under temporary names and then renamed, so a reader never sees half a file, and one that
    cannot be written leaves both as they were. The info names the digest of its weights, so a pair that was torn apart
    is noticed when read.

    With `features`, finished lightweight weights, only stages 2 and 3 of the standard model are written, and the
    lightweight weights are copied beside them unless they are there.

    Raises:
        WeightsError: the model is of another variant than `info` says, holds values that float16 cannot, or has other
            features than `features`; `info` holds what JSON cannot; or other lightweight weights lie beside `path`.
    """
    from trainer.models import fold_batch_norm, variant_and_widths

    if path.suffix != ".npz":
        raise WeightsError(f"a weights file ends in .npz, got {path.name!r}")
    try:
        json.dumps(_described(info), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the weights' description cannot be written as JSON: {error}") from error
    variant, _ = variant_and_widths(model)
    if variant != info.variant:
        raise WeightsError(f"the model is {variant}, the information is for {info.variant}")
    model = fold_batch_norm(model)

    named = dict(_named_weights(model))
    if features is not None:
        _put_features_beside(path, features, named, variant)
        named = {name: value for name, value in named.items() if name.startswith(_OWN_STAGES)}
    arrays: dict[str, npt.NDArray[Any]] = {name: _as_float16(name, value) for name, value in named.items()}
    if features is not None:
        arrays[_FEATURES_SHA256] = np.frombuffer(bytes.fromhex(file_sha256(features)), np.uint8)
    with replaced_atomically(path, info_path(path)) as (archive, description):
        with archive.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        content = {"format": FORMAT, **_described(info), "weights_sha256": file_sha256(archive)}
        description.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _described(info: WeightsInfo) -> dict[str, Any]:
    return {name: value for name, value in asdict(info).items() if value is not None}


def load(path: Path, variant: str | None = None) -> StoredWeights:
    """Reads a pair of files that `save` wrote; WeightsError says what is wrong with one that cannot be used.

    With `variant` given, weights of another one are refused.
    """
    digest = file_sha256(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path} is not a readable .npz file of plain arrays: {error}") from error
    features_sha256 = arrays.pop(_FEATURES_SHA256, None)
    found = "standard" if features_sha256 is not None else _variant_of(path, arrays)
    if variant is not None and found != variant:
        raise WeightsError(f"{path} holds weights of the {found} variant, {variant} ones are needed")
    for name, array in arrays.items():
        if array.dtype != np.float16:
            raise WeightsError(f"{path}: array {name!r} is {array.dtype}, expected float16")
    if features_sha256 is not None:
        arrays |= _features_of(_lightweight_beside(path, features_sha256.tobytes().hex()))
    info = _read_info(info_path(path), digest)
    if info.variant != found:
        raise WeightsError(f"{info_path(path)} is for {info.variant}, the weights beside it are {found}")
    return StoredWeights(variant=found, arrays=arrays, info=info, sha256=digest)


def _lightweight_beside(path: Path, digest: str) -> StoredWeights:
    """The lightweight weights that the stages in `path` were trained on; WeightsError if others or none are there."""
    beside = features_path(path)
    needed = f"{path} holds stages 2 and 3 alone; their features are those of lightweight weights {digest[:12]}"
    if not beside.is_file():
        raise WeightsError(f"{needed}, which are missing: {beside}")
    lightweight = load(beside, "lightweight")
    if lightweight.sha256 != digest:
        raise WeightsError(f"{needed}, but {beside} is {lightweight.sha256[:12]}: the two files do not fit together")
    return lightweight


def _features_of(lightweight: StoredWeights) -> dict[str, npt.NDArray[np.floating]]:
    """The arrays of a standard network outside of its stages 2 and 3 that computes what the lightweight one does."""
    from trainer.models.warm_start import as_standard_kernel

    arrays: dict[str, npt.NDArray[np.floating]] = {}
    for name, array in lightweight.arrays.items():
        layer, _, variable = name.partition("/")
        if name.startswith(_OWN_STAGES) or variable == "pointwise_kernel":
            continue
        if variable == "depthwise_kernel":
            pointwise = _array(lightweight, f"{layer}/pointwise_kernel")
            arrays[f"{layer}/kernel"] = as_standard_kernel(array.astype(np.float32), pointwise.astype(np.float32))
        else:
            arrays[name] = array
    return arrays


def _put_features_beside(
    path: Path, features: Path, named: Mapping[str, npt.NDArray[np.float32]], variant: str
) -> None:
    """Copies the lightweight weights beside `path`, once it is sure that they hold the model's features."""
    if variant != "standard":
        raise WeightsError(f"only a standard network can be stored as its stages, the model is {variant}")
    for name, array in _features_of(load(features, "lightweight")).items():
        own, theirs = named.get(name), array.astype(np.float32)
        if own is None or own.shape != theirs.shape:
            raise WeightsError(f"the features of {features} are not of the model's size: {name}")
        if not np.linalg.norm(own - theirs) <= _SAME_FEATURES * np.linalg.norm(theirs) + 1e-6:
            raise WeightsError(f"the features of {features} are not those that the stages were trained on: {name}")
    beside = features_path(path)
    if beside.is_file():
        if file_sha256(beside) != file_sha256(features):
            raise WeightsError(f"{beside} holds other lightweight weights than {features}: choose another folder")
        return
    with replaced_atomically(beside, info_path(beside)) as (archive, description):
        shutil.copyfile(features, archive)
        shutil.copyfile(info_path(features), description)


def to_model(stored: StoredWeights, *, all_stages: bool = False, input_size: int | None = None) -> keras.Model:
    """The served network (no batch normalisation, float32) with these weights, as wide as they are.

    The detector's output is its grid; `all_stages` is for the others.
    """
    from trainer.models import Architecture, checked_variant
    from trainer.models.detector import DetectorWidths, build_detector
    from trainer.models.layers import Widths
    from trainer.models.network import build_architecture

    if stored.variant == DETECTOR:
        kernels = {
            name.removesuffix("/kernel"): array.shape[-1] for name, array in stored.arrays.items() if array.ndim > 1
        }
        try:
            widths_of_detector = DetectorWidths.read(kernels)
        except KeyError as error:
            raise WeightsError(f"the detector's weights lack the kernel of {error}") from None
        detector = build_detector(batch_norm=False, input_size=input_size, widths=widths_of_detector)
        assign(stored, detector)
        return detector

    def channels(layer: str, variable: str = "kernel") -> int:
        return int(_array(stored, f"{layer}/{variable}").shape[-1])

    last = "pointwise_kernel" if stored.variant == "lightweight" else "kernel"
    widths = Widths(
        block1=channels("conv1_1"),
        block2=channels("conv2_1", last),
        block3=channels("conv3_1", last),
        block4=channels("conv4_1", last),
        block5=channels("conv5_1"),
        features=channels("conv5_3", last),
        stage1=channels("stage1_conv1"),
        refinement=channels("stage2_conv6"),
    )
    model = build_architecture(
        Architecture(
            variant=checked_variant(stored.variant),
            batch_norm=False,
            all_stages=all_stages,
            input_size=input_size,
            widths=widths,
        )
    )
    assign(stored, model)
    return model


def mean(stored: Sequence[StoredWeights]) -> keras.Model:
    """The served network whose weights are the mean of these, in float32, as half precision holds it.

    Weights that were trained from the same ones lie close enough together for their mean to be as good as each, and
    often better (Wortsman et al., "Model soups", 2022). WeightsError where they are of different networks.
    """
    first, *others = stored
    for other in others:
        if {name: array.shape for name, array in other.arrays.items()} != {
            name: array.shape for name, array in first.arrays.items()
        }:
            raise WeightsError(
                f"only weights of the same network have a mean; {other.variant} ones of another were given"
            )
    arrays = {
        name: np.mean([each.arrays[name].astype(np.float32) for each in stored], axis=0).astype(np.float16)
        for name in first.arrays
    }
    return to_model(replace(first, arrays=arrays))


def assign(stored: StoredWeights, model: keras.Model) -> None:
    """Copies the weights into a model without batch normalisation; WeightsError unless all of them fit."""
    wanted = {name: tuple(value.shape) for name, value in _named_weights(model)}
    held = {name: array.shape for name, array in stored.arrays.items()}
    if wanted != held:
        differing = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
        first = differing[0]
        raise WeightsError(
            f"these {stored.variant} weights do not fit model {model.name!r}: "
            f"{len(differing)} arrays differ, "
            f"for example {first}: in the file {held.get(first, 'missing')}, "
            f"in the model {wanted.get(first, 'missing')}"
        )
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(
                [stored.arrays[f"{layer.name}/{weight.name}"].astype(np.float32) for weight in layer.weights]
            )


def _named_weights(model: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for layer in model.layers:
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
            yield f"{layer.name}/{weight.name}", value


def _as_float16(name: str, value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    largest = float(np.max(np.abs(value)))
    if not largest <= float(np.finfo(np.float16).max):
        raise WeightsError(f"weight {name} reaches {largest}, which float16 cannot hold; nothing was written")
    return value.astype(np.float16)


def _variant_of(path: Path, arrays: Mapping[str, Any]) -> str:
    if _DETECTOR_MARK in arrays:
        return DETECTOR
    if _SEPARABLE_MARK in arrays:
        return "lightweight"
    if _STANDARD_MARK in arrays:
        return "standard"
    raise WeightsError(f"{path} holds the weights of none of the networks")


def _array(stored: StoredWeights, name: str) -> npt.NDArray[np.floating]:
    try:
        return stored.arrays[name]
    except KeyError:
        raise WeightsError(f"the {stored.variant} weights lack array {name}") from None


def _read_info(path: Path, digest: str) -> WeightsInfo:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: it says where the weights come from") from None
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a weights description of format {FORMAT}")
    if content.get("weights_sha256") != digest:
        raise WeightsError(f"{path} describes other weights: its weights_sha256 is not that of the .npz beside it")
    known = {f.name for f in fields(WeightsInfo)}
    try:
        return WeightsInfo(**{name: value for name, value in content.items() if name in known})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
