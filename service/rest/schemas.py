"""The JSON that REST speaks, field by field; the OpenAPI document is made from these descriptions.

Only shapes and words are here. Values come from `service.rest.rendering`.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from service.inference.estimates import DEFAULT_MAX_HANDS, DEFAULT_MIN_SCORE, MOST_HANDS
from service.inference.models import Variant
from service.inference.routing import RoutedBy
from service.pose import geometry

Pixels = Annotated[float, Field(description="pixels of the upright image")]
Score = Annotated[float, Field(ge=0, le=1, description="confidence, 0 to 1")]
Ms = Annotated[float, Field(ge=0, description="milliseconds")]


class Schema(BaseModel):
    """What all schemas have in common."""

    model_config = ConfigDict(frozen=True)


# Answers


class Box(Schema):
    """An axis-aligned box in pixels of the image as a person sees it (EXIF orientation applied)."""

    x: Annotated[float, Field(description="left edge, in pixels from the image's left edge")]
    y: Annotated[float, Field(description="top edge, in pixels from the image's top edge")]
    width: Pixels
    height: Pixels


class Keypoint(Schema):
    """One keypoint of one hand. It may lie outside the image; a low score is returned, never hidden."""

    id: Annotated[int, Field(ge=0, le=20, description="index in the order of GET /v1/skeleton")]
    name: Annotated[str, Field(description="anatomical name", examples=["index_tip"])]
    x: Annotated[float, Field(description="pixels from the upright image's left edge; pixel i covers [i, i + 1)")]
    y: Annotated[float, Field(description="pixels from the upright image's top edge, downwards")]
    x_norm: Annotated[float, Field(description="x / image width")]
    y_norm: Annotated[float, Field(description="y / image height")]
    score: Score
    sigma: Annotated[float, Field(ge=0, description="standard deviation of the belief about the keypoint, in pixels")]


class Handedness(Schema):
    """Which hand it is: the anatomical side as literally seen. In a mirrored picture a left hand is a right one."""

    label: Literal["left", "right"]
    score: Annotated[float, Field(ge=0.5, le=1, description="how sure that is, 0.5 to 1")]


class Hand(Schema):
    """One hand: 21 keypoints in the order of GET /v1/skeleton."""

    score: Annotated[
        float, Field(ge=0, le=1, description="how likely it is a hand, and all 21 keypoints are this one hand's")
    ]
    handedness: Annotated[Handedness | None, Field(description="null where hands were not looked for, but named")]
    box: Annotated[
        Box,
        Field(
            description="tight around the keypoints, for a hand that was found; else the region asked about: the roi"
            " inside the image, or the whole image"
        ),
    ]
    rotation_degrees: Annotated[
        float,
        Field(ge=-180, le=180, description="how far wrist to middle_mcp is turned from upright, clockwise"),
    ]
    keypoints: Annotated[list[Keypoint], Field(min_length=21, max_length=21)]


class AnsweringModel(Schema):
    """What answered."""

    name: Annotated[str, Field(description="name of the servable", examples=["cpm_lightweight"])]
    variant: Variant
    version: Annotated[int, Field(ge=1)]
    label: Annotated[str | None, Field(description="a label that points at this version", examples=["stable"])]
    routed_by: Annotated[RoutedBy, Field(description="why this model was chosen")]


class ImageSize(Schema):
    """Size of the upright image."""

    width: Annotated[int, Field(ge=1, description="pixels")]
    height: Annotated[int, Field(ge=1, description="pixels")]


class Timings(Schema):
    """Where the time went; with several hands, the longest of each."""

    decode: Ms
    detection: Ms
    queue: Ms
    inference: Ms
    postprocess: Ms
    total: Ms


class HandPose(Schema):
    """The hands of one image: one for each roi, in their order; without rois those that were found, best first.

    There may be none.
    """

    request_id: str
    model: AnsweringModel
    image: ImageSize
    hands: list[Hand]
    timings_ms: Timings


class FieldProblem(Schema):
    """One thing that is wrong with one part of the request."""

    field: Annotated[str, Field(examples=["roi[0]"])]
    message: str


class Problem(Schema):
    """An error, as RFC 9457 describes it."""

    type: Annotated[str, Field(description="identifies the kind of problem", examples=["urn:handpose:invalid_input"])]
    title: Annotated[str, Field(description="the kind of problem in words")]
    status: Annotated[int, Field(ge=400, le=599, description="the HTTP status")]
    detail: Annotated[str, Field(description="what was wrong with this request, and what is allowed")]
    instance: Annotated[str, Field(description="the path that was asked")]
    code: Annotated[str, Field(description="stable identifier for programs", examples=["invalid_roi"])]
    request_id: Annotated[str, Field(description="names this request in the service's log")]
    retry_after_ms: Annotated[int | None, Field(description="when the same request may succeed, if ever")] = None
    errors: Annotated[list[FieldProblem], Field(description="the parts of the request that are wrong")] = []


class BatchItem(Schema):
    """What became of one image of a batch: either a result or a problem."""

    index: Annotated[int, Field(ge=0, description="place of the image in the request")]
    status: Annotated[int, Field(description="the HTTP status that the image alone would have got")]
    result: HandPose | None = None
    problem: Problem | None = None


class Batch(Schema):
    """The images of a batch, in the order of the request."""

    request_id: str
    results: list[BatchItem]


class Model(Schema):
    """One version of one model that can be asked now."""

    name: Annotated[str, Field(examples=["cpm_lightweight"])]
    variant: Variant
    version: Annotated[int, Field(ge=1)]
    labels: Annotated[list[str], Field(description="names that point at this version")]
    default: Annotated[bool, Field(description="whether it answers requests that name no model")]
    input_size: Annotated[int, Field(description="side of the network's square input, in pixels")]
    stride: Annotated[int, Field(description="input pixels per belief-map cell")]
    created: Annotated[str, Field(description="when it was exported, ISO 8601")]
    parameters: Annotated[int | None, Field(description="number of parameters")]
    macs: Annotated[int | None, Field(description="multiply-accumulates of one input")]
    metrics: Annotated[dict[str, Any], Field(description="what was measured with these weights, from its model card")]
    provenance: Annotated[dict[str, Any], Field(description="what it was trained on, from its model card")]


class Models(Schema):
    """Every model that can be asked now."""

    models: list[Model]


class SkeletonKeypoint(Schema):
    """One of the 21 points."""

    id: Annotated[int, Field(ge=0, le=20)]
    name: Annotated[str, Field(examples=["index_tip"])]
    finger: Literal["wrist", "thumb", "index", "middle", "ring", "little"]
    colour: Annotated[str, Field(description="colour it is drawn in", examples=["#ff9f1c"])]


class Skeleton(Schema):
    """Which points make a hand, in which order, and which of them are joined."""

    keypoints: list[SkeletonKeypoint]
    edges: Annotated[list[tuple[int, int]], Field(description="pairs of keypoint ids that are joined")]


class Status(Schema):
    """A health check that passed."""

    status: Literal["alive", "ready"]


# Requests


class RequestedBox(BaseModel):
    """A region of interest around one hand, in pixels of the image as a person sees it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    x: Annotated[float, Field(description="left edge")]
    y: Annotated[float, Field(description="top edge")]
    width: Annotated[float, Field(description="at least 1")]
    height: Annotated[float, Field(description="at least 1")]

    def in_image(self) -> geometry.Box:
        """The same for the use case."""
        return geometry.Box(self.x, self.y, self.width, self.height)


class HandPoseRequest(BaseModel):
    """An image inside JSON."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, Field(description="the image file in base64, or as a data URI (data:image/jpeg;base64,...)")]
    rois: Annotated[
        list[RequestedBox],
        Field(
            validation_alias=AliasChoices("rois", "roi"),
            description="one box for each hand; without boxes hands are looked for",
        ),
    ] = []
    whole: Annotated[bool, Field(description="the whole image is one hand, as in the paper's protocol")] = False
    max_hands: Annotated[int, Field(description=f"hands to look for at the most, 1 to {MOST_HANDS}")] = (
        DEFAULT_MAX_HANDS
    )
    min_score: Annotated[float, Field(description="hands that are looked for and score less are left out, 0 to 1")] = (
        DEFAULT_MIN_SCORE
    )
