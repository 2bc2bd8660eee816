"""What the command prints: estimates as JSON (the same as over REST) or as a line of text."""

from dataclasses import asdict
from typing import Any, Final

from service.client import Estimate, HandPoseError

_DECIMALS: Final = {"x": 2, "y": 2, "x_norm": 5, "y_norm": 5, "score": 4, "sigma": 2}
"""Of a keypoint. REST's answers are rounded so already, gRPC's are not."""


def as_json(estimate: Estimate) -> dict[str, Any]:
    """The estimate as REST writes it."""
    hands = [asdict(hand) for hand in estimate.hands]
    for hand in hands:
        hand["score"] = round(hand["score"], 4)
        hand["rotation_degrees"] = round(hand["rotation_degrees"], 2)
        if hand["handedness"] is not None:
            hand["handedness"]["score"] = round(hand["handedness"]["score"], 4)
        for point in hand["keypoints"]:
            point |= {name: round(point[name], decimals) for name, decimals in _DECIMALS.items()}
    width, height = estimate.image_size
    return {
        "request_id": estimate.request_id,
        "model": asdict(estimate.model),
        "image": {"width": width, "height": height},
        "hands": hands,
        "timings_ms": {phase: round(ms, 2) for phase, ms in asdict(estimate.timings_ms).items()},
    }


def error_as_json(error: HandPoseError) -> dict[str, Any]:
    """Why there is no estimate."""
    return {"code": error.code, "detail": error.detail}


def as_text(name: str, estimate: Estimate) -> str:
    """One line: what was found, by which model, in what time."""
    model = f"{estimate.model.variant}@{estimate.model.version}"
    return f"{name}: {_hands_as_text(estimate)}, {model}, {estimate.timings_ms.total:.0f} ms"


def _hands_as_text(estimate: Estimate) -> str:
    if not estimate.hands:
        return "no hand found"
    sides = [f"{hand.handedness.label}, " if hand.handedness else "" for hand in estimate.hands]
    said = [f"{side}score {hand.score:.2f}" for side, hand in zip(sides, estimate.hands, strict=True)]
    return f"{len(said)} hand{'s' if len(said) != 1 else ''} ({'; '.join(said)})"
