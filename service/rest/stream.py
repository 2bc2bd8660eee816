"""Streams of frames over WebSocket, for browsers: image files in as binary messages, JSON out as text messages.

`WS /v1/hand-pose/stream`. Options come as query parameters, because a browser cannot set headers on a WebSocket. A text
message before a binary one describes that frame (`FrameDescription`); `{"end": true}` says that no more frames come,
and the connection is closed with 1000 once all are answered. Everything between is `service.inference.streaming`.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.inference.errors import (
    ErrorKind,
    FieldError,
    ServiceError,
    TooLargeError,
)
from service.inference.estimates import DEFAULT_MAX_HANDS, DEFAULT_MIN_SCORE, MOST_HANDS
from service.inference.ports import Clock
from service.inference.requests import (
    RequestObserver,
    StreamReport,
    as_service_error,
    client_id_from,
    request_id_from,
)
from service.inference.streaming import Frame, FrameAnswer, StreamOptions, Streams
from service.pose.tracking import LARGEST_PARAMETER, OneEuro
from service.rest.access import STREAM_PROTOCOL
from service.rest.problems import invalid_fields, problem_of
from service.rest.rendering import hand_pose
from service.rest.schemas import HandPose, Problem, RequestedBox, Schema

PATH: Final = "/v1/hand-pose/stream"

CLOSE_CODES: Final[Mapping[ErrorKind, int]] = {
    ErrorKind.UNAVAILABLE: 1012,  # service restart
    ErrorKind.OVERLOADED: 1013,  # try again later
    ErrorKind.INTERNAL: 1011,
}
"""How a stream that cannot go on is closed; 1008 (policy violation) for whatever the client did wrong."""

_POLICY_VIOLATION: Final = 1008
_MAX_DESCRIPTION: Final = 16 * 1024  # characters; a roi takes less than two hundred
_DEFAULT_FILTER: Final = OneEuro()

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StreamQuery(BaseModel):
    """The query parameters of a stream."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    variant: Annotated[str | None, Field(description="as X-Model-Variant, which counts where this is absent")] = None
    client_id: str | None = None
    tracking: Annotated[bool, Field(description="follow hands from frame to frame")] = True
    max_hands: Annotated[int, Field(ge=1, le=MOST_HANDS, description="hands to look for and to follow")] = (
        DEFAULT_MAX_HANDS
    )
    min_score: Annotated[float, Field(ge=0, le=1, description="leaves out hands that score less")] = DEFAULT_MIN_SCORE
    whole: Annotated[bool, Field(description="every frame shows one hand as a whole; nothing is followed")] = False
    smoothing: Annotated[Literal["off", "on"], Field(description="one-euro filter on the keypoints")] = "off"
    min_cutoff_hz: Annotated[float, Field(gt=0, le=LARGEST_PARAMETER)] = _DEFAULT_FILTER.min_cutoff_hz
    beta: Annotated[float, Field(ge=0, le=LARGEST_PARAMETER)] = _DEFAULT_FILTER.beta
    derivative_cutoff_hz: Annotated[float, Field(gt=0, le=LARGEST_PARAMETER)] = _DEFAULT_FILTER.derivative_cutoff_hz
    latest_only: Annotated[bool, Field(description="answer the newest frame and skip those it overtook")] = False
    frame_timeout_ms: Annotated[float | None, Field(gt=0)] = None

    def options(self, headers: Mapping[str, str]) -> StreamOptions:
        """What the use case makes of them; headers count where a parameter is absent."""
        return StreamOptions(
            asked_for=self.variant or headers.get("x-model-variant"),
            client_id=client_id_from(self.client_id or headers.get("x-client-id"), "client_id"),
            tracking=self.tracking,
            max_hands=self.max_hands,
            min_score=self.min_score,
            whole=self.whole,
            smoothing=OneEuro(self.min_cutoff_hz, self.beta, self.derivative_cutoff_hz)
            if self.smoothing == "on"
            else None,
            latest_only=self.latest_only,
            frame_timeout_s=None if self.frame_timeout_ms is None else self.frame_timeout_ms / 1000,
        )


class FrameDescription(BaseModel):
    """A text message: what is known of the next binary message, or that there is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: Annotated[int | None, Field(description="returned with the answer; frames are counted from 0 without it")] = (
        None
    )
    time_s: Annotated[float | None, Field(description="when it was taken, on any clock that goes forward")] = None
    rois: Annotated[tuple[RequestedBox, ...], Field(description="tracking starts afresh from these boxes")] = ()
    end: Annotated[bool, Field(description="no more frames come")] = False


class StreamAnswer(Schema):
    """A message of the service's: what became of one frame, or, without a frame, why the stream ends."""

    frame: Annotated[int | None, Field(description="the frame's id")] = None
    tracked: Annotated[bool, Field(description="whether the crops came from the frame before")] = False
    skipped: Annotated[int, Field(description="frames skipped since the last answer")] = 0
    track_ids: Annotated[tuple[int, ...], Field(description="one for each hand; 0: not followed further")] = ()
    result: HandPose | None = None
    problem: Problem | None = None


def stream_routes(*, streams: Streams, observer: RequestObserver, clock: Clock) -> APIRouter:
    """The WebSocket of the API.

    Args:
        streams: answers frames.
        observer: is told of every stream and every frame.
        clock: time.
    """
    router = APIRouter()

    @router.websocket(PATH)
    async def stream_hands(websocket: WebSocket) -> None:
        connection = _Connection(websocket, observer, clock)
        await websocket.accept(
            subprotocol=STREAM_PROTOCOL if STREAM_PROTOCOL in websocket.scope["subprotocols"] else None,
            headers=[(b"x-request-id", connection.request_id.encode())],
        )
        trace = observer.request(
            f"GET {PATH}",
            request_id=connection.request_id,
            caller=websocket.headers.get("traceparent"),
            attributes={"http.request.method": "GET", "http.route": PATH},
        )
        with trace, observer.in_flight():
            try:
                query = _valid(StreamQuery.model_validate, dict(websocket.query_params), "invalid_options")
                options = query.options(websocket.headers)
                connection.report.asked_for = options.asked_for
                await streams.run(options, connection.frames(), connection.send)
            except (WebSocketDisconnect, OSError):
                return  # the client has gone; nobody is left to be told
            except Exception as error:  # noqa: BLE001 -- whatever it is, the client must learn how its stream ended
                await connection.end(as_service_error(error))
            else:
                await websocket.close(1000)

    return router


class _Connection:
    """One WebSocket: frames from its messages, messages from answers."""

    def __init__(self, websocket: WebSocket, observer: RequestObserver, clock: Clock) -> None:
        self._websocket = websocket
        self.request_id = request_id_from(websocket.headers.get("x-request-id"))
        self.report = StreamReport(observer, clock, self.request_id)

    async def frames(self) -> AsyncIterator[Frame]:
        """What the client sends. WebSocketDisconnect ends everything at once, `{"end": true}` after the last answer."""
        described, number = FrameDescription(), 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            image = message.get("bytes")
            if image is None:
                text = message.get("text") or ""
                if len(text) > _MAX_DESCRIPTION:
                    raise TooLargeError(
                        f"the description has {len(text)} characters; at most {_MAX_DESCRIPTION} are read",
                        code="description_too_long",
                    )
                described = _valid(FrameDescription.model_validate_json, text, "invalid_frame_description")
                if described.end:
                    return
                continue
            yield Frame(
                image=image,
                id=number if described.id is None else described.id,
                time_s=described.time_s,
                rois=tuple(each.in_image() for each in described.rois),
            )
            described, number = FrameDescription(), number + 1

    async def send(self, answer: FrameAnswer) -> None:
        """Returns when the connection has room for more."""
        self.report.frame_answered(answer)
        frame, skipped, outcome = answer.frame_id, answer.skipped, answer.outcome
        if isinstance(outcome, ServiceError):
            await self._say(
                StreamAnswer(
                    frame=frame, skipped=skipped, problem=problem_of(outcome, instance=PATH, request_id=self.request_id)
                )
            )
            return
        result = hand_pose(outcome.estimate, self.request_id)
        await self._say(
            StreamAnswer(
                frame=frame, skipped=skipped, tracked=outcome.tracked, track_ids=outcome.track_ids, result=result
            )
        )

    async def end(self, error: ServiceError) -> None:
        """Say why the stream cannot go on, and close it."""
        self.report.failed(error)
        try:
            await self._say(StreamAnswer(problem=problem_of(error, instance=PATH, request_id=self.request_id)))
            await self._websocket.close(CLOSE_CODES.get(error.kind, _POLICY_VIOLATION), error.code)
        except (WebSocketDisconnect, OSError, RuntimeError):
            logger.debug("the client left before the end of its stream", extra={"request_id": self.request_id})

    async def _say(self, message: StreamAnswer) -> None:
        await self._websocket.send_text(message.model_dump_json(exclude_none=True))


def _valid(validate: Callable[[Any], T], given: object, code: str) -> T:
    """What is validated; InvalidInputError with this code if it cannot be."""
    try:
        return validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)[:16]
        fields = (FieldError(".".join(map(str, each["loc"])) or "message", each["msg"]) for each in details)
        raise invalid_fields(code, *fields) from error
