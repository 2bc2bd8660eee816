"""Makes decisions from bytes: what a fuzzer mutates becomes choices, numbers and texts."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Takes an input apart from its beginning. When it is used up, numbers are 0 and texts empty.

    Args:
        data: the input.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that have not been taken."""
        return len(self._data) - self._at

    def number(self) -> int:
        """0 to 255."""
        return next(iter(self.take(1)), 0)

    def choice(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.number() % len(options)]

    def take(self, length: int) -> bytes:
        """So many bytes, or what is left."""
        taken = self._data[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def short(self) -> bytes:
        """As many bytes as the next one says."""
        return self.take(self.number())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
