"""Images from bytes to crops, off the event loop and within a byte budget.

`ImageDecoder.open` holds memory for the picture for as long as its block runs. The first use of the picture decodes it,
in the same thread. How a file is decoded is `service.pose.images`; which model sees it is not known here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Final, TypeVar

from service.inference.byte_budget import ByteBudget
from service.inference.errors import (
    DeadlineExceededError,
    TooLargeError,
    UndecodableImageError,
    UnsupportedTypeError,
)
from service.inference.ports import Clock
from service.inference.regions import Region
from service.pose.images import (
    DecodedImage,
    ImageError,
    ImageTooLargeError,
    OpenedImage,
    UnsupportedImageError,
    open_image,
)
from service.pose.preprocessing import Crop, crop

T = TypeVar("T")

SMALL_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""An image that takes no more than this to decode never waits behind larger ones."""

LARGE_IMAGES_BYTES: Final = 512 * 1024 * 1024
"""What larger images may take by default while they are open: one of 50 megapixels at a time."""


class ImageDecoder:
    """Decodes images in threads.

    Small and large images have budgets of their own, and large ones leave one thread free, so that a poster does not
    keep snapshots waiting.

    Args:
        workers: the threads.
        threads: how many they are.
        clock: time and timers; deadlines are in its time.
        max_pixels: width x height of an image, at most.
        large_images_bytes: what images above `SMALL_IMAGE_BYTES` may take, all together.
    """

    def __init__(
        self,
        workers: Executor,
        clock: Clock,
        *,
        threads: int = 1,
        max_pixels: int = 50_000_000,
        large_images_bytes: int = LARGE_IMAGES_BYTES,
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._max_pixels = max_pixels
        self._large_threads = asyncio.Semaphore(max(1, threads - 1))
        self.small = ByteBudget(threads * SMALL_IMAGE_BYTES)
        self.large = ByteBudget(large_images_bytes)

    @asynccontextmanager
    async def open(
        self, data: bytes, *, deadline: float, longest_side: Callable[[tuple[int, int]], int] | None = None
    ) -> AsyncIterator["UprightImage"]:
        """Read an image's header, wait for memory to decode it, and hold that while the block runs.

        Args:
            data: the bytes of an image file.
            deadline: the clock's time after which there is no use in it.
            longest_side: how many pixels its longer side needs, from the (width, height) of the upright image; a JPEG
                is decoded at a half, a quarter or an eighth of its size where that is enough. None: all of them.

        Raises:
            UnsupportedTypeError, UndecodableImageError, TooLargeError: what is wrong with the image.
            DeadlineExceededError: it could not be decoded in time.
        """
        opened = await self.run(self._read_header, data, deadline, longest_side)
        needed = opened.bytes_needed
        is_small = needed <= SMALL_IMAGE_BYTES
        budget = self.small if is_small else self.large
        if needed > budget.limit:
            raise TooLargeError(
                f"decoding this image would take {needed >> 20} MiB of memory, and at most {budget.limit >> 20} are"
                " allowed; send it smaller",
                code="too_many_pixels",
            )
        async with budget.wait_for(needed, deadline=deadline, clock=self._clock):
            image = UprightImage(opened, deadline, self)
            try:
                async with nullcontext() if is_small else self._large_threads:
                    yield image
            finally:
                image.close()  # whoever still holds it holds no pixels: their memory is given back now

    def decode(self, opened: OpenedImage, deadline: float) -> DecodedImage:
        """Decode the pixels; blocks. Raises UndecodableImageError, or DeadlineExceededError if it is too late."""
        self._check_time(deadline)
        with _image_errors():
            return opened.decode()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in one of the threads. If cancelled, this ends once the call has: threads cannot be stopped.

        So what the caller holds for the call, such as memory, stays held for as long as it is in use.
        """
        work = self._workers.submit(function, *arguments)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            ended = asyncio.wrap_future(work)
            while not ended.done():
                try:
                    await asyncio.wait([ended])
                except asyncio.CancelledError:
                    continue
            raise
        finally:
            del work  # an exception in it refers to this frame: without this, only garbage collection frees the image

    def _read_header(
        self, data: bytes, deadline: float, longest_side: Callable[[tuple[int, int]], int] | None
    ) -> OpenedImage:
        self._check_time(deadline)
        with _image_errors():
            return open_image(data, max_pixels=self._max_pixels, longest_side=longest_side)

    def _check_time(self, deadline: float) -> None:
        if self._clock.time() >= deadline:
            raise DeadlineExceededError("the request's time was up before its image could be decoded")


class UprightImage:
    """A picture as a person sees it, inside the block of `ImageDecoder.open`. Its first use decodes it.

    Attributes:
        size: (width, height) of the full picture in pixels.
    """

    def __init__(self, opened: OpenedImage, deadline: float, decoder: ImageDecoder) -> None:
        self._opened: OpenedImage | None = opened
        self._deadline = deadline
        self._decoder = decoder
        self._decoded: DecodedImage | None = None
        self.size: Final = (opened.width, opened.height)

    async def apply(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread, with the decoded picture as its first argument.

        Raises:
            UndecodableImageError, DeadlineExceededError: it cannot be decoded, or not in time.
            ValueError: the block has ended.
        """
        return await self._decoder.run(self._apply, function, *arguments)

    async def crops(self, regions: Sequence[Region], input_size: tuple[int, int]) -> list[Crop]:
        """Each region as a model of this input size, (width, height) in pixels, sees it."""
        return await self.apply(_crops, regions, input_size)

    def close(self) -> None:
        """Let go of the picture."""
        self._opened = self._decoded = None

    def _apply(self, function: Callable[..., T], *arguments: object) -> T:
        if self._opened is None:
            raise ValueError("the picture was let go of when its block ended")
        if self._decoded is None:
            self._decoded = self._decoder.decode(self._opened, self._deadline)
        return function(self._decoded, *arguments)


def _crops(image: DecodedImage, regions: Sequence[Region], input_size: tuple[int, int]) -> list[Crop]:
    return [crop(image, region.shown_in_image, input_size, radians=region.radians) for region in regions]


@contextmanager
def _image_errors() -> Iterator[None]:
    """Errors about an image become those of the tree."""
    try:
        yield
    except UnsupportedImageError as error:
        raise UnsupportedTypeError(str(error), code="unsupported_image_format") from error
    except ImageTooLargeError as error:
        raise TooLargeError(str(error), code="too_many_pixels") from error
    except ImageError as error:
        raise UndecodableImageError(str(error)) from error
