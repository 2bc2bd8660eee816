import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Box(_message.Message):
    __slots__ = ("x", "y", "width", "height")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    width: float
    height: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., width: _Optional[float] = ..., height: _Optional[float] = ...) -> None: ...

class EstimateRequest(_message.Message):
    __slots__ = ("image", "rois", "max_hands", "min_score", "whole")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ROIS_FIELD_NUMBER: _ClassVar[int]
    MAX_HANDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    rois: _containers.RepeatedCompositeFieldContainer[Box]
    max_hands: int
    min_score: float
    whole: bool
    def __init__(self, image: _Optional[bytes] = ..., rois: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., max_hands: _Optional[int] = ..., min_score: _Optional[float] = ..., whole: _Optional[bool] = ...) -> None: ...

class Keypoint(_message.Message):
    __slots__ = ("id", "name", "x", "y", "x_norm", "y_norm", "score", "sigma")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    X_NORM_FIELD_NUMBER: _ClassVar[int]
    Y_NORM_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    x: float
    y: float
    x_norm: float
    y_norm: float
    score: float
    sigma: float
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., x: _Optional[float] = ..., y: _Optional[float] = ..., x_norm: _Optional[float] = ..., y_norm: _Optional[float] = ..., score: _Optional[float] = ..., sigma: _Optional[float] = ...) -> None: ...

class Handedness(_message.Message):
    __slots__ = ("label", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Hand(_message.Message):
    __slots__ = ("score", "box", "keypoints", "handedness", "rotation_degrees")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    KEYPOINTS_FIELD_NUMBER: _ClassVar[int]
    HANDEDNESS_FIELD_NUMBER: _ClassVar[int]
    ROTATION_DEGREES_FIELD_NUMBER: _ClassVar[int]
    score: float
    box: Box
    keypoints: _containers.RepeatedCompositeFieldContainer[Keypoint]
    handedness: Handedness
    rotation_degrees: float
    def __init__(self, score: _Optional[float] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., keypoints: _Optional[_Iterable[_Union[Keypoint, _Mapping]]] = ..., handedness: _Optional[_Union[Handedness, _Mapping]] = ..., rotation_degrees: _Optional[float] = ...) -> None: ...

class ModelUsed(_message.Message):
    __slots__ = ("name", "variant", "version", "label", "routed_by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ROUTED_BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    variant: str
    version: int
    label: str
    routed_by: str
    def __init__(self, name: _Optional[str] = ..., variant: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ..., routed_by: _Optional[str] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "inference_ms", "postprocess_ms", "total_ms", "detection_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    DETECTION_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    inference_ms: float
    postprocess_ms: float
    total_ms: float
    detection_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., postprocess_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., detection_ms: _Optional[float] = ...) -> None: ...

class EstimateResponse(_message.Message):
    __slots__ = ("request_id", "model", "image", "hands", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HANDS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: ModelUsed
    image: ImageSize
    hands: _containers.RepeatedCompositeFieldContainer[Hand]
    timings: Timings
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[_Union[ModelUsed, _Mapping]] = ..., image: _Optional[_Union[ImageSize, _Mapping]] = ..., hands: _Optional[_Iterable[_Union[Hand, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class EstimateBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[EstimateRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[EstimateRequest, _Mapping]]] = ...) -> None: ...

class EstimateBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EstimateResult]
    def __init__(self, results: _Optional[_Iterable[_Union[EstimateResult, _Mapping]]] = ...) -> None: ...

class EstimateResult(_message.Message):
    __slots__ = ("estimate", "problem")
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    estimate: EstimateResponse
    problem: Problem
    def __init__(self, estimate: _Optional[_Union[EstimateResponse, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "detail", "status", "retry_after", "errors")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    status: int
    retry_after: _duration_pb2.Duration
    errors: _containers.RepeatedCompositeFieldContainer[FieldProblem]
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., status: _Optional[int] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[FieldProblem, _Mapping]]] = ...) -> None: ...

class FieldProblem(_message.Message):
    __slots__ = ("field", "message")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    field: str
    message: str
    def __init__(self, field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class EstimateStreamRequest(_message.Message):
    __slots__ = ("options", "frame")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    options: StreamOptions
    frame: Frame
    def __init__(self, options: _Optional[_Union[StreamOptions, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class StreamOptions(_message.Message):
    __slots__ = ("tracking", "smoothing", "latest_only", "frame_timeout", "max_hands", "min_score", "whole")
    TRACKING_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    LATEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    FRAME_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_HANDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    tracking: bool
    smoothing: OneEuro
    latest_only: bool
    frame_timeout: _duration_pb2.Duration
    max_hands: int
    min_score: float
    whole: bool
    def __init__(self, tracking: _Optional[bool] = ..., smoothing: _Optional[_Union[OneEuro, _Mapping]] = ..., latest_only: _Optional[bool] = ..., frame_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_hands: _Optional[int] = ..., min_score: _Optional[float] = ..., whole: _Optional[bool] = ...) -> None: ...

class OneEuro(_message.Message):
    __slots__ = ("min_cutoff_hz", "beta", "derivative_cutoff_hz")
    MIN_CUTOFF_HZ_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    DERIVATIVE_CUTOFF_HZ_FIELD_NUMBER: _ClassVar[int]
    min_cutoff_hz: float
    beta: float
    derivative_cutoff_hz: float
    def __init__(self, min_cutoff_hz: _Optional[float] = ..., beta: _Optional[float] = ..., derivative_cutoff_hz: _Optional[float] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("image", "id", "time_s", "rois")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    ROIS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    id: int
    time_s: float
    rois: _containers.RepeatedCompositeFieldContainer[Box]
    def __init__(self, image: _Optional[bytes] = ..., id: _Optional[int] = ..., time_s: _Optional[float] = ..., rois: _Optional[_Iterable[_Union[Box, _Mapping]]] = ...) -> None: ...

class EstimateStreamResponse(_message.Message):
    __slots__ = ("frame_id", "tracked", "skipped", "estimate", "problem", "track_ids")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    TRACKED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TRACK_IDS_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    tracked: bool
    skipped: int
    estimate: EstimateResponse
    problem: Problem
    track_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, frame_id: _Optional[int] = ..., tracked: _Optional[bool] = ..., skipped: _Optional[int] = ..., estimate: _Optional[_Union[EstimateResponse, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., track_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "variant", "version", "labels", "input_size", "stride", "parameters", "created", "metrics_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    METRICS_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    variant: str
    version: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    input_size: int
    stride: int
    parameters: int
    created: str
    metrics_json: str
    def __init__(self, name: _Optional[str] = ..., variant: _Optional[str] = ..., version: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., input_size: _Optional[int] = ..., stride: _Optional[int] = ..., parameters: _Optional[int] = ..., created: _Optional[str] = ..., metrics_json: _Optional[str] = ...) -> None: ...
