"""Estimates and errors as the plain values of the JSON answer: for REST, and for all that writes the same records.

Numbers are rounded to what they can mean: a hundredth of a pixel, a hundredth of a millisecond. Nothing but the detail
of a ServiceError is in its problem, and of an internal one not even that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np

from service.inference.errors import ErrorKind, ServiceError
from service.inference.estimates import Estimate, Hand
from service.inference.keys import without_keys
from service.inference.requests import detail_of
from service.pose.keypoints import KEYPOINT_NAMES

_STEPS: Final = np.array((1e2, 1e2, 1e5, 1e5, 1e4, 1e2))
"""How many steps a unit has, to which x, y, x_norm, y_norm, score and sigma of a keypoint are rounded."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """How HTTP tells one kind of failure."""

    status: int
    title: str


PROBLEM_TYPES: Final[Mapping[ErrorKind, ProblemType]] = {
    ErrorKind.INVALID_INPUT: ProblemType(400, "The request is wrong"),
    ErrorKind.UNDECODABLE_IMAGE: ProblemType(422, "The image does not decode"),
    ErrorKind.UNSUPPORTED_TYPE: ProblemType(415, "This kind of content is not read here"),
    ErrorKind.TOO_LARGE: ProblemType(413, "The request is too large"),
    ErrorKind.UNAUTHENTICATED: ProblemType(401, "A valid key is needed"),
    ErrorKind.UNKNOWN_MODEL: ProblemType(404, "There is no such model"),
    ErrorKind.OVERLOADED: ProblemType(429, "The service is busy"),
    ErrorKind.UNAVAILABLE: ProblemType(503, "The service cannot answer now"),
    ErrorKind.TOO_SLOW: ProblemType(408, "The request came in too slowly"),
    ErrorKind.DEADLINE_EXCEEDED: ProblemType(504, "The request's time was up"),
    ErrorKind.INTERNAL: ProblemType(500, "The service failed"),
}


def estimate_values(estimate: Estimate, request_id: str) -> dict[str, Any]:
    """The answer for one image."""
    model, timings = estimate.model, estimate.timings
    width, height = estimate.image_size
    return {
        "request_id": request_id,
        "model": {
            "name": model.name,
            "variant": model.variant,
            "version": model.version,
            "label": model.labels[0] if model.labels else None,
            "routed_by": estimate.routed_by,
        },
        "image": {"width": width, "height": height},
        "hands": [_hand_values(each, width, height) for each in estimate.hands],
        "timings_ms": {
            each: round(max(getattr(timings, each), 0.0) * 1000, 2)
            for each in ("decode", "detection", "queue", "inference", "postprocess", "total")
        },
    }


def _hand_values(hand: Hand, width: int, height: int) -> dict[str, Any]:
    box, side = hand.box_in_image, hand.handedness
    table = np.empty((len(KEYPOINT_NAMES), len(_STEPS)))
    table[:, 0:2] = hand.keypoints_in_image
    table[:, 2:4] = hand.keypoints_in_image / (width, height)
    table[:, 4] = hand.scores
    table[:, 5] = hand.sigmas
    table *= _STEPS
    np.rint(table, out=table)
    table /= _STEPS
    return {
        "score": round(hand.score, 4),
        "handedness": None if side is None else {"label": side.label, "score": round(side.score, 4)},
        "box": {
            "x": round(box.x, 2),
            "y": round(box.y, 2),
            "width": round(box.width, 2),
            "height": round(box.height, 2),
        },
        "rotation_degrees": round(hand.rotation_degrees, 2),
        "keypoints": [
            {
                "id": index,
                "name": name,
                "x": x,
                "y": y,
                "x_norm": x_norm,
                "y_norm": y_norm,
                "score": score,
                "sigma": sigma,
            }
            for index, (name, (x, y, x_norm, y_norm, score, sigma)) in enumerate(
                zip(KEYPOINT_NAMES, table.tolist(), strict=True)
            )
        ],
    }


def error_values(error: ServiceError, *, instance: str, request_id: str) -> dict[str, Any]:
    """The problem that a ServiceError is, as RFC 9457 describes it. Members that do not apply are left out."""
    kind = PROBLEM_TYPES[error.kind]
    values = problem_values(kind.status, error.code, detail_of(error), instance=instance, request_id=request_id)
    values |= {"type": f"urn:handpose:{error.kind.value}", "title": kind.title}
    if error.retry_after_s is not None:
        values["retry_after_ms"] = math.ceil(error.retry_after_s * 1000)
    if error.errors and error.kind is not ErrorKind.INTERNAL:
        values["errors"] = [{"field": each.field, "message": each.message} for each in error.errors]
    return values


def problem_values(status: int, code: str, detail: str, *, instance: str, request_id: str) -> dict[str, Any]:
    """A problem that is no ServiceError, of a kind of its own."""
    return {
        "type": f"urn:handpose:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": without_keys(instance),
        "code": code,
        "request_id": request_id,
    }
