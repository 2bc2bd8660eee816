"""The service's JSON as values. What a later version of the service adds to it is ignored."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from service.client import errors
from service.client.types import Estimate, Hand, Handedness, Keypoint, Model, ModelUsed, StreamAnswer, Timings
from service.pose.geometry import Box

T = TypeVar("T")


def understood(read: Callable[[Any], T], answer: Any) -> T:
    """The answer as a value. Raises ServerFailedError, saying what is wrong, if it has another shape."""
    try:
        return read(answer)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise errors.ServerFailedError("not_understood", f"the service's answer has another shape: {wrong}") from error


def estimate(answer: dict[str, Any]) -> Estimate:
    """The answer for one image."""
    model, image = {"label": None} | answer["model"], answer["image"]
    return Estimate(
        request_id=answer["request_id"],
        model=_members(ModelUsed, model),
        image_size=(image["width"], image["height"]),
        hands=tuple(_hand(each) for each in answer["hands"]),
        timings_ms=_members(Timings, answer["timings_ms"]),
    )


def _hand(answer: dict[str, Any]) -> Hand:
    side = answer.get("handedness")
    parts = {
        "box": _members(Box, answer["box"]),
        "keypoints": tuple(_members(Keypoint, each) for each in answer["keypoints"]),
        "handedness": _members(Handedness, side) if side else None,
    }
    return _members(Hand, answer | parts)


def batch(answer: dict[str, Any], *, images: int) -> list[Estimate | errors.HandPoseError]:
    """An estimate or an error for each of so many images."""
    results = answer["results"]
    if len(results) != images:
        raise ValueError(f"{len(results)} results for {images} images")
    return [estimate(each["result"]) if each.get("result") else problem(each["problem"]) for each in results]


def models(answer: dict[str, Any]) -> list[Model]:
    """The rows of GET /v1/models."""
    return [_model(each) for each in answer["models"]]


def _model(answer: dict[str, Any]) -> Model:
    given = {"parameters": None, "created": "", "metrics": {}} | answer
    return _members(Model, given | {"labels": tuple(given["labels"])})


def stream_answer(answer: dict[str, Any]) -> StreamAnswer:
    """One frame's answer. Raises the HandPoseError that a message without a frame announces."""
    wrong = answer.get("problem")
    if answer.get("frame") is None:
        raise problem(wrong or {})
    return StreamAnswer(
        frame_id=answer["frame"],
        estimate=estimate(answer["result"]) if answer.get("result") else None,
        error=problem(wrong) if wrong else None,
        tracked=answer.get("tracked", False),
        skipped=answer.get("skipped", 0),
        track_ids=tuple(answer.get("track_ids", ())),
    )


def problem(answer: dict[str, Any], *, retry_after_s: float | None = None) -> errors.HandPoseError:
    """The error that a problem tells of; `retry_after_s` is for one that does not say when to try again."""
    retry_after_ms = answer.get("retry_after_ms")
    return error_class(answer.get("status", 500))(
        answer["code"],
        answer.get("detail", ""),
        retry_after_s=retry_after_s if retry_after_ms is None else retry_after_ms / 1000,
        errors=[errors.FieldProblem(each["field"], each["message"]) for each in answer.get("errors", ())],
        request_id=answer.get("request_id", ""),
    )


def error_class(status: int) -> type[errors.HandPoseError]:
    """The class of the errors of an HTTP status."""
    if status in (429, 502, 503):
        return errors.TryAgainError
    if status in (408, 504):
        return errors.TimedOutError
    return errors.RejectedError if 400 <= status < 500 else errors.ServerFailedError


def _members(kind: type[T], answer: dict[str, Any]) -> T:
    """What has a default may be missing: an earlier service does not say it."""
    named = fields(kind)  # type: ignore[arg-type]  # a dataclass
    return kind(**{each.name: answer[each.name] for each in named if each.name in answer or each.default is MISSING})
