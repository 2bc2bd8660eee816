"""The client over REST, and over WebSocket for streams. Retries are decided elsewhere."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import httpx

from service.client.errors import (
    ConnectionFailedError,
    FieldProblem,
    HandPoseError,
    RejectedError,
    ServerFailedError,
    TimedOutError,
    TryAgainError,
)
from service.client.tls import Tls
from service.client.transport import BatchResults, EncodedFrame, Headers
from service.client.types import (
    Estimate,
    Hand,
    Keypoint,
    Model,
    ModelUsed,
    StreamAnswer,
    StreamOptions,
    Timings,
)
from service.pose.geometry import Box

_ONE: Final = "/v1/hand-pose"
_BATCH: Final = "/v1/hand-pose:batch"
_STREAM: Final = "/v1/hand-pose/stream"
_MODELS: Final = "/v1/models"

_CONNECT_S: Final = 10.0
_SOCKET_OPTIONS: Final[dict[str, Any]] = {
    "max_size": 16 * 1024 * 1024,
    "compression": None,  # pictures are compressed
    "open_timeout": _CONNECT_S,
    "close_timeout": 0.5,  # a service that waits for us to read answers does not read our goodbye
}
_TIMEOUT_HEADER: Final = "x-request-timeout-ms"
_END: Final = '{"end": true}'

_TIMINGS, _BOX, _KEYPOINT = (tuple(each.name for each in fields(kind)) for kind in (Timings, Box, Keypoint))

T = TypeVar("T")


class RestTransport:
    """Implements `service.client.transport.Transport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        self._url = url.rstrip("/")
        self._tls = _context(url, tls)
        self._client = httpx.Client(base_url=self._url, timeout=_CONNECT_S, verify=self._tls or True)

    def estimate(self, image: bytes, rois: Sequence[Box], headers: Headers, timeout_s: float) -> Estimate:
        return _understood(
            _estimate, self._send("POST", _ONE, headers, timeout_s, content=image, params=_roi_query(rois))
        )

    def estimate_batch(self, images: Sequence[bytes], headers: Headers, timeout_s: float) -> BatchResults:
        return _understood(
            partial(_batch, len(images)), self._send("POST", _BATCH, headers, timeout_s, files=_files(images))
        )

    def models(self, headers: Headers, timeout_s: float) -> list[Model]:
        return _understood(_models, self._send("GET", _MODELS, headers, timeout_s))

    def stream(
        self, frames: Iterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> Generator[StreamAnswer, None, None]:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import ClientConnection, connect

        failures: list[Exception] = []

        def send(socket: ClientConnection) -> None:
            try:
                for frame in frames:
                    socket.send(_description(frame))
                    socket.send(frame.image)
                socket.send(_END)
            except WebSocketException:
                return  # whoever receives learns why
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                failures.append(error)
                socket.close()

        try:
            with connect(
                _stream_url(self._url, options), additional_headers=headers, ssl=self._tls, **_SOCKET_OPTIONS
            ) as socket:
                sender = threading.Thread(target=send, args=(socket,), name="hand-pose frames", daemon=True)
                sender.start()
                try:
                    for text in socket:
                        yield _understood(_stream_answer, text)
                finally:
                    socket.close()
                    sender.join(_CONNECT_S)
        except (OSError, WebSocketException) as error:
            if not failures:
                raise _stream_failure(error) from error
        if failures:
            raise failures[0]

    def close(self) -> None:
        self._client.close()

    def _send(self, method: str, path: str, headers: Headers, timeout_s: float, **body: Any) -> Any:
        try:
            response = self._client.request(
                method, path, headers=_with_timeout(headers, timeout_s), timeout=timeout_s, **body
            )
        except httpx.HTTPError as error:
            raise _translated(error) from error
        return _json_or_error(response)


class AsyncRestTransport:
    """Implements `service.client.transport.AsyncTransport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        self._url = url.rstrip("/")
        self._tls = _context(url, tls)
        self._client = httpx.AsyncClient(base_url=self._url, timeout=_CONNECT_S, verify=self._tls or True)

    async def estimate(self, image: bytes, rois: Sequence[Box], headers: Headers, timeout_s: float) -> Estimate:
        return _understood(
            _estimate, await self._send("POST", _ONE, headers, timeout_s, content=image, params=_roi_query(rois))
        )

    async def estimate_batch(self, images: Sequence[bytes], headers: Headers, timeout_s: float) -> BatchResults:
        return _understood(
            partial(_batch, len(images)), await self._send("POST", _BATCH, headers, timeout_s, files=_files(images))
        )

    async def models(self, headers: Headers, timeout_s: float) -> list[Model]:
        return _understood(_models, await self._send("GET", _MODELS, headers, timeout_s))

    async def stream(
        self, frames: AsyncIterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> AsyncGenerator[StreamAnswer, None]:
        from websockets.asyncio.client import ClientConnection, connect
        from websockets.exceptions import WebSocketException

        failures: list[Exception] = []

        async def send(socket: ClientConnection) -> None:
            try:
                async for frame in frames:
                    await socket.send(_description(frame))
                    await socket.send(frame.image)
                await socket.send(_END)
            except WebSocketException:
                return  # whoever receives learns why
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                failures.append(error)
                await socket.close()

        try:
            async with connect(
                _stream_url(self._url, options), additional_headers=headers, ssl=self._tls, **_SOCKET_OPTIONS
            ) as socket:
                sender = asyncio.create_task(send(socket))
                try:
                    async for text in socket:
                        yield _understood(_stream_answer, text)
                finally:
                    await socket.close()
                    sender.cancel()
                    await asyncio.gather(sender, return_exceptions=True)
        except (OSError, WebSocketException) as error:
            if not failures:
                raise _stream_failure(error) from error
        if failures:
            raise failures[0]

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(self, method: str, path: str, headers: Headers, timeout_s: float, **body: Any) -> Any:
        try:
            response = await self._client.request(
                method, path, headers=_with_timeout(headers, timeout_s), timeout=timeout_s, **body
            )
        except httpx.HTTPError as error:
            raise _translated(error) from error
        return _json_or_error(response)


# Requests


def _context(url: str, tls: Tls) -> ssl.SSLContext | None:
    return tls.context() if url.startswith("https:") else None


def _with_timeout(headers: Headers, timeout_s: float) -> dict[str, str]:
    return {**headers, _TIMEOUT_HEADER: str(max(1, round(timeout_s * 1000)))}


def _roi_query(rois: Sequence[Box]) -> list[tuple[str, str]]:
    return [("roi", f"{roi.x!r},{roi.y!r},{roi.width!r},{roi.height!r}") for roi in rois]


def _files(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{index}", image, "application/octet-stream")) for index, image in enumerate(images)]


def _stream_url(url: str, options: StreamOptions) -> str:
    query: dict[str, str] = {
        "tracking": str(options.tracking).lower(),
        "latest_only": str(options.latest_only).lower(),
    }
    if options.smoothing is not None:
        query |= {
            "smoothing": "on",
            "min_cutoff_hz": repr(options.smoothing.min_cutoff_hz),
            "beta": repr(options.smoothing.beta),
            "derivative_cutoff_hz": repr(options.smoothing.derivative_cutoff_hz),
        }
    if options.frame_timeout_s is not None:
        query["frame_timeout_ms"] = repr(1000 * options.frame_timeout_s)
    return f"ws{url.removeprefix('http')}{_STREAM}?{urlencode(query)}"


def _description(frame: EncodedFrame) -> str:
    """What the service should know of the next picture."""
    rois = [{"x": roi.x, "y": roi.y, "width": roi.width, "height": roi.height} for roi in frame.rois]
    return json.dumps({"id": frame.id, "time_s": frame.time_s, "rois": rois})


# Answers. What a later version of the service adds to them is ignored.


def _understood(read: Callable[[Any], T], answer: Any) -> T:
    """The answer as a value. Raises ServerFailedError, saying what was wrong, if it has another shape."""
    try:
        return read(answer)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ServerFailedError("not_understood", f"the service's answer has another shape: {wrong}") from error


def _only(names: Iterable[str], answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in names}


def _estimate(answer: dict[str, Any]) -> Estimate:
    model, image = answer["model"], answer["image"]
    return Estimate(
        request_id=answer["request_id"],
        model=ModelUsed(model["name"], model["variant"], model["version"], model.get("label"), model["routed_by"]),
        image_size=(image["width"], image["height"]),
        hands=tuple(_hand(each) for each in answer["hands"]),
        timings_ms=Timings(**_only(_TIMINGS, answer["timings_ms"])),
    )


def _hand(answer: dict[str, Any]) -> Hand:
    return Hand(
        score=answer["score"],
        box=Box(**_only(_BOX, answer["box"])),
        keypoints=tuple(Keypoint(**_only(_KEYPOINT, each)) for each in answer["keypoints"]),
    )


def _batch(images: int, answer: dict[str, Any]) -> BatchResults:
    if len(answer["results"]) != images:
        raise ValueError(f"{len(answer['results'])} results for {images} images")
    return [
        _estimate(each["result"]) if each.get("result") else _problem(each["problem"]) for each in answer["results"]
    ]


def _models(answer: dict[str, Any]) -> list[Model]:
    return [_model(each) for each in answer["models"]]


def _model(answer: dict[str, Any]) -> Model:
    return Model(
        name=answer["name"],
        variant=answer["variant"],
        version=answer["version"],
        labels=tuple(answer["labels"]),
        input_size=answer["input_size"],
        stride=answer["stride"],
        parameters=answer.get("parameters"),
        created=answer.get("created", ""),
        metrics=answer.get("metrics", {}),
    )


def _stream_answer(text: str | bytes) -> StreamAnswer:
    """One frame's answer. Raises the HandPoseError that a message without a frame announces."""
    answer = json.loads(text)
    problem = answer.get("problem")
    if answer.get("frame") is None:
        raise _problem(problem)
    return StreamAnswer(
        frame_id=answer["frame"],
        estimate=_estimate(answer["result"]) if answer.get("result") else None,
        error=_problem(problem) if problem else None,
        tracked=answer.get("tracked", False),
        skipped=answer.get("skipped", 0),
        track_ids=tuple(answer.get("track_ids", ())),
    )


# Errors


def _json_or_error(response: httpx.Response) -> Any:
    try:
        answer = response.json()
    except ValueError as error:
        if response.is_success:
            raise ServerFailedError("not_json", f"{response.url} answered with something that is not JSON") from error
        answer = None
    if response.is_success:
        return answer
    if isinstance(answer, dict) and "code" in answer:
        raise _understood(lambda problem: _problem(problem, response), answer)
    # Not from the service: a proxy on the way, or another server at this address.
    retry_after_s = _seconds(response.headers.get("retry-after"))
    raise _class_of(response.status_code)(
        f"http_{response.status_code}", f"{response.url} answered {response.status_code}", retry_after_s=retry_after_s
    )


def _problem(problem: dict[str, Any], response: httpx.Response | None = None) -> HandPoseError:
    retry_after_ms = problem.get("retry_after_ms")
    header = _seconds(response.headers.get("retry-after")) if response is not None else None
    return _class_of(problem.get("status", 500))(
        problem["code"],
        problem.get("detail", ""),
        retry_after_s=header if retry_after_ms is None else retry_after_ms / 1000,
        errors=[FieldProblem(each["field"], each["message"]) for each in problem.get("errors", ())],
        request_id=problem.get("request_id", ""),
    )


def _class_of(status: int) -> type[HandPoseError]:
    if status in (429, 502, 503):
        return TryAgainError
    if status in (408, 504):
        return TimedOutError
    return RejectedError if 400 <= status < 500 else ServerFailedError


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; the form with a date is not used by the service, and not read."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _translated(error: httpx.HTTPError) -> HandPoseError:
    if isinstance(error, httpx.ConnectTimeout):
        return _unreachable(error)
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError("client_timeout", "the time for the call was up")
    return _unreachable(error)


def _stream_failure(error: Exception) -> HandPoseError:
    """Why a stream could not be opened: the service's own words, where it refused."""
    response = getattr(error, "response", None)
    if response is None:
        return _unreachable(error)
    try:
        return _problem(json.loads(response.body))
    except (ValueError, LookupError, TypeError, AttributeError):
        return _class_of(response.status_code)(
            f"http_{response.status_code}", f"the stream was refused with status {response.status_code}"
        )


def _unreachable(error: Exception) -> ConnectionFailedError:
    return ConnectionFailedError(
        "connection_failed", f"the service cannot be reached: {str(error) or type(error).__name__}"
    )
