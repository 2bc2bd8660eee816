"""The model card: `model_card.json` in every version folder says what a servable is and what it was made from.

Plain JSON, so that any reader can use it without this module:

    format                 1
    name                   name of the servable, for example "cpm_lightweight"
    variant                "standard" or "lightweight"
    version                version number, the name of the folder
    created                when the servable was written, ISO 8601 with time zone
    keypoints              the 21 keypoint names in channel order; the channel after them is the background
    channels               22
    input_size             side in pixels to be served at (the network accepts any multiple of `stride`)
    stride                 input pixels per belief-map cell, 8
    target_sigma_in_cells  standard deviation of the Gaussians trained on, in belief-map cells
    crop_padding           factor between a hand's box and its crop
    signature              {"name", "inputs": {name: {"dtype", "shape"}}, "outputs": the same}; -1 is any length
    parameters             number of parameters
    paper_flops            twice the kernel weights, what the paper calls "Flops"
    macs                   multiply-accumulates of one image at `input_size`
    weights_sha256         digest of the weights file it was exported from
    provenance             data, recipe, samples seen: free JSON, copied from the weights' description
    metrics                what was measured with these weights: free JSON, copied from the same place
    golden                 pictures and this servable's answers, to check a model server against (`trainer.golden`):
                           {"images": [{"image": a JPEG file in base64, "keypoints": 21 of [x, y] in its pixels}],
                           "tolerance": share of the picture's longer side}; absent if no answer was steady

The hand detector's card has no variant, keypoints, channels, stride, target_sigma_in_cells, crop_padding and
paper_flops, but

    columns                names of a detection's values (`service.pose.detections`)
    detections             rows for each picture
    golden                 the images hold "hands": [x, y, size, cos, sin, right] of each of score 0.5 and more, best
                           first, in its pixels, in place of "keypoints"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import RefusedError

T = TypeVar("T")

FORMAT = 1
FILE_NAME = "model_card.json"
DETECTOR_NAME = "hand_detector"


class CardError(RefusedError):
    """A model card that is missing or not of the documented form."""


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one named input or output; -1 stands for a length that may vary."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """A servable's signature: its name, and its inputs and outputs by name."""

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card; the module's description explains each field."""

    name: str
    variant: str
    version: int
    created: str
    keypoints: tuple[str, ...]
    channels: int
    input_size: int
    stride: int
    target_sigma_in_cells: float
    crop_padding: float
    signature: Signature
    parameters: int
    paper_flops: int
    macs: int
    weights_sha256: str
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Any]
    golden: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values; `golden` is left out where there is none."""
        return _to_json(self)

    @staticmethod
    def from_json(content: object) -> ModelCard:
        """The card that `content` holds; CardError names the field that is missing or of the wrong type."""
        content = _checked(content)
        return ModelCard(
            name=_value(content, "name", str),
            variant=_value(content, "variant", str),
            version=_value(content, "version", int),
            created=_value(content, "created", str),
            keypoints=_names(content, "keypoints"),
            channels=_value(content, "channels", int),
            input_size=_value(content, "input_size", int),
            stride=_value(content, "stride", int),
            target_sigma_in_cells=_number(content, "target_sigma_in_cells"),
            crop_padding=_number(content, "crop_padding"),
            signature=_signature(content),
            parameters=_value(content, "parameters", int),
            paper_flops=_value(content, "paper_flops", int),
            macs=_value(content, "macs", int),
            weights_sha256=_value(content, "weights_sha256", str),
            provenance=_value(content, "provenance", dict),
            metrics=_value(content, "metrics", dict),
            golden=_value(content, "golden", dict) if "golden" in content else None,
        )


@dataclass(frozen=True)
class DetectorCard:
    """The content of the hand detector's card; the module's description explains each field."""

    name: str
    version: int
    created: str
    columns: tuple[str, ...]
    detections: int
    input_size: int
    signature: Signature
    parameters: int
    macs: int
    weights_sha256: str
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Any]
    golden: Mapping[str, Any] | None = None

    @property
    def variant(self) -> str:
        """What its weights are named by."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values; `golden` is left out where there is none."""
        return _to_json(self)

    @staticmethod
    def from_json(content: object) -> DetectorCard:
        """The card that `content` holds; CardError names the field that is missing or of the wrong type."""
        content = _checked(content)
        return DetectorCard(
            name=_value(content, "name", str),
            version=_value(content, "version", int),
            created=_value(content, "created", str),
            columns=_names(content, "columns"),
            detections=_value(content, "detections", int),
            input_size=_value(content, "input_size", int),
            signature=_signature(content),
            parameters=_value(content, "parameters", int),
            macs=_value(content, "macs", int),
            weights_sha256=_value(content, "weights_sha256", str),
            provenance=_value(content, "provenance", dict),
            metrics=_value(content, "metrics", dict),
            golden=_value(content, "golden", dict) if "golden" in content else None,
        )


AnyCard = ModelCard | DetectorCard


def write(card: AnyCard, version_folder: Path) -> None:
    """Writes the card into a version folder."""
    text = json.dumps(card.to_json(), indent=2, allow_nan=False)
    (version_folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read(version_folder: Path) -> AnyCard:
    """Reads the card of a version folder; CardError if there is none or it is not of the documented form."""
    path = version_folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_detector = isinstance(content, dict) and content.get("name") == DETECTOR_NAME
        return DetectorCard.from_json(content) if is_detector else ModelCard.from_json(content)
    except CardError as error:
        raise CardError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CardError(f"{version_folder} holds no {FILE_NAME}") from None
    except ValueError as error:
        raise CardError(f"{path} is not JSON: {error}") from error


def _to_json(card: AnyCard) -> dict[str, Any]:
    content: dict[str, Any] = {"format": FORMAT}
    for item in fields(card):
        value = getattr(card, item.name)
        content[item.name] = list(value) if isinstance(value, tuple) else value
    content["signature"] = {
        "name": card.signature.name,
        "inputs": _tensors_to_json(card.signature.inputs),
        "outputs": _tensors_to_json(card.signature.outputs),
    }
    if card.golden is None:
        del content["golden"]
    return content


def _checked(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CardError("a model card is a JSON object")
    if content.get("format") != FORMAT:
        raise CardError(f"model card of format {content.get('format')!r}; this program reads format {FORMAT}")
    return content


def _signature(content: Mapping[str, Any]) -> Signature:
    signature = _value(content, "signature", dict)
    return Signature(
        name=_value(signature, "name", str),
        inputs=_tensors_from_json(_value(signature, "inputs", dict)),
        outputs=_tensors_from_json(_value(signature, "outputs", dict)),
    )


def _names(content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = _value(content, name, list)
    if not all(isinstance(each, str) for each in names):
        raise CardError(f"model card: {name} has to be a list of names")
    return tuple(names)


def _tensors_to_json(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return {name: {"dtype": tensor.dtype, "shape": list(tensor.shape)} for name, tensor in tensors.items()}


def _tensors_from_json(content: Mapping[str, Any]) -> dict[str, TensorInfo]:
    tensors = {}
    for name, tensor in content.items():
        if not isinstance(tensor, dict):
            raise CardError(f"model card: tensor {name} has to be an object with dtype and shape")
        shape = _value(tensor, "shape", list)
        if not all(isinstance(length, int) for length in shape):
            raise CardError(f"model card: the shape of tensor {name} has to be a list of integers")
        tensors[name] = TensorInfo(_value(tensor, "dtype", str), tuple(shape))
    return tensors


def _value(content: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CardError(f"model card: {name} has to be a JSON {_JSON_NAMES[kind]}, it is {value!r}")
    return value


def _number(content: Mapping[str, Any], name: str) -> float:
    value = content.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CardError(f"model card: {name} has to be a JSON number, it is {value!r}")
    return float(value)


_JSON_NAMES: dict[type, str] = {str: "string", int: "integer", list: "array", dict: "object"}
