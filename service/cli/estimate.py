"""`handpose estimate`: pictures, folders of pictures and videos; text or JSON out, overlays where they are wanted."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli import video
from service.cli.output import as_json, as_text, error_as_json
from service.cli.where import CommandError, connected
from service.client import Estimate, Frame, HandPoseClient, HandPoseError, OneEuro, StreamOptions, draw

PICTURE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
_BATCH: Final = 8


def estimate(parsed: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    try:
        pictures, videos = _inputs(parsed.files)
        if parsed.roi and (videos or len(pictures) != 1):
            raise CommandError("--roi is for a single picture")
        if parsed.save is not None:
            parsed.save.mkdir(parents=True, exist_ok=True)
        infos = {path: video.describe(path) for path in videos}
        with connected(parsed) as client, _progress() as progress:
            report, saved = _Report(parsed.json, progress), _Names(parsed.save) if parsed.save is not None else None
            if pictures:
                task = progress.add_task("pictures", total=len(pictures))
                for path, data, outcome in _pictures(client, pictures, parsed):
                    report.picture(path, outcome)
                    if isinstance(outcome, Estimate) and saved is not None:
                        overlay = saved.name_for(path, ".png")
                        draw(data, outcome).save(overlay)
                        report.saved(overlay)
                    progress.advance(task)
            for path, info in infos.items():
                task = progress.add_task(path.name, total=info.frames or None)
                target = saved.name_for(path, ".mp4") if saved is not None else None
                _video(client, path, info, parsed, target, report, progress, task)
    except BrokenPipeError:
        raise  # whoever reads our output has left; nothing is wrong with a file
    except (CommandError, OSError) as error:
        print(f"handpose: {error}", file=sys.stderr)
        return 1
    return 1 if report.failures else 0


class _Report:
    """Prints what was found, past the progress bar."""

    def __init__(self, json_wanted: bool, progress: Progress) -> None:
        self._json = json_wanted
        self._progress = progress
        self.failures = 0

    def picture(self, path: Path, outcome: Estimate | Exception) -> None:
        self._outcome({"file": str(path)}, str(path), outcome)

    def frame(self, path: Path, index: int, time_s: float, tracked: bool, outcome: Estimate | Exception) -> None:
        details = {"file": str(path), "frame": index, "time_s": round(time_s, 4), "tracked": tracked}
        if self._json or isinstance(outcome, Exception):
            self._outcome(details, f"{path} frame {index}", outcome)

    def line(self, text: str) -> None:
        """Something for people only."""
        if not self._json:
            self._print(text)

    def saved(self, path: Path) -> None:
        self.line(f"  saved {path}")

    def _outcome(self, details: dict[str, Any], name: str, outcome: Estimate | Exception) -> None:
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


class _Names:
    """Names for what this run saves: hand.jpg becomes hand_hand.png, a second hand of another folder hand_hand_2.png.

    What an earlier run left is written over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def name_for(self, source: Path, suffix: str) -> Path:
        stem, number = f"{source.stem}_hand", 1
        name = f"{stem}{suffix}"
        while name.casefold() in self._taken:  # to some file systems Hand and hand are one name
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._taken.add(name.casefold())
        return self._folder / name


def _inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures and videos, with folders opened. Raises CommandError for what does not exist or holds nothing."""
    pictures, videos = [], []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise CommandError(f"{path}: no picture in this folder")
            pictures += inside
        elif not path.exists():
            raise CommandError(f"{path}: no such file or folder")
        elif path.suffix.lower() in video.SUFFIXES:
            videos.append(path)
        else:
            pictures.append(path)
    return pictures, videos


def _pictures(
    client: HandPoseClient, paths: Sequence[Path], parsed: argparse.Namespace
) -> Iterator[tuple[Path, bytes, Estimate | Exception]]:
    """Every picture with its bytes and its outcome, in order; asked about in batches."""
    if parsed.roi:
        (path,) = paths
        data = path.read_bytes()
        yield path, data, _one(client, data, parsed)
        return
    for start in range(0, len(paths), _BATCH):
        read: dict[Path, bytes] = {}
        outcomes: dict[Path, Estimate | Exception] = {}
        for path in paths[start : start + _BATCH]:
            try:
                read[path] = path.read_bytes()
            except OSError as error:
                outcomes[path] = error
        outcomes |= dict(zip(read, client.estimate_batch(read.values(), batch_size=_BATCH), strict=True))
        for path in paths[start : start + _BATCH]:
            yield path, read.get(path, b""), outcomes[path]


def _one(client: HandPoseClient, data: bytes, parsed: argparse.Namespace) -> Estimate | Exception:
    try:
        return client.estimate(data, rois=parsed.roi)
    except HandPoseError as error:
        return error


def _video(
    client: HandPoseClient,
    path: Path,
    info: video.VideoInfo,
    parsed: argparse.Namespace,
    target: Path | None,
    report: _Report,
    progress: Progress,
    task: Any,
) -> None:
    """Follow the hands of a video, and write it with the hands drawn if that is wanted."""
    shown: list[video.VideoFrame] = []  # the few frames that were sent and not answered

    def frames() -> Iterator[Frame]:
        for index, frame in enumerate(video.read(path)):
            if target is not None or parsed.json:
                shown.append(frame)
            yield Frame(frame.picture, id=index, time_s=frame.time_s)

    options = StreamOptions(tracking=not parsed.no_tracking, smoothing=OneEuro() if parsed.smooth else None)
    found = answered = tracked = 0
    writer = video.VideoWriter(target, info.rate) if target is not None else None
    try:
        for answer in client.stream(frames(), options=options):
            frame = shown.pop(0) if shown else None
            outcome = answer.estimate or answer.error or HandPoseError("no_answer", "the frame has no answer")
            report.frame(path, answer.frame_id, frame.time_s if frame else 0.0, answer.tracked, outcome)
            answered += 1
            tracked += answer.tracked
            found += any(answer.track_ids)
            if writer is not None and frame is not None:
                writer.write(_drawn(frame.picture, answer.estimate))
            progress.advance(task)
    finally:
        if writer is not None:
            writer.__exit__(None, None, None)
    report.line(f"{path}: {answered} frames, a hand in {found}, followed from the frame before in {tracked}")
    if target is not None:
        report.saved(target)


def _drawn(picture: Image.Image, found: Estimate | None) -> Image.Image:
    from service.pose.drawing import draw_hand

    for hand in found.hands if found is not None else ():
        picture = draw_hand(picture, hand.points, hand.scores)
    return picture


def _progress() -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
