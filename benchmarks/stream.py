"""How well streams follow a hand, how much the filter calms it, what it costs in lag, and how fast it all is.

    python -m benchmarks.stream --work runs/stream                           the models in this process
    python -m benchmarks.stream --work runs/stream --url grpc://host:8001    a service

The video is rendered with its exact keypoints (`benchmarks.moving_hand`). Two sources of keypoints are measured:

`known hand`   no model at all: the true keypoints plus Gaussian noise, and only where the crop shows them. It measures
               the tracker and the filter alone, without the mistakes of weights that are still being trained.
`model`        the real thing, through the client: every frame as a single request, then as streams, in one run.

Jitter is the root mean square movement of a keypoint from one frame to the next while the hand is at rest. Lag is the
delay of the true motion, in frames, that fits the answers best while the hand moves; that of the filter is the lag
with it less the lag without it.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.moving_hand import FRAME_S, HEIGHT, WIDTH, Video, load_or_render
from benchmarks.report import add_json, show, write_json
from service.client import AsyncHandPoseClient, Frame, OneEuro, StreamOptions
from service.inference.errors import InvalidInputError
from service.inference.estimates import Estimate, EstimateRequest, Hand, Timings
from service.inference.models import ModelCard, ServedModel
from service.inference.tracking import HandTracker
from service.pose.geometry import Box
from service.pose.keypoints import KEYPOINT_COUNT, KEYPOINT_NAMES
from service.pose.preprocessing import hand_box_to_crop

NOISE_SHARE: Final = 0.01
"""Standard deviation of the known hand's noise, as a share of the hand's size."""

_SETTLED: Final = 15  # frames after the start of a rest that do not count: the filter is still arriving
_LARGEST_LAG: Final = 5.0
_NEAR_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one way to get keypoints.

    Attributes:
        tracked: share of frames whose crop came from the frame before.
        box_on_hand: share of tracked frames whose box holds the true hand's centre.
        near: share of keypoints within a fifth of the hand's size of the truth.
        error_share: median distance from the truth, over the hand's size.
        jitter_px: see the module.
        lag_frames: see the module; None where the keypoints are too far off to say.
        frames_per_second: frames over the time for all of them.
    """

    source: str
    way: str
    frames: int
    tracked: float
    box_on_hand: float | None
    near: float
    error_share: float
    jitter_px: float
    lag_frames: float | None
    frames_per_second: float | None


@dataclass(slots=True)
class Track:
    """The answers to a video."""

    keypoints: NDArray[np.float64]  # [F, 21, 2]
    tracked: NDArray[np.bool_]  # [F]
    boxes: list[Box]


class KnownHand:
    """Stands in for `Predictor.estimate`: true keypoints plus noise, where the crop shows them."""

    def __init__(self, video: Video, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size = hand_sizes(video)[:, None, None]
        self._seen = video.keypoints_in_image + rng.normal(0.0, NOISE_SHARE, video.keypoints_in_image.shape) * size
        card = ModelCard(
            name="known_hand",
            variant="lightweight",
            version=1,
            keypoints=KEYPOINT_NAMES,
            channels=22,
            input_size=256,
            stride=8,
        )
        self._model = ServedModel(1, (), card)

    async def __call__(self, request: EstimateRequest) -> Estimate:
        points = self._seen[int(request.image)]
        whole = Box(0.0, 0.0, WIDTH, HEIGHT)
        for roi in request.rois:
            if roi.clipped(WIDTH, HEIGHT) != roi:
                raise InvalidInputError("the roi lies outside the image", code="invalid_roi")
        shown = [(roi, hand_box_to_crop(roi)) for roi in request.rois] or [(whole, whole)]
        hands = tuple(self._hand(points, box, crop) for box, crop in shown)
        return Estimate(self._model, "default", (WIDTH, HEIGHT), hands, Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))

    def _hand(self, points: NDArray[np.float64], box: Box, crop: Box) -> Hand:
        low, high = (crop.x, crop.y), (crop.x + crop.width, crop.y + crop.height)
        inside = np.all((points >= low) & (points <= high), axis=-1)
        found = np.where(inside[:, None], points, np.array(crop.centre))
        scores = np.where(inside, 0.9, 0.02).astype(np.float32)
        return Hand(box, found, scores, np.ones(KEYPOINT_COUNT))


def hand_sizes(video: Video) -> NDArray[np.float64]:
    """[F], the longer side of the true keypoints' box, in pixels."""
    sizes: NDArray[np.float64] = np.ptp(video.keypoints_in_image, axis=1).max(axis=1)
    return sizes


def measure(source: str, way: str, video: Video, track_: Track, seconds: float | None) -> Row:
    """Compare answers with the truth."""
    truth, sizes = video.keypoints_in_image, hand_sizes(video)
    errors = np.linalg.norm(track_.keypoints - truth, axis=-1) / sizes[:, None]
    boxes = [(box, truth[index].mean(axis=0)) for index, box in enumerate(track_.boxes) if track_.tracked[index]]
    on_hand = [box.x <= x <= box.x + box.width and box.y <= y <= box.y + box.height for box, (x, y) in boxes]
    near = float((errors < _NEAR_SHARE).mean())
    return Row(
        source=source,
        way=way,
        frames=len(truth),
        tracked=float(track_.tracked.mean()),
        box_on_hand=float(np.mean(on_hand)) if on_hand else None,
        near=near,
        error_share=float(np.median(errors)),
        jitter_px=_jitter(track_.keypoints, video.at_rest),
        lag_frames=_lag(track_.keypoints, truth, video.at_rest, sizes) if near > 0.5 else None,
        frames_per_second=len(truth) / seconds if seconds else None,
    )


def _jitter(keypoints: NDArray[np.float64], at_rest: NDArray[np.bool_]) -> float:
    """Root mean square movement between frames at rest, once the rest has lasted a while."""
    run = 0
    settled = np.zeros(len(at_rest), np.bool_)
    for index, rests in enumerate(at_rest):
        run = run + 1 if rests else 0
        settled[index] = run > _SETTLED
    moves = np.linalg.norm(np.diff(keypoints, axis=0), axis=-1)[settled[1:]]
    return float(np.sqrt(np.square(moves).mean()))


def _lag(
    keypoints: NDArray[np.float64],
    truth: NDArray[np.float64],
    at_rest: NDArray[np.bool_],
    sizes: NDArray[np.float64],
) -> float:
    """The delay in frames of the truth that the answers fit best, over the frames in motion.

    The median over keypoints and frames, so that frames on which a model sees something else do not decide.
    """
    frames = np.flatnonzero(~at_rest & (np.arange(len(truth)) > _LARGEST_LAG))
    frames = frames[frames < len(truth) - 1]
    delays = np.arange(-1.0, _LARGEST_LAG, 0.02)
    misfits = []
    for delay in delays:
        at = frames - delay
        before = np.floor(at).astype(int)
        share = (at - before)[:, None, None]
        delayed = truth[before] * (1 - share) + truth[np.minimum(before + 1, len(truth) - 1)] * share
        distance = np.linalg.norm(keypoints[frames] - delayed, axis=-1) / sizes[frames, None]
        misfits.append(float(np.median(distance)))
    return float(delays[int(np.argmin(misfits))])


async def _known(video: Video, smoothing: OneEuro | None, *, follow: bool) -> tuple[Track, float]:
    tracker = HandTracker(KnownHand(video, seed=5), smoothing=smoothing, follow=follow)
    points, tracked, boxes = [], [], []
    started = time.perf_counter()
    for index in range(len(video.frames)):
        request = EstimateRequest(image=str(index).encode(), deadline=float("inf"))
        answer = await tracker.next(request, time_s=index * FRAME_S)
        hand = answer.estimate.hands[0]
        points.append(hand.keypoints_in_image)
        tracked.append(answer.tracked)
        boxes.append(hand.box_in_image)
    return Track(np.array(points), np.array(tracked), boxes), time.perf_counter() - started


async def _single(client: AsyncHandPoseClient, video: Video) -> tuple[Track, float]:
    points, boxes = [], []
    started = time.perf_counter()
    for frame in track(video.frames, "single requests", transient=True):
        hand = (await client.estimate(frame)).hands[0]
        points.append(hand.points)
        boxes.append(hand.box)
    return Track(np.array(points), np.zeros(len(points), np.bool_), boxes), time.perf_counter() - started


async def _stream(client: AsyncHandPoseClient, video: Video, options: StreamOptions) -> tuple[Track, float]:
    async def frames() -> AsyncIterator[Frame]:
        for index, frame in enumerate(track(video.frames, "stream", transient=True)):
            yield Frame(frame, id=index, time_s=index * FRAME_S)

    points, tracked, boxes = [], [], []
    started = time.perf_counter()
    async for answer in client.stream(frames(), options=options):
        if answer.estimate is None:
            raise RuntimeError(f"frame {answer.frame_id} failed: {answer.error}")
        hand = answer.estimate.hands[0]
        points.append(hand.points)
        tracked.append(answer.tracked)
        boxes.append(hand.box)
    return Track(np.array(points), np.array(tracked), boxes), time.perf_counter() - started


async def run(video: Video, client: AsyncHandPoseClient | None) -> list[Row]:
    """All measurements."""
    rows = []
    for way, smoothing, follow in (
        ("whole frames", None, False),
        ("tracked", None, True),
        ("tracked, smoothed", OneEuro(), True),
    ):
        answers, _ = await _known(video, smoothing, follow=follow)
        rows.append(measure("known hand", way, video, answers, None))
    if client is None:
        return rows
    name = (await client.estimate(video.frames[0])).model  # also warms up
    source = f"{name.variant}@{name.version}"
    rows.append(measure(source, "single requests", video, *(await _single(client, video))))
    for way, options in (
        ("stream, whole frames", StreamOptions(tracking=False)),
        ("stream, tracked", StreamOptions()),
        ("stream, tracked, smoothed", StreamOptions(smoothing=OneEuro())),
    ):
        rows.append(measure(source, way, video, *(await _stream(client, video, options))))
    return rows


def show_rows(rows: Sequence[Row]) -> None:
    """Print the table."""
    show(
        ["source, way", "tracked", "box on hand", "near", "error/size", "jitter px", "lag frames", "fps"],
        [
            [
                f"{row.source}, {row.way}",
                f"{row.tracked:.1%}",
                "-" if row.box_on_hand is None else f"{row.box_on_hand:.1%}",
                f"{row.near:.1%}",
                f"{row.error_share:.3f}",
                f"{row.jitter_px:.2f}",
                "-" if row.lag_frames is None else f"{row.lag_frames:.2f}",
                "-" if row.frames_per_second is None else f"{row.frames_per_second:.1f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/stream"), help="folder for the rendered video")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--url", help="a service to measure; without it the models run in this process")
    parser.add_argument("--variant", default="lightweight")
    parser.add_argument("--no-model", action="store_true", help="measure tracker and filter only")
    add_json(parser)
    arguments = parser.parse_args()

    video = load_or_render(arguments.work, arguments.frames, arguments.seed)
    rows = asyncio.run(_measured(video, None if arguments.no_model else _client(arguments.url, arguments.variant)))
    show_rows(rows)
    write_json([asdict(row) for row in rows], arguments.json)


async def _measured(video: Video, opened: AbstractAsyncContextManager[AsyncHandPoseClient] | None) -> list[Row]:
    if opened is None:
        return await run(video, None)
    async with opened as client:
        return await run(video, client)


@asynccontextmanager
async def _client(url: str | None, variant: str) -> AsyncIterator[AsyncHandPoseClient]:
    if url is not None:
        async with AsyncHandPoseClient(url, variant=variant) as client:
            yield client
        return
    from service.bootstrap import local_service
    from service.cli.local import LocalTransport
    from service.settings import Settings

    async with local_service(Settings.from_environment(os.environ)) as service:
        yield AsyncHandPoseClient(variant=variant, transport=LocalTransport(service))


if __name__ == "__main__":
    main()
