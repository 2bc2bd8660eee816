"""Model cards and served models for tests; the input is small, but no map of it is all border."""

from deploy.stand_in.repository import DETECTOR_INPUT_SIZE as DETECTOR_SIZE
from deploy.stand_in.repository import INPUT_SIZE, detector_card, model_card
from service.inference.models import ServedDetector, ServedModel, Variant

__all__ = ["DETECTOR_SIZE", "INPUT_SIZE", "detector_card", "model_card", "served_detector", "served_model"]


def served_model(
    variant: Variant = "lightweight",
    *,
    version: int = 1,
    labels: tuple[str, ...] = ("stable",),
    input_size: int = INPUT_SIZE,
) -> ServedModel:
    return ServedModel(version, labels, model_card(variant, version=version, input_size=input_size))


def served_detector(*, version: int = 1, labels: tuple[str, ...] = ("stable",)) -> ServedDetector:
    return ServedDetector(version, labels, detector_card(version=version))
