"""What a protocol has to offer. `service.client.rest` and `service.client.rpc` implement it, `client` uses it.

Errors are those of `service.client.errors`; foreign exceptions have been translated. Nothing is repeated here.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.client.errors import HandPoseError
from service.client.types import Estimate, Model, StreamAnswer, StreamOptions
from service.pose.geometry import Box

Headers = Mapping[str, str]
"""x-model-variant and so on, in lower case: HTTP headers and gRPC metadata have the same names."""

BatchResults = list[Estimate | HandPoseError]


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame whose picture is the bytes of an image file."""

    image: bytes
    id: int
    time_s: float | None
    rois: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Search:
    """Which hands of an image are wanted; `HandPoseClient.estimate` says what the fields mean."""

    rois: tuple[Box, ...] = ()
    max_hands: int | None = None
    min_score: float | None = None
    whole: bool = False


class Transport(Protocol):
    """A connection that blocks."""

    def estimate(self, image: bytes, search: Search, headers: Headers, timeout_s: float) -> Estimate: ...

    def estimate_batch(
        self, images: Sequence[bytes], search: Search, headers: Headers, timeout_s: float
    ) -> BatchResults: ...

    def stream(
        self, frames: Iterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> Generator[StreamAnswer, None, None]: ...

    def models(self, headers: Headers, timeout_s: float) -> list[Model]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """A connection on an event loop."""

    async def estimate(self, image: bytes, search: Search, headers: Headers, timeout_s: float) -> Estimate: ...

    async def estimate_batch(
        self, images: Sequence[bytes], search: Search, headers: Headers, timeout_s: float
    ) -> BatchResults: ...

    def stream(
        self, frames: AsyncIterable[EncodedFrame], options: StreamOptions, headers: Headers
    ) -> AsyncGenerator[StreamAnswer, None]: ...

    async def models(self, headers: Headers, timeout_s: float) -> list[Model]: ...

    async def close(self) -> None: ...
