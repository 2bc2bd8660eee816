"""The clients: pictures in, estimates out, with retries. Which protocol is spoken follows from the address.

`HandPoseClient` blocks and may be shared by threads; `AsyncHandPoseClient` belongs to one event loop. They offer the
same calls.
"""

import asyncio
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from importlib import import_module
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from service.client.batches import TOO_LARGE, Batch, batches
from service.client.errors import HandPoseError, RejectedError, TimedOutError, TryAgainError
from service.client.images import Encoding, ImageLike, to_file_bytes
from service.client.retrying import RetryPolicy
from service.client.tls import Tls
from service.client.transport import AsyncTransport, EncodedFrame, Headers, Search, Transport
from service.client.types import Estimate, Frame, Model, StreamAnswer, StreamOptions
from service.pose.geometry import Box

DEFAULT_URL: Final = "http://127.0.0.1:8000"

T = TypeVar("T")


class _Common:
    """What both clients have in common: model, identity, time-out, retries."""

    def __init__(
        self,
        variant: str | None,
        client_id: str | None,
        api_key: str | None,
        timeout_s: float,
        retries: RetryPolicy | None,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ValueError("an API key is printable ASCII without blanks")  # and is not repeated here
        if not timeout_s > 0:
            raise ValueError(f"the time-out must be positive, got {timeout_s}")
        self._variant = variant
        self._client_id = client_id
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries or RetryPolicy()

    def _headers(self, variant: str | None, request_id: str | None = None) -> Headers:
        headers = {
            "x-model-variant": variant or self._variant,
            "x-client-id": self._client_id,
            "x-request-id": request_id,
            "authorization": f"Bearer {self._api_key}" if self._api_key else None,
        }
        return {name: value for name, value in headers.items() if value}


class HandPoseClient(_Common):
    """Asks a hand-pose service, and waits for the answers.

    Args:
        url: `http://` or `https://` speaks REST (and WebSocket for streams), `grpc://` or `grpcs://` speaks gRPC.
        variant: model to ask where a call names none: "standard" or "lightweight", perhaps with "@label" or "@version".
        client_id: keeps this client on one side of an A/B split.
        api_key: the key that the service asks for, where it does; sent as "Authorization: Bearer".
        timeout_s: time for a call, repetitions included, where the call gives none.
        retries: when to send a request again.
        sleep: how to pause between attempts.
        transport: a connection to use instead of making one from the address.
        tls: certificates for https:// and grpcs://; None: those that the system trusts.

    Raises:
        ValueError: the address has none of these forms, the key cannot be sent as a header, or a file of `tls` is not
            right.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        variant: str | None = None,
        client_id: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: RetryPolicy | None = None,
        sleep: Callable[[float], object] = time.sleep,
        transport: Transport | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(variant, client_id, api_key, timeout_s, retries)
        self._sleep = sleep
        self._transport = transport or _protocol(url).BlockingConnection(url, tls or Tls())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def estimate(
        self,
        image: ImageLike,
        *,
        rois: Sequence[Box] = (),
        variant: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        max_hands: int | None = None,
        min_score: float | None = None,
        whole: bool = False,
    ) -> Estimate:
        """Find the hands of one image. Without `rois` and `whole` they are looked for; there may be none.

        Args:
            image: the picture.
            rois: a box around each hand, in pixels of the upright image, clipped to it; answered in their order.
            variant: the model to ask.
            timeout_s: seconds for the call, repetitions included.
            request_id: names the request in the service's log.
            max_hands: how many hands to look for, 1 to 16; None: the service's default, 4.
            min_score: hands that are looked for and score less are left out, in [0, 1]; None: the service's default.
            whole: the whole image shows one hand, which is not looked for. Not together with `rois`.

        Raises:
            HandPoseError: see `service.client.errors`.
            OSError: the image's file cannot be read.
        """
        data, headers = to_file_bytes(image), self._headers(variant, request_id)
        search = Search(tuple(rois), max_hands, min_score, whole)
        return self._retried(lambda left_s: self._transport.estimate(data, search, headers, left_s), timeout_s)

    def estimate_batch(
        self,
        images: Iterable[ImageLike],
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        batch_size: int = 16,
        max_hands: int | None = None,
        min_score: float | None = None,
        whole: bool = False,
    ) -> Iterator[Estimate | HandPoseError]:
        """Find the hands of many images; each gets an estimate or an error, in their order, as batches come back.

        An image that cannot be read gets a RejectedError, as does one that the service rejects. To stop at the first
        error instead, raise it: `if isinstance(result, HandPoseError): raise result`.

        Args:
            images: the pictures; read batch by batch.
            variant: the model to ask.
            timeout_s: seconds for each batch, repetitions included.
            batch_size: images in one request at the most; fewer where they are large.
            max_hands, min_score, whole: of each image, as for `estimate`.

        Raises:
            HandPoseError: a whole batch failed: the service is away, has no such model, or wants another key.
        """
        search = Search((), max_hands, min_score, whole)
        for batch in batches(images, batch_size):
            self._ask(batch, search, self._headers(variant), timeout_s)
            yield from batch.outcomes()

    def _ask(self, batch: Batch, search: Search, headers: Headers, timeout_s: float | None) -> None:
        def attempt(left_s: float) -> None:
            if images := batch.to_send():
                batch.take(self._transport.estimate_batch(images, search, headers, left_s))

        try:
            self._retried(attempt, timeout_s)
        except TryAgainError:
            if not batch.has_an_outcome_each():
                raise
        except RejectedError as error:
            if error.code != TOO_LARGE:
                raise
            for half in batch.split(error):
                self._ask(half, search, headers, timeout_s)

    def stream(
        self,
        frames: Iterable[ImageLike | Frame],
        *,
        options: StreamOptions | None = None,
        variant: str | None = None,
        encoding: Encoding = "jpeg",
        max_under_way: int = 8,
    ) -> Generator[StreamAnswer, None, None]:
        """Follow hands through the frames of a video; answers come while frames are still being sent.

        Args:
            frames: pictures in order of time; taken when the service has room for them.
            options: tracking, smoothing, skipping, which hands to look for.
            variant: the model to ask.
            encoding: how arrays and Pillow images travel.
            max_under_way: frames that are sent before the first of them is answered or skipped.

        Raises:
            HandPoseError: the stream ended early. A frame that fails does not end it.
        """
        room, ended = threading.Semaphore(_positive(max_under_way)), threading.Event()

        def encoded() -> Iterator[EncodedFrame]:
            source = enumerate(frames)
            while room.acquire() and not ended.is_set() and (frame := next(source, None)) is not None:
                yield _encoded(*frame, encoding)

        answers = self._transport.stream(encoded(), options or StreamOptions(), self._headers(variant))
        try:
            for answer in answers:
                room.release(1 + answer.skipped)
                yield answer
        finally:
            ended.set()
            room.release()
            answers.close()

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that can be asked now.

        Raises:
            HandPoseError: see `service.client.errors`.
        """
        return self._retried(lambda left_s: self._transport.models(self._headers(None), left_s), timeout_s)

    def _retried(self, attempt: Callable[[float], T], timeout_s: float | None) -> T:
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        attempts = 0
        while True:
            attempts += 1
            try:
                return attempt(_left(deadline))
            except TryAgainError as error:
                pause = self._retries.pause(attempts, error, deadline - time.monotonic())
            self._sleep(pause)


class AsyncHandPoseClient(_Common):
    """As `HandPoseClient`, for `async` code. Make it and use it on one event loop."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        variant: str | None = None,
        client_id: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[object]] | None = None,
        transport: AsyncTransport | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(variant, client_id, api_key, timeout_s, retries)
        self._sleep = sleep or asyncio.sleep
        self._transport = transport or _protocol(url).AsyncConnection(url, tls or Tls())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def estimate(
        self,
        image: ImageLike,
        *,
        rois: Sequence[Box] = (),
        variant: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        max_hands: int | None = None,
        min_score: float | None = None,
        whole: bool = False,
    ) -> Estimate:
        """See `HandPoseClient.estimate`. Cancelling it tells the service to stop."""
        data, headers = await asyncio.to_thread(to_file_bytes, image), self._headers(variant, request_id)
        search = Search(tuple(rois), max_hands, min_score, whole)
        return await self._retried(lambda left_s: self._transport.estimate(data, search, headers, left_s), timeout_s)

    async def estimate_batch(
        self,
        images: Iterable[ImageLike],
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        batch_size: int = 16,
        max_hands: int | None = None,
        min_score: float | None = None,
        whole: bool = False,
    ) -> AsyncIterator[Estimate | HandPoseError]:
        """See `HandPoseClient.estimate_batch`."""
        search = Search((), max_hands, min_score, whole)
        remaining = batches(images, batch_size)
        while (batch := await asyncio.to_thread(next, remaining, None)) is not None:
            await self._ask(batch, search, self._headers(variant), timeout_s)
            for outcome in batch.outcomes():
                yield outcome

    async def _ask(self, batch: Batch, search: Search, headers: Headers, timeout_s: float | None) -> None:
        async def attempt(left_s: float) -> None:
            if images := batch.to_send():
                batch.take(await self._transport.estimate_batch(images, search, headers, left_s))

        try:
            await self._retried(attempt, timeout_s)
        except TryAgainError:
            if not batch.has_an_outcome_each():
                raise
        except RejectedError as error:
            if error.code != TOO_LARGE:
                raise
            for half in batch.split(error):
                await self._ask(half, search, headers, timeout_s)

    async def stream(
        self,
        frames: AsyncIterable[ImageLike | Frame],
        *,
        options: StreamOptions | None = None,
        variant: str | None = None,
        encoding: Encoding = "jpeg",
        max_under_way: int = 8,
    ) -> AsyncGenerator[StreamAnswer, None]:
        """See `HandPoseClient.stream`."""
        room = asyncio.Semaphore(_positive(max_under_way))

        async def encoded() -> AsyncIterator[EncodedFrame]:
            index = 0
            await room.acquire()
            async for frame in frames:
                yield await asyncio.to_thread(_encoded, index, frame, encoding)
                index += 1
                await room.acquire()

        answers = self._transport.stream(encoded(), options or StreamOptions(), self._headers(variant))
        try:
            async for answer in answers:
                for _ in range(1 + answer.skipped):
                    room.release()
                yield answer
        finally:
            await answers.aclose()

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """See `HandPoseClient.models`."""
        return await self._retried(lambda left_s: self._transport.models(self._headers(None), left_s), timeout_s)

    async def _retried(self, attempt: Callable[[float], Awaitable[T]], timeout_s: float | None) -> T:
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        attempts = 0
        while True:
            attempts += 1
            try:
                return await attempt(_left(deadline))
            except TryAgainError as error:
                pause = self._retries.pause(attempts, error, deadline - time.monotonic())
            await self._sleep(pause)


def _protocol(url: str) -> Any:
    """The module of the address's protocol, imported only now."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.netloc:
        raise ValueError(f"an address begins with http://, https://, grpc:// or grpcs:// and names a host, got {url!r}")
    return import_module(f"service.client.{'rpc' if parts.scheme.startswith('grpc') else 'rest'}")


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimedOutError("client_timeout", "the time for the call was up before it could be sent again")
    return left_s


def _positive(max_under_way: int) -> int:
    if max_under_way < 1:
        raise ValueError(f"at least one frame must be allowed under way, got {max_under_way}")
    return max_under_way


def _encoded(index: int, frame: ImageLike | Frame, encoding: Encoding) -> EncodedFrame:
    if not isinstance(frame, Frame):
        frame = Frame(frame)
    number = index if frame.id is None else frame.id
    return EncodedFrame(to_file_bytes(frame.image, encoding), number, frame.time_s, frame.rois)
