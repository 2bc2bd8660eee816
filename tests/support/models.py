"""Model cards and served models for tests; the input is small, but no map of it is all border."""

from deploy.stand_in.repository import INPUT_SIZE, model_card
from service.inference.models import DetectorCard, ServedDetector, ServedModel, Variant
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS

__all__ = ["DETECTOR_SIZE", "INPUT_SIZE", "model_card", "served_detector", "served_model"]

DETECTOR_SIZE = 64


def served_model(
    variant: Variant = "lightweight",
    *,
    version: int = 1,
    labels: tuple[str, ...] = ("stable",),
    input_size: int = INPUT_SIZE,
) -> ServedModel:
    return ServedModel(version, labels, model_card(variant, version=version, input_size=input_size))


def served_detector(*, version: int = 1, labels: tuple[str, ...] = ("stable",)) -> ServedDetector:
    card = DetectorCard(
        name="hand_detector",
        version=version,
        columns=DETECTION_COLUMNS,
        detections=DETECTIONS,
        input_size=DETECTOR_SIZE,
    )
    return ServedDetector(version, labels, card)
