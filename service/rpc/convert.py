"""Between `handpose.v1` messages and the use case's values: field by field, in both directions, deciding nothing."""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from service.inference.errors import FieldError, InvalidInputError, ServiceError
from service.inference.estimates import MOST_HANDS, Estimate, EstimateRequest, Hand, Priority
from service.inference.models import ServedModel
from service.inference.streaming import Frame, FrameAnswer, StreamOptions
from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_NAMES
from service.pose.tracking import OneEuro
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.status import problem_of

_SEARCH: Final = frozenset({"max_hands", "min_score", "whole"})


def to_request(
    message: pb.EstimateRequest, *, deadline: float, asked_for: str | None, client_id: str | None, priority: Priority
) -> EstimateRequest:
    """One image. Raises InvalidInputError if it is empty."""
    if not message.image:
        raise InvalidInputError('"image" is empty; send the bytes of an image file', code="empty_image")
    return EstimateRequest(
        image=message.image,
        deadline=deadline,
        rois=to_boxes(message.rois),
        asked_for=asked_for,
        client_id=client_id,
        priority=priority,
        **_to_search(message),
    )


def _to_search(message: pb.EstimateRequest | pb.StreamOptions) -> dict[str, Any]:
    """What is said of how to look for hands; fields that are absent take their defaults."""
    return {field.name: value for field, value in message.ListFields() if field.name in _SEARCH}


def to_boxes(messages: Sequence[pb.Box]) -> tuple[Box, ...]:
    """Boxes in pixels of the image."""
    return tuple(Box(each.x, each.y, each.width, each.height) for each in messages)


def to_frame(message: pb.Frame) -> Frame:
    """One frame of a stream. Raises InvalidInputError if its time is no number that time can go on from."""
    if not math.isfinite(message.time_s):
        wrong = f"it must be a finite number, got {message.time_s}"
        raise _wrong("time_s", wrong, code="invalid_frame_description")
    return Frame(
        image=message.image,
        id=message.id,
        time_s=message.time_s if message.HasField("time_s") else None,
        rois=to_boxes(message.rois),
    )


def to_stream_options(message: pb.StreamOptions, asked_for: str | None, client_id: str | None = None) -> StreamOptions:
    """Raises InvalidInputError if a filter parameter, the time-out, or a number of hands or a score is impossible."""
    timeout_s = message.frame_timeout.ToNanoseconds() / 1e9 if message.HasField("frame_timeout") else None
    if timeout_s is not None and timeout_s <= 0:
        raise _wrong("frame_timeout", f"it must be positive, got {timeout_s:g} s")
    if message.HasField("max_hands") and not 1 <= message.max_hands <= MOST_HANDS:
        raise _wrong("max_hands", f"must be from 1 to {MOST_HANDS}, got {message.max_hands}")
    if not 0 <= message.min_score <= 1:
        raise _wrong("min_score", f"must be from 0 to 1, got {message.min_score}")
    return StreamOptions(
        asked_for=asked_for,
        client_id=client_id,
        tracking=message.tracking if message.HasField("tracking") else True,
        smoothing=_to_one_euro(message.smoothing) if message.HasField("smoothing") else None,
        latest_only=message.latest_only,
        frame_timeout_s=timeout_s,
        **_to_search(message),
    )


def _to_one_euro(message: pb.OneEuro) -> OneEuro:
    try:
        return OneEuro(**{field.name: value for field, value in message.ListFields()})  # the fields that are there
    except ValueError as error:
        raise _wrong("smoothing", str(error)) from error


def _wrong(field: str, message: str, *, code: str = "invalid_options") -> InvalidInputError:
    return InvalidInputError(f"{field}: {message}", code=code, errors=(FieldError(field, message),))


def from_estimate(estimate: Estimate, request_id: str) -> pb.EstimateResponse:
    """The hands of one image."""
    width, height = estimate.image_size
    return pb.EstimateResponse(
        request_id=request_id,
        model=pb.ModelUsed(
            name=estimate.model.name,
            variant=estimate.model.variant,
            version=estimate.model.version,
            label=next(iter(estimate.model.labels), ""),
            routed_by=estimate.routed_by,
        ),
        image=pb.ImageSize(width=width, height=height),
        hands=[_from_hand(hand, width, height) for hand in estimate.hands],
        timings=pb.Timings(
            decode_ms=1000 * estimate.timings.decode,
            queue_ms=1000 * estimate.timings.queue,
            inference_ms=1000 * estimate.timings.inference,
            postprocess_ms=1000 * estimate.timings.postprocess,
            total_ms=1000 * estimate.timings.total,
            detection_ms=1000 * estimate.timings.detection,
        ),
    )


def _from_hand(hand: Hand, width: int, height: int) -> pb.Hand:
    box, side = hand.box_in_image, hand.handedness
    return pb.Hand(
        score=hand.score,
        handedness=None if side is None else pb.Handedness(label=side.label, score=side.score),
        rotation_degrees=hand.rotation_degrees,
        box=pb.Box(x=box.x, y=box.y, width=box.width, height=box.height),
        keypoints=[
            pb.Keypoint(id=index, name=name, x=x, y=y, x_norm=x / width, y_norm=y / height, score=score, sigma=sigma)
            for index, (name, (x, y), score, sigma) in enumerate(
                zip(
                    KEYPOINT_NAMES,
                    hand.keypoints_in_image.tolist(),
                    hand.scores.tolist(),
                    hand.sigmas.tolist(),
                    strict=True,
                )
            )
        ],
    )


def from_result(result: Estimate | ServiceError, request_id: str) -> pb.EstimateResult:
    """One image's part in the answer to a batch."""
    if isinstance(result, ServiceError):
        return pb.EstimateResult(problem=problem_of(result))
    return pb.EstimateResult(estimate=from_estimate(result, request_id))


def from_frame_answer(answer: FrameAnswer, request_id: str) -> pb.EstimateStreamResponse:
    """The answer to one frame."""
    if isinstance(answer.outcome, ServiceError):
        return pb.EstimateStreamResponse(
            frame_id=answer.frame_id, skipped=answer.skipped, problem=problem_of(answer.outcome)
        )
    return pb.EstimateStreamResponse(
        frame_id=answer.frame_id,
        tracked=answer.outcome.tracked,
        skipped=answer.skipped,
        estimate=from_estimate(answer.outcome.estimate, request_id),
        track_ids=answer.outcome.track_ids,
    )


def from_model(model: ServedModel) -> pb.Model:
    """One version of one model."""
    card = model.card
    return pb.Model(
        name=model.name,
        variant=model.variant,
        version=model.version,
        labels=model.labels,
        input_size=card.input_size,
        stride=card.stride,
        parameters=card.parameters or 0,
        created=card.created,
        metrics_json=json.dumps(card.metrics),
    )
