"""The images of `estimate_batch`, cut into requests, and what has become of each."""

from collections.abc import Iterable, Iterator
from typing import Final

from service.client.errors import HandPoseError, RejectedError, TryAgainError
from service.client.images import ImageLike, to_file_bytes
from service.client.types import Estimate

_LARGEST: Final = 12 * 1024 * 1024
"""Bytes of the images in one request: well below the 20 MiB that the service reads by default."""

TOO_LARGE: Final = "body_too_large"
"""Code of a request of more bytes than the service reads: each of its images may be small enough alone."""


class Batch:
    """Images of one request, by their place in it, and the outcomes that are known.

    Args:
        images: the files to send.
        outcomes: filled in as answers come; those of images that could not be read are there already.
    """

    def __init__(self, images: dict[int, bytes], outcomes: dict[int, Estimate | HandPoseError]) -> None:
        self._images = images
        self._outcomes = outcomes

    def outcomes(self) -> list[Estimate | HandPoseError]:
        """Of all images, in their order."""
        return [self._outcomes[place] for place in sorted(self._outcomes)]

    def to_send(self) -> list[bytes]:
        """The images without a final outcome: not sent yet, or turned away for now."""
        return [self._images[place] for place in self._open()]

    def take(self, answers: list[Estimate | HandPoseError]) -> None:
        """Note the answers to `to_send`. Raises the TryAgainError with the longest wait, if some were turned away."""
        self._outcomes.update(zip(self._open(), answers, strict=True))
        turned_away = [each for each in self._outcomes.values() if isinstance(each, TryAgainError)]
        if turned_away:
            raise max(turned_away, key=lambda error: error.retry_after_s or 0.0)

    def has_an_outcome_each(self) -> bool:
        """Whether every image has an outcome, final or not."""
        return self._images.keys() <= self._outcomes.keys()

    def split(self, too_large: RejectedError) -> "list[Batch]":
        """Two halves to send instead of this batch, or none where it is a single image, which is too large."""
        places = sorted(self._images)
        if len(places) == 1:
            self._outcomes[places[0]] = too_large
            return []
        halves = places[: len(places) // 2], places[len(places) // 2 :]
        return [Batch({place: self._images[place] for place in half}, self._outcomes) for half in halves]

    def _open(self) -> list[int]:
        return [p for p in self._images if isinstance(self._outcomes.get(p), TryAgainError | None)]


def batches(images: Iterable[ImageLike], size: int) -> Iterator[Batch]:
    """Batches of at most `size` images, fewer where they are large. Images are read as batches are taken."""
    if size < 1:
        raise ValueError(f"a batch holds at least one image, got {size}")
    files: dict[int, bytes] = {}
    unreadable: dict[int, Estimate | HandPoseError] = {}
    for image in images:
        try:
            data = to_file_bytes(image)
        except (OSError, TypeError, ValueError) as error:
            unreadable[len(files) + len(unreadable)] = _unreadable(error)
        else:
            if files and sum(map(len, files.values())) + len(data) > _LARGEST:
                yield Batch(files, unreadable)
                files, unreadable = {}, {}
            files[len(files) + len(unreadable)] = data
        if len(files) + len(unreadable) == size:
            yield Batch(files, unreadable)
            files, unreadable = {}, {}
    if files or unreadable:
        yield Batch(files, unreadable)


def _unreadable(error: Exception) -> RejectedError:
    rejected = RejectedError("unreadable_file" if isinstance(error, OSError) else "no_image", str(error))
    rejected.__cause__ = error
    return rejected
