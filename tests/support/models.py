"""Model cards and served models for tests; the input is small, but no map of it is all border."""

from service.inference.models import ModelCard, ServedModel, Variant
from service.pose.keypoints import KEYPOINT_NAMES

INPUT_SIZE = 128
"""Side of the input in pixels: 16 x 16 cells."""


def model_card(variant: Variant = "lightweight", *, version: int = 1, input_size: int = INPUT_SIZE) -> ModelCard:
    return ModelCard(
        name=f"cpm_{variant}",
        variant=variant,
        version=version,
        keypoints=KEYPOINT_NAMES,
        channels=22,
        input_size=input_size,
        stride=8,
    )


def served_model(
    variant: Variant = "lightweight",
    *,
    version: int = 1,
    labels: tuple[str, ...] = ("stable",),
    input_size: int = INPUT_SIZE,
) -> ServedModel:
    return ServedModel(version, labels, model_card(variant, version=version, input_size=input_size))
