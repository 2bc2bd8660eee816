"""Reading and writing videos with PyAV (the extra `video`). Frames are handed on one at a time, never all at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Self

from PIL import Image

from service.cli.errors import CommandError

SUFFIXES: Final = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame: RGB, and when it is shown, in seconds from the start."""

    picture: Image.Image
    time_s: float


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known before the frames are read. `frames` is the file's own word, 0 where it does not say."""

    frames: int
    rate: Fraction


def describe(path: Path) -> VideoInfo:
    """Number and rate of the frames.

    Raises:
        CommandError: it is no video that can be read, or PyAV is missing.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return VideoInfo(stream.frames, stream.average_rate or Fraction(30))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise CommandError(f"{path}: not a video that can be read ({error})") from error


def read(path: Path) -> Iterator[VideoFrame]:
    """The frames in order. Raises CommandError where the file is damaged."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or Fraction(30)
            for index, frame in enumerate(container.decode(stream)):
                yield VideoFrame(frame.to_image(), frame.time if frame.time is not None else float(index / rate))
    except av.FFmpegError as error:
        raise CommandError(f"{path}: the video is damaged ({error})") from error


class VideoWriter:
    """Writes RGB pictures of one size as H.264 in an MP4 file.

    Args:
        path: the file to write.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._container = _av().open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        self._stream.pix_fmt = "yuv420p"
        self._sized = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sized:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()

    def write(self, picture: Image.Image) -> None:
        """Append a frame. Its sides are cut to even numbers, as the format needs."""
        even = (picture.width // 2 * 2, picture.height // 2 * 2)
        if not self._sized:
            self._stream.width, self._stream.height = even
            self._sized = True
        frame = _av().VideoFrame.from_image(picture.crop((0, 0, *even)))
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise CommandError("videos need PyAV: pip install '.[video]' in a checkout of the project") from error
    return av
