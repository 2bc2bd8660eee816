"""What the command prints: estimates as JSON (the same as over REST) or as a line of text."""

from typing import Any

from service.client import Estimate, HandPoseError


def as_json(estimate: Estimate) -> dict[str, Any]:
    """The estimate as REST writes it."""
    model, timings = estimate.model, estimate.timings_ms
    return {
        "request_id": estimate.request_id,
        "model": {
            "name": model.name,
            "variant": model.variant,
            "version": model.version,
            "label": model.label,
            "routed_by": model.routed_by,
        },
        "image": {"width": estimate.image_size[0], "height": estimate.image_size[1]},
        "hands": [
            {
                "score": round(hand.score, 4),
                "box": {"x": hand.box.x, "y": hand.box.y, "width": hand.box.width, "height": hand.box.height},
                "keypoints": [
                    {
                        "id": point.id,
                        "name": point.name,
                        "x": round(point.x, 2),
                        "y": round(point.y, 2),
                        "x_norm": round(point.x_norm, 5),
                        "y_norm": round(point.y_norm, 5),
                        "score": round(point.score, 4),
                        "sigma": round(point.sigma, 2),
                    }
                    for point in hand.keypoints
                ],
            }
            for hand in estimate.hands
        ],
        "timings_ms": {
            "decode": round(timings.decode, 2),
            "queue": round(timings.queue, 2),
            "inference": round(timings.inference, 2),
            "postprocess": round(timings.postprocess, 2),
            "total": round(timings.total, 2),
        },
    }


def error_as_json(error: Exception) -> dict[str, Any]:
    """Why there is no estimate."""
    if isinstance(error, HandPoseError):
        return {"code": error.code, "detail": error.detail}
    return {"code": "unreadable_file", "detail": str(error)}


def as_text(name: str, estimate: Estimate) -> str:
    """One line: what was found, by which model, in what time."""
    hands = ", ".join(f"score {hand.score:.2f}" for hand in estimate.hands)
    model = f"{estimate.model.variant}@{estimate.model.version}"
    count = f"{len(estimate.hands)} hand{'s' if len(estimate.hands) != 1 else ''}"
    return f"{name}: {count} ({hands}), {model}, {estimate.timings_ms.total:.0f} ms"
