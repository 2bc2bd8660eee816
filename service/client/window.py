"""How many frames of a stream may be under way: sent, and neither answered nor skipped.

Without a bound, the buffers between client and service fill with frames, and every answer comes as late as they are
long.
"""

import threading


class Window:
    """A bound between the thread that sends and the one that takes answers.

    Args:
        size: frames under way at the most.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"at least one frame must be allowed under way, got {size}")
        self._room = size
        self._open = True
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Wait until one more frame may be sent; False once there will be no answers any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._room > 0 or not self._open)
            self._room -= 1
            return self._open

    def leave(self, frames: int) -> None:
        """So many frames have been answered or skipped."""
        with self._changed:
            self._room += frames
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody takes answers any more."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
