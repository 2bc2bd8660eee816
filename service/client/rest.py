"""The client over REST, and over WebSocket for streams. Retries are decided elsewhere."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import httpx

from service.client import answers
from service.client.errors import ConnectionFailedError, HandPoseError, ServerFailedError, TimedOutError
from service.client.tls import Tls
from service.client.transport import EncodedFrame, Headers, Search
from service.client.types import StreamAnswer, StreamOptions

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


class _Calls:
    """The calls of both transports. `_send` returns the answer; in the async transport, an awaitable of it."""

    _send: Callable[..., Any]

    def __init__(self, url: str, tls: Tls) -> None:
        self._url = url.rstrip("/")
        self._tls = tls.context() if url.startswith("https:") else None
        self._options: dict[str, Any] = {"base_url": self._url, "timeout": _CONNECT_S, "verify": self._tls or True}

    def estimate(self, image: bytes, search: Search, headers: Headers, timeout_s: float) -> Any:
        query = [("roi", f"{roi.x!r},{roi.y!r},{roi.width!r},{roi.height!r}") for roi in search.rois]
        query += _search_query(search).items()
        return self._send(answers.estimate, "POST", _ONE, headers, timeout_s, content=image, params=query)

    def estimate_batch(self, images: Sequence[bytes], search: Search, headers: Headers, timeout_s: float) -> Any:
        files = [("image", (f"{index}", image, "application/octet-stream")) for index, image in enumerate(images)]
        read, query = partial(answers.batch, images=len(images)), _search_query(search)
        return self._send(read, "POST", _BATCH, headers, timeout_s, files=files, params=query)

    def models(self, headers: Headers, timeout_s: float) -> Any:
        return self._send(answers.models, "GET", _MODELS, headers, timeout_s)


class BlockingConnection(_Calls):
    """Implements `service.client.transport.Transport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        super().__init__(url, tls)
        self._client = httpx.Client(**self._options)

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
                return  # the receiving side learns why
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                failures.append(error)
                socket.close()

        url = _stream_url(self._url, options)
        try:
            with connect(url, additional_headers=headers, ssl=self._tls, **_SOCKET_OPTIONS) as socket:
                sender = threading.Thread(target=send, args=(socket,), name="hand-pose frames", daemon=True)
                sender.start()
                try:
                    for text in socket:
                        yield _stream_answer(text)
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

    def _send(
        self, read: Callable[[Any], Any], method: str, path: str, headers: Headers, timeout_s: float, **body: Any
    ) -> Any:
        headers = _with_timeout(headers, timeout_s)
        try:
            response = self._client.request(method, path, headers=headers, timeout=timeout_s, **body)
        except httpx.HTTPError as error:
            raise _translated(error) from error
        return answers.understood(read, _json_or_error(response))


class AsyncConnection(_Calls):
    """Implements `service.client.transport.AsyncTransport`."""

    def __init__(self, url: str, tls: Tls) -> None:
        super().__init__(url, tls)
        self._client = httpx.AsyncClient(**self._options)

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
                return  # the receiving side learns why
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                failures.append(error)
                await socket.close()

        url = _stream_url(self._url, options)
        try:
            async with connect(url, additional_headers=headers, ssl=self._tls, **_SOCKET_OPTIONS) as socket:
                sender = asyncio.create_task(send(socket))
                try:
                    async for text in socket:
                        yield _stream_answer(text)
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

    async def _send(
        self, read: Callable[[Any], Any], method: str, path: str, headers: Headers, timeout_s: float, **body: Any
    ) -> Any:
        headers = _with_timeout(headers, timeout_s)
        try:
            response = await self._client.request(method, path, headers=headers, timeout=timeout_s, **body)
        except httpx.HTTPError as error:
            raise _translated(error) from error
        return answers.understood(read, _json_or_error(response))


# Requests


def _with_timeout(headers: Headers, timeout_s: float) -> dict[str, str]:
    return {**headers, _TIMEOUT_HEADER: str(max(1, round(timeout_s * 1000)))}


def _search_query(search: Search | StreamOptions) -> dict[str, str]:
    query = {"max_hands": search.max_hands, "min_score": search.min_score, "whole": "true" if search.whole else None}
    return {name: str(value) for name, value in query.items() if value is not None}


def _stream_url(url: str, options: StreamOptions) -> str:
    query = {"tracking": str(options.tracking).lower(), "latest_only": str(options.latest_only).lower()}
    query |= _search_query(options)
    if options.smoothing is not None:
        query |= {"smoothing": "on"} | {name: repr(value) for name, value in asdict(options.smoothing).items()}
    if options.frame_timeout_s is not None:
        query["frame_timeout_ms"] = repr(1000 * options.frame_timeout_s)
    return f"ws{url.removeprefix('http')}{_STREAM}?{urlencode(query)}"


def _description(frame: EncodedFrame) -> str:
    """What the service should know of the next picture."""
    return json.dumps({"id": frame.id, "time_s": frame.time_s, "rois": [asdict(roi) for roi in frame.rois]})


# Answers


def _stream_answer(text: str | bytes) -> StreamAnswer:
    return answers.understood(lambda text: answers.stream_answer(json.loads(text)), text)


def _json_or_error(response: httpx.Response) -> Any:
    try:
        answer = response.json()
    except ValueError as error:
        if response.is_success:
            raise ServerFailedError("not_json", f"{response.url} answered with something that is not JSON") from error
        answer = None
    if response.is_success:
        return answer
    # The form of this header with a date is not used by the service, and not read.
    header = response.headers.get("retry-after", "")
    retry_after_s = float(header) if header.isdecimal() else None
    if isinstance(answer, dict) and "code" in answer:
        raise answers.understood(partial(answers.problem, retry_after_s=retry_after_s), answer)
    # Not from the service: a proxy on the way, or another server at this address.
    detail = f"{response.url} answered {response.status_code}"
    raise answers.error_class(response.status_code)(f"http_{response.status_code}", detail, retry_after_s=retry_after_s)


# Errors


def _translated(error: httpx.HTTPError) -> HandPoseError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOutError("client_timeout", "the time for the call was up")
    return _unreachable(error)


def _stream_failure(error: Exception) -> HandPoseError:
    """Why a stream could not be opened: the service's own words, where it refused."""
    response = getattr(error, "response", None)
    if response is None:
        return _unreachable(error)
    try:
        return answers.problem(json.loads(response.body))
    except (ValueError, LookupError, TypeError, AttributeError):
        status = response.status_code
        return answers.error_class(status)(f"http_{status}", f"the stream was refused with status {status}")


def _unreachable(error: Exception) -> ConnectionFailedError:
    why = str(error) or type(error).__name__
    return ConnectionFailedError("connection_failed", f"the service cannot be reached: {why}")
