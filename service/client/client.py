"""The clients: pictures in, estimates out, with retries. Which protocol is spoken follows from the address.

`HandPoseClient` blocks and may be shared by threads; `AsyncHandPoseClient` belongs to one event loop. They offer the
same calls.
"""

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
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

from service.client.errors import ConnectionFailedError, HandPoseError, RejectedError, TimedOutError, TryAgainError
from service.client.images import Encoding, ImageLike, to_file_bytes
from service.client.retrying import RetryPolicy
from service.client.tls import Tls
from service.client.transport import AsyncTransport, BatchResults, EncodedFrame, Headers, Transport
from service.client.types import Estimate, Frame, Model, StreamAnswer, StreamOptions
from service.client.window import Window
from service.pose.geometry import Box

DEFAULT_URL: Final = "http://127.0.0.1:8000"

_LARGEST_BATCH: Final = 12 * 1024 * 1024
"""Bytes of the images in one request of `estimate_batch`: well below the 20 MiB that the service reads by default."""

_TOO_LARGE: Final = "body_too_large"
"""The code of a request of more bytes than the service reads: each of its images may be small enough alone."""

T = TypeVar("T")


class _Common:
    """What both clients remember: who asks for what, for how long, and how stubbornly."""

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
        retries: how stubborn to be.
        sleep: how to pause between attempts.
        transport: a connection to use instead of making one from the address.
        tls: whom to trust and what to show, for https:// and grpcs://; None: trust what the system trusts.

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
        self._transport = transport or _connect(url, tls or Tls())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    ) -> Estimate:
        """Find the hands of one image.

        Args:
            image: the picture.
            rois: a box around each hand, in pixels of the upright image; none: the whole image shows one hand.
            variant: the model to ask.
            timeout_s: seconds for the call, repetitions included.
            request_id: names the request in the service's log.

        Raises:
            HandPoseError: see `service.client.errors`.
            OSError: the image's file cannot be read.
        """
        data, headers = to_file_bytes(image), self._headers(variant, request_id)
        return self._retried(lambda left_s: self._transport.estimate(data, rois, headers, left_s), timeout_s)

    def estimate_batch(
        self,
        images: Iterable[ImageLike],
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        batch_size: int = 16,
    ) -> Iterator[Estimate | HandPoseError]:
        """Find the hands of many images; each gets an estimate or an error, in their order, as batches come back.

        Args:
            images: the pictures; read batch by batch.
            variant: the model to ask.
            timeout_s: seconds for each batch, repetitions included.
            batch_size: images in one request at the most; fewer where they are large.

        Raises:
            HandPoseError: a whole batch failed.
        """
        headers = self._headers(variant)
        for batch in _batches(images, batch_size):
            results: dict[int, Estimate | HandPoseError] = {}

            def attempt(
                left_s: float, batch: list[bytes] = batch, results: dict[int, Estimate | HandPoseError] = results
            ) -> None:
                missing = [index for index in range(len(batch)) if not _is_final(results.get(index))]
                answers = self._transport.estimate_batch([batch[index] for index in missing], headers, left_s)
                results.update(zip(missing, answers, strict=True))
                _raise_if_some_should_be_sent_again(results)

            try:
                self._retried(attempt, timeout_s)
            except TryAgainError:
                if len(results) < len(batch):
                    raise
            except RejectedError as error:
                if error.code != _TOO_LARGE:
                    raise
                results.update(enumerate(self._singly(batch, variant, timeout_s, error)))
            yield from (results[index] for index in range(len(batch)))

    def _singly(
        self, batch: list[bytes], variant: str | None, timeout_s: float | None, too_large: HandPoseError
    ) -> BatchResults:
        """What becomes of the images of a batch that the service found too large."""
        if len(batch) == 1:
            return [too_large]
        results: BatchResults = []
        for image in batch:
            try:
                results.append(self.estimate(image, variant=variant, timeout_s=timeout_s))
            except ConnectionFailedError:
                raise
            except HandPoseError as error:
                results.append(error)
        return results

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
            options: tracking, smoothing, skipping.
            variant: the model to ask.
            encoding: how arrays and Pillow images travel.
            max_under_way: frames that are sent before the first of them is answered or skipped.

        Raises:
            HandPoseError: the stream ended early. A frame that fails does not end it.
        """
        window = Window(max_under_way)

        def encoded() -> Iterator[EncodedFrame]:
            source, index = iter(frames), 0
            while window.enter():
                try:
                    frame = next(source)
                except StopIteration:
                    return
                yield _encoded(frame, index, encoding)
                index += 1

        answers = self._transport.stream(encoded(), options or StreamOptions(), self._headers(variant))
        try:
            for answer in answers:
                window.leave(1 + answer.skipped)
                yield answer
        finally:
            window.close()
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
        import asyncio  # a sizeable part of this package's import, and of no use to the other client

        self._in_thread = asyncio.to_thread
        self._semaphore = asyncio.Semaphore
        self._sleep = sleep or asyncio.sleep
        self._transport = transport or _connect_async(url, tls or Tls())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    ) -> Estimate:
        """See `HandPoseClient.estimate`. Cancelling it tells the service to stop."""
        data, headers = await self._in_thread(to_file_bytes, image), self._headers(variant, request_id)
        return await self._retried(lambda left_s: self._transport.estimate(data, rois, headers, left_s), timeout_s)

    async def estimate_batch(
        self,
        images: Iterable[ImageLike],
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        batch_size: int = 16,
    ) -> AsyncIterator[Estimate | HandPoseError]:
        """See `HandPoseClient.estimate_batch`."""
        headers = self._headers(variant)
        batches = _batches(images, batch_size)
        while (batch := await self._in_thread(next, batches, None)) is not None:
            results: dict[int, Estimate | HandPoseError] = {}

            async def attempt(
                left_s: float, batch: list[bytes] = batch, results: dict[int, Estimate | HandPoseError] = results
            ) -> None:
                missing = [index for index in range(len(batch)) if not _is_final(results.get(index))]
                answers = await self._transport.estimate_batch([batch[index] for index in missing], headers, left_s)
                results.update(zip(missing, answers, strict=True))
                _raise_if_some_should_be_sent_again(results)

            try:
                await self._retried(attempt, timeout_s)
            except TryAgainError:
                if len(results) < len(batch):
                    raise
            except RejectedError as error:
                if error.code != _TOO_LARGE:
                    raise
                results.update(enumerate(await self._singly(batch, variant, timeout_s, error)))
            for index in range(len(batch)):
                yield results[index]

    async def _singly(
        self, batch: list[bytes], variant: str | None, timeout_s: float | None, too_large: HandPoseError
    ) -> BatchResults:
        """See `HandPoseClient._singly`."""
        if len(batch) == 1:
            return [too_large]
        results: BatchResults = []
        for image in batch:
            try:
                results.append(await self.estimate(image, variant=variant, timeout_s=timeout_s))
            except ConnectionFailedError:
                raise
            except HandPoseError as error:
                results.append(error)
        return results

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
        window = self._semaphore(max_under_way)

        async def encoded() -> AsyncIterator[EncodedFrame]:
            index = 0
            await window.acquire()
            async for frame in frames:
                yield await self._in_thread(_encoded, frame, index, encoding)
                index += 1
                await window.acquire()

        answers = self._transport.stream(encoded(), options or StreamOptions(), self._headers(variant))
        try:
            async for answer in answers:
                for _ in range(1 + answer.skipped):
                    window.release()
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


def _connect(url: str, tls: Tls) -> Transport:
    if _speaks_grpc(url):
        from service.client.rpc import RpcTransport

        return RpcTransport(url, tls)
    from service.client.rest import RestTransport

    return RestTransport(url, tls)


def _connect_async(url: str, tls: Tls) -> AsyncTransport:
    if _speaks_grpc(url):
        from service.client.rpc import AsyncRpcTransport

        return AsyncRpcTransport(url, tls)
    from service.client.rest import AsyncRestTransport

    return AsyncRestTransport(url, tls)


def _speaks_grpc(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.netloc:
        raise ValueError(f"an address begins with http://, https://, grpc:// or grpcs:// and names a host, got {url!r}")
    return parts.scheme.startswith("grpc")


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimedOutError("client_timeout", "the time for the call was up before it could be sent again")
    return left_s


def _batches(images: Iterable[ImageLike], size: int) -> Iterator[list[bytes]]:
    if size < 1:
        raise ValueError(f"a batch holds at least one image, got {size}")
    batch: list[bytes] = []
    for image in images:
        data = to_file_bytes(image)
        if batch and sum(map(len, batch)) + len(data) > _LARGEST_BATCH:
            yield batch
            batch = []
        batch.append(data)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_final(result: Estimate | HandPoseError | None) -> bool:
    return result is not None and not isinstance(result, TryAgainError)


def _raise_if_some_should_be_sent_again(results: dict[int, Estimate | HandPoseError]) -> None:
    turned_away = [each for each in results.values() if isinstance(each, TryAgainError)]
    if turned_away:
        raise max(turned_away, key=lambda error: error.retry_after_s or 0.0)


def _encoded(frame: ImageLike | Frame, index: int, encoding: Encoding) -> EncodedFrame:
    if not isinstance(frame, Frame):
        frame = Frame(frame)
    return EncodedFrame(
        to_file_bytes(frame.image, encoding), index if frame.id is None else frame.id, frame.time_s, frame.rois
    )
