"""Model folders without models, which is all that the stand-in needs, and the configuration that names them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from service.inference.models import DETECTOR_NAME, AnyCard, DetectorCard, Kind, ModelCard, Variant
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from service.pose.keypoints import KEYPOINT_NAMES

INPUT_SIZE: Final = 128
"""Side of the input in pixels: 16 x 16 cells."""

DETECTOR_INPUT_SIZE: Final = 64


def model_card(variant: Variant = "lightweight", *, version: int = 1, input_size: int = INPUT_SIZE) -> ModelCard:
    """The card of a model without measurements; inputs are `input_size` pixels square."""
    return ModelCard(
        name=f"cpm_{variant}",
        variant=variant,
        version=version,
        keypoints=KEYPOINT_NAMES,
        channels=22,
        input_size=input_size,
        stride=8,
    )


def detector_card(*, version: int = 1) -> DetectorCard:
    """The card of a hand detector without measurements."""
    return DetectorCard(
        name=DETECTOR_NAME,
        version=version,
        columns=DETECTION_COLUMNS,
        detections=DETECTIONS,
        input_size=DETECTOR_INPUT_SIZE,
    )


def add_version(repository: Path, kind: Kind, version: int, *, input_size: int = INPUT_SIZE) -> Path:
    """A version folder that appears whole, as exporting makes it, with a card and no model.

    A hand detector is always there beside it.
    """
    if kind != "detector" and not (repository / DETECTOR_NAME).exists():
        add_version(repository, "detector", 1)
    card: AnyCard
    if kind == "detector":
        card = detector_card(version=version)
    else:
        card = model_card(kind, version=version, input_size=input_size)
    folder = repository / card.name
    unfinished = folder / f".export-{version}"
    unfinished.mkdir(parents=True)
    (unfinished / "model_card.json").write_text(card.model_dump_json())
    return unfinished.rename(folder / str(version))


def config_text(repository: Path, models: Mapping[Kind, tuple[Sequence[int], Mapping[str, int]]]) -> str:
    """A model server's configuration: for each model its versions and its labels.

    Of the hand detector it is the first version, unless the models say otherwise.
    """
    text = ""
    every = {**models, "detector": models.get("detector", ((1,), {"stable": 1}))}
    for kind, (versions, labels) in every.items():
        name = DETECTOR_NAME if kind == "detector" else f"cpm_{kind}"
        specific = " ".join(f"versions: {version}" for version in versions)
        labelled = " ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
        text += (
            f'config {{ name: "{name}" base_path: "{repository / name}" model_platform: "tensorflow"'
            f" model_version_policy {{ specific {{ {specific} }} }} {labelled} }}\n"
        )
    return f"model_config_list {{\n{text}}}\n"


def without_detector(config: str) -> str:
    """A configuration of `config_text` as it was before there was a hand detector."""
    return "".join(line for line in config.splitlines(keepends=True) if DETECTOR_NAME not in line)
