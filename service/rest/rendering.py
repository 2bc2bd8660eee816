"""From estimates to what goes over the wire: JSON, or the picture with the skeleton drawn on it."""

import io
import re
from collections.abc import Sequence
from typing import Final, Literal

from pydantic_core import to_json

from service.answers import estimate_values
from service.inference.estimates import Estimate
from service.inference.estimates import Hand as FoundHand
from service.inference.models import STABLE_LABEL, ModelReference, ServedModel
from service.pose.drawing import FINGER_COLOURS, HandTag, draw_hand
from service.pose.images import DecodedImage
from service.pose.keypoints import KEYPOINT_NAMES, SKELETON_EDGES, finger_of
from service.rest.problems import HttpError
from service.rest.schemas import HandPose, Model, Skeleton

_QUALITY: Final = re.compile(r";\s*q\s*=\s*(\d+\.?\d*|\.\d+)?")

MediaType = Literal["application/json", "image/png", "image/jpeg"]

MEDIA_TYPES: Final[tuple[MediaType, ...]] = ("application/json", "image/png", "image/jpeg")

_PICTURE_OPTIONS: Final[dict[MediaType, dict[str, object]]] = {
    "image/png": {"format": "PNG", "compress_level": 3},
    "image/jpeg": {"format": "JPEG", "quality": 90},
}


def choose_media_type(accept: str | None) -> MediaType:
    """What to answer with, by the request's Accept header; JSON where it does not care.

    Raises:
        HttpError: 406, if it wants none of `MEDIA_TYPES`.
    """
    if accept is None or not accept.strip():
        return "application/json"
    wishes: dict[str, float] = {}
    for part in accept.lower().split(",")[:64]:
        media_range, _, parameters = part.partition(";")
        quality = _QUALITY.search(f";{parameters}")
        wishes.setdefault(media_range.strip(), float(quality[1] or 0) if quality else 1.0)

    def weight(media_type: str) -> float:
        # The most specific range that names it counts.
        ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        return next((wishes[each] for each in ranges if each in wishes), 0.0)

    best = max(MEDIA_TYPES, key=weight)
    if weight(best) <= 0:
        raise HttpError(
            406, "not_acceptable", f"answers are {', '.join(MEDIA_TYPES)}; the Accept header wants none of them"
        )
    return best


def hand_pose(estimate: Estimate, request_id: str) -> HandPose:
    """The answer for one image, as a part of a larger one."""
    return HandPose.model_validate(estimate_values(estimate, request_id))


def hand_pose_json(estimate: Estimate, request_id: str) -> bytes:
    """The same as JSON. What is made here needs no checking, which would take most of the time."""
    return to_json(estimate_values(estimate, request_id))


def picture_with_hands(image: DecodedImage, hands: Sequence[FoundHand], media_type: MediaType) -> bytes:
    """The upright picture with every hand drawn on it, as an image file. Blocks: call it in a thread."""
    picture = image.pixels
    for each in hands:
        tag = HandTag(each.score, each.handedness.label if each.handedness else None)
        picture = draw_hand(picture, each.keypoints_in_image, each.scores, tag)
    buffer = io.BytesIO()
    picture.save(buffer, **_PICTURE_OPTIONS[media_type])  # type: ignore[arg-type]  # each its own
    return buffer.getvalue()


def served_by(model: ServedModel) -> str:
    """The model as the X-Model-Variant header names it: what a client would send to get the same one."""
    return f"{model.variant}@{model.version}"


def model_description(model: ServedModel, default: ModelReference) -> Model:
    """One row of GET /v1/models."""
    card = model.card
    label = default.label or STABLE_LABEL
    is_default = model.version == default.version if default.version is not None else label in model.labels
    return Model(
        name=model.name,
        variant=model.variant,
        version=model.version,
        labels=list(model.labels),
        default=model.variant == default.variant and is_default,
        input_size=card.input_size,
        stride=card.stride,
        created=card.created,
        parameters=card.parameters,
        macs=card.macs,
        metrics=card.metrics,
        provenance=card.provenance,
    )


def skeleton() -> Skeleton:
    """The answer of GET /v1/skeleton."""
    keypoints = [
        {
            "id": index,
            "name": name,
            "finger": finger_of(index),
            "colour": "#{:02x}{:02x}{:02x}".format(*FINGER_COLOURS[finger_of(index)]),
        }
        for index, name in enumerate(KEYPOINT_NAMES)
    ]
    return Skeleton.model_validate({"keypoints": keypoints, "edges": SKELETON_EDGES})
