"""`handpose estimate`: pictures, folders of pictures and videos; text or JSON out, overlays where they are wanted."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from service.cli import video
from service.cli.connection import connected
from service.cli.errors import CommandError
from service.cli.output import as_json, as_text, error_as_json
from service.client import AsyncHandPoseClient, Estimate, Frame, HandPoseError, OneEuro, StreamOptions, draw
from service.pose.drawing import draw_hand
from service.pose.images import ImageError, UnsupportedImageError, open_image

_BATCH: Final = 8
_HEAD_BYTES: Final = 64 * 1024  # enough of a file to tell what it is
_OVERLAY_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".mp4"})


async def estimate(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    pictures, videos = _inputs(parsed.files)
    if parsed.roi and (videos or len(pictures) != 1):
        raise CommandError("--roi is for a single picture")
    overlays = None if parsed.save is None else _Overlays(parsed.save, pictures, videos)
    infos = {path: video.describe(path) for path in videos}
    async with connected(parsed) as client:
        with _progress() as progress:
            report = _Report(parsed.json, progress)
            if pictures:
                task = progress.add_task("pictures", total=len(pictures))
                await _pictures(client, pictures, parsed, overlays, report, task)
            options = StreamOptions(
                tracking=not parsed.no_tracking,
                smoothing=OneEuro() if parsed.smooth else None,
                max_hands=parsed.max_hands,
                min_score=parsed.min_score,
                whole=parsed.whole,
            )
            for path, info in infos.items():
                task = progress.add_task(path.name, total=info.frames or None)
                target = None if overlays is None else overlays.path_for(path, ".mp4")
                await _video(client, path, info, options, target, report, task)
    return 1 if report.failures else 0


class _Report:
    """Prints what was found, past the progress bar."""

    def __init__(self, json_wanted: bool, progress: Progress) -> None:
        self._json = json_wanted
        self._progress = progress
        self.failures = 0

    def picture(self, path: Path, outcome: Estimate | HandPoseError) -> None:
        self._outcome({"file": str(path)}, str(path), outcome)

    def frame(self, path: Path, index: int, time_s: float, tracked: bool, outcome: Estimate | HandPoseError) -> None:
        details = {"file": str(path), "frame": index, "time_s": round(time_s, 4), "tracked": tracked}
        if self._json or isinstance(outcome, HandPoseError):
            self._outcome(details, f"{path} frame {index}", outcome)

    def line(self, text: str) -> None:
        """Something for people only."""
        if not self._json:
            self._print(text)

    def saved(self, path: Path) -> None:
        self.line(f"  saved {path}")

    def advance(self, task: TaskID) -> None:
        """Move the bar on by one."""
        self._progress.advance(task)

    def _outcome(self, details: dict[str, Any], name: str, outcome: Estimate | HandPoseError) -> None:
        if isinstance(outcome, Estimate):
            self._print(json.dumps(details | as_json(outcome)) if self._json else as_text(name, outcome))
            return
        self.failures += 1
        if self._json:
            self._print(json.dumps(details | {"error": error_as_json(outcome)}))
        else:
            print(f"{name}: {outcome}", file=sys.stderr)

    def _print(self, text: str) -> None:
        # Past the bar where both are on one terminal; never wrapped or coloured.
        if self._progress.console.is_terminal and sys.stdout.isatty():
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)


class _Overlays:
    """Where this run saves what it draws: in the one file that was named, or in a folder.

    In a folder hand.jpg becomes hand_hand.png, another folder's hand.jpg hand_hand_2.png. What an earlier run left is
    written over.
    """

    def __init__(self, target: Path, pictures: Sequence[Path], videos: Sequence[Path]) -> None:
        self._target = target
        self._is_file = target.suffix.lower() in _OVERLAY_SUFFIXES and not target.is_dir()
        self._taken: set[str] = set()
        if self._is_file and len(pictures) + len(videos) > 1:
            raise CommandError(f"--save {target}: a file holds one picture or video; name a folder for more")
        if self._is_file and (target.suffix.lower() == ".mp4") != bool(videos):
            raise CommandError(f"--save {target}: a picture is saved as .png, .jpg or .webp, a video as .mp4")
        (target.parent if self._is_file else target).mkdir(parents=True, exist_ok=True)

    def path_for(self, source: Path, suffix: str) -> Path:
        """Where to save what was drawn on a source."""
        if self._is_file:
            return self._target
        stem, number = f"{source.stem}_hand", 1
        name = f"{stem}{suffix}"
        while name.casefold() in self._taken:  # to some file systems Hand and hand are one name
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._taken.add(name.casefold())
        return self._target / name


def _inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures and videos, with folders opened. Raises CommandError for what does not exist or holds nothing."""
    pictures: list[Path] = []
    videos: list[Path] = []
    for path in paths:
        if path.is_dir():
            pictures += _pictures_in(path)
        elif not path.exists():
            raise CommandError(f"{path}: no such file or folder")
        else:
            (videos if path.suffix.lower() in video.SUFFIXES else pictures).append(path)
    return pictures, videos


def _pictures_in(folder: Path) -> list[Path]:
    """The files of a folder that look like pictures, by their content; names the others on standard error."""
    files = sorted(each for each in folder.iterdir() if each.is_file())
    left_out = [each for each in files if each.name.startswith(".") or not _looks_like_a_picture(each)]
    if left_out:
        names = ", ".join(each.name for each in left_out)
        print(f"{folder}: left out {len(left_out)} of {len(files)} files, no pictures: {names}", file=sys.stderr)
    if len(left_out) == len(files):
        raise CommandError(f"{folder}: no picture in this folder")
    return [each for each in files if each not in left_out]


def _looks_like_a_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            open_image(file.read(_HEAD_BYTES))
    except UnsupportedImageError:
        return False
    except (ImageError, OSError):  # damaged, too large or unreadable: tried, so that it gets its error
        return True
    return True


async def _pictures(
    client: AsyncHandPoseClient,
    paths: Sequence[Path],
    parsed: argparse.Namespace,
    overlays: _Overlays | None,
    report: _Report,
    task: TaskID,
) -> None:
    remaining = iter(paths)
    async for outcome in _outcomes(client, paths, parsed):
        path = next(remaining)
        report.picture(path, outcome)
        if isinstance(outcome, Estimate) and overlays is not None:
            target = overlays.path_for(path, ".png")
            (await asyncio.to_thread(draw, path, outcome)).save(target)
            report.saved(target)
        report.advance(task)


async def _outcomes(
    client: AsyncHandPoseClient, paths: Sequence[Path], parsed: argparse.Namespace
) -> AsyncIterator[Estimate | HandPoseError]:
    search = {"max_hands": parsed.max_hands, "min_score": parsed.min_score, "whole": parsed.whole}
    if not parsed.roi:
        async for outcome in client.estimate_batch(paths, batch_size=_BATCH, **search):
            yield outcome
        return
    try:
        yield await client.estimate(paths[0], rois=parsed.roi, **search)
    except HandPoseError as error:
        yield error


async def _video(
    client: AsyncHandPoseClient,
    path: Path,
    info: video.VideoInfo,
    options: StreamOptions,
    target: Path | None,
    report: _Report,
    task: TaskID,
) -> None:
    """Follow the hands of a video, and write it with the hands drawn if that is wanted."""
    shown: list[video.VideoFrame] = []  # the few frames that were sent and not answered

    async def frames() -> AsyncIterator[Frame]:
        reader = enumerate(video.read(path))
        while (numbered := await asyncio.to_thread(next, reader, None)) is not None:
            index, frame = numbered
            shown.append(frame)
            yield Frame(frame.picture, id=index, time_s=frame.time_s)

    answered = found = tracked = 0
    with nullcontext() if target is None else video.VideoWriter(target, info.rate) as writer:
        async for answer in client.stream(frames(), options=options):
            frame = shown.pop(0)
            outcome = answer.estimate or answer.error or HandPoseError("no_answer", "the frame has no answer")
            report.frame(path, answer.frame_id, frame.time_s, answer.tracked, outcome)
            answered += 1
            tracked += answer.tracked
            found += bool(answer.estimate and answer.estimate.hands)
            if writer is not None:
                await asyncio.to_thread(writer.write, _drawn(frame.picture, answer.estimate))
            report.advance(task)
    report.line(f"{path}: {answered} frames, a hand in {found}, followed from the frame before in {tracked}")
    if target is not None:
        report.saved(target)


def _drawn(picture: Image.Image, found: Estimate | None) -> Image.Image:
    for hand in found.hands if found is not None else ():
        picture = draw_hand(picture, hand.points, hand.scores)
    return picture


def _progress() -> Progress:
    """A bar on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
