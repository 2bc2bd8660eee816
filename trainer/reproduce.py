"""The whole path from nothing to measured weights: `python -m trainer reproduce`.

Renders the training and test sets, trains the lightweight network, then the standard one from its features, then the
lightweight one again with the standard one as its teacher; turns all three into weights, measures them, keeps the
better lightweight one, and writes the model cards. Each step is one of the trainer's own commands in a process of its
own, because the renderer and TensorFlow do not share one. A step is done when its result is there, so the same command
goes on wherever it stopped. Nothing outside the chosen folders is touched: shipping the weights is a person's decision.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from trainer import weights
from trainer.atomic_files import replaced_atomically
from trainer.checkpoints import averages_are_of, read_progress
from trainer.configs import TrainConfig, load_config
from trainer.data.worker_process import available_cores
from trainer.errors import RefusedError, TrainerError
from trainer.run_log import RunLog
from trainer.run_record import RUNS_FOLDER
from trainer.train import EXIT_UNFINISHED
from trainer.weights import WeightsError

RunCommand = Callable[[Sequence[str]], int]
"""Runs a trainer command, given as its arguments, and returns its exit code."""

GPU_TFLOPS: Final = 90.0
"""Training rate of a GPU that the estimates assume, in 10^12 operations a second: an H100 in bfloat16, not measured."""
CPU_TFLOPS: Final = 0.083
"""The same of two CPU cores, from a lightweight update at 256 pixels measured at 0.63 s an image of 52 GFLOP."""
_GFLOP_AT_256: Final = {"lightweight": 52.0, "standard": 223.0}
"""Operations of a training image: forward, and twice that backward."""
_RENDERED_A_SECOND_AND_CORE: Final = 11.6
_RENDERED_HELD_OUT: Final = r"(^|/)\d{6}[05]0\.jpg$"
"""One rendered training picture in fifty is kept for validation."""
_START_MINUTES: Final = 0.2
"""What every process takes to begin, more or less."""
_MEASURED_A_MINUTE: Final = 1000


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is: pictures to render and their side, and the configurations to train.

    `distil_weight`, where given, takes the place of the one in `distil_config`.
    """

    train_pictures: int
    test_pictures: int
    picture_size: int
    config: str
    distil_config: str
    steps: int | None = None
    distil_weight: float | None = None


SCALES: Final = {
    "full": Scale(40_000, 2_000, 256, "default", "distil"),
    "smoke": Scale(12, 4, 64, "smoke", "smoke", steps=1, distil_weight=0.5),
}
_TRAIN_SEED, _TEST_SEED = 1, 2


@dataclass(frozen=True)
class Step:
    """One step of the path.

    Attributes:
        title: what it does, in a few words.
        is_done: whether its result is there.
        run: does it, with the seconds that are left for this piece; returns an exit code.
        gpu_minutes, cpu_minutes: about how long it takes on a machine with a GPU, and on two CPU cores.
    """

    title: str
    is_done: Callable[[], bool]
    run: Callable[[float], int]
    gpu_minutes: float
    cpu_minutes: float


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        folder: rendered sets, weights, results and cards.
        prefix: of the runs' names.
        scale: how large.
        data: further sets to train on, KIND:PATH[@WEIGHT].
        holdout: picture names of those to keep for validation.
        tests: further sets to measure on.
        material: options of `synth`, name and folder.
        workers: processes that render and make batches.
    """

    folder: Path
    prefix: str
    scale: Scale
    data: tuple[str, ...]
    holdout: tuple[str, ...]
    tests: tuple[str, ...]
    material: tuple[tuple[str, Path], ...]
    workers: int


def plan(options: Options, run_command: RunCommand) -> list[Step]:
    """All steps in order, done or not."""
    scale, folder = options.scale, options.folder
    light, standard, distilled = (f"{options.prefix}-{name}" for name in ("lightweight", "standard", "distilled"))
    light_weights, distilled_weights = folder / "candidates/lightweight.npz", folder / "candidates/distilled.npz"
    final = {variant: folder / f"weights/{variant}.npz" for variant in ("lightweight", "standard")}
    results = {variant: folder / f"results/{variant}.json" for variant in final}
    start_standard = ["--variant", "standard", "--warm-start", str(RUNS_FOLDER / light)]
    start_distilled = ["--warm-start", str(RUNS_FOLDER / light), "--teacher", str(RUNS_FOLDER / standard)]
    start_distilled += [] if scale.distil_weight is None else ["--distil-weight", str(scale.distil_weight)]

    def render(name: str, count: int, seed: int) -> Step:
        words = ["synth", "--count", str(count), "--seed", str(seed), "--size", str(scale.picture_size)]
        words += ["--out", str(folder / name), "--workers", str(options.workers)]
        for option, path in options.material:
            words += [f"--{option}", str(path)]
        minutes = count / _RENDERED_A_SECOND_AND_CORE / 60
        return Step(
            f"render {count} pictures into {folder / name}",
            lambda: _pictures_in(folder / name) >= count,
            lambda _: run_command(words),
            minutes / options.workers,
            minutes / 2,
        )

    def train(run: str, variant: str, config_name: str, start: Sequence[str]) -> Step:
        config = load_config(config_name)
        steps = scale.steps or config.steps or 0
        words = ["train", "--config", config_name, "--run", run, "--workers", str(options.workers), *start]
        words += [] if scale.steps is None else ["--steps", str(scale.steps)]
        for source in (f"coco:{folder / 'train'}", *options.data):
            words += ["--data", source]
        for pattern in (_RENDERED_HELD_OUT, *options.holdout):
            words += ["--holdout", pattern]
        gflop = steps * gflop_of_update(config, variant)
        return Step(
            f"train {run} for {steps} updates",
            lambda: _is_trained(RUNS_FOLDER / run, steps),
            lambda left_s: run_command([*words, *_stop_after(left_s)]),
            _START_MINUTES + gflop / 1000 / GPU_TFLOPS / 60,
            _START_MINUTES + gflop / 1000 / CPU_TFLOPS / 60,
        )

    def finish(run: str, path: Path) -> Step:
        return Step(
            f"write and measure the weights of {run}",
            lambda: _is_finished(RUNS_FOLDER / run, path),
            lambda _: run_command(["finish", "--run", run, "--out", str(path)]),
            *[_START_MINUTES + scale.train_pictures / 50 / _MEASURED_A_MINUTE] * 2,
        )

    def evaluate(variant: str) -> Step:
        words = ["evaluate", "--variant", variant, "--weights", str(final[variant]), "--out", str(results[variant])]
        for source in (f"coco:{folder / 'test'}", *options.tests):
            words += ["--data", source]
        return Step(
            f"measure the {variant} network on the test sets",
            lambda: _are_results_of(results[variant], final[variant]),
            lambda _: run_command(words),
            *[_START_MINUTES + scale.test_pictures / _MEASURED_A_MINUTE] * 2,
        )

    def card(variant: str, run: Callable[[], str]) -> Step:
        path = folder / f"cards/{variant}.md"
        return Step(
            f"write {path}",
            lambda: _is_newer(path, results[variant]),
            lambda _: run_command(
                [
                    *("card", "--variant", variant, "--run", run(), "--weights", str(final[variant])),
                    *("--results", str(results[variant]), "--out", str(path.parent)),
                ]
            ),
            *[_START_MINUTES] * 2,
        )

    choose = Step(
        "keep the better of the two lightweight networks",
        lambda: _is_chosen(final["lightweight"], light_weights, distilled_weights),
        lambda _: _choose(final["lightweight"], light_weights, distilled_weights),
        0.0,
        0.0,
    )
    return [
        render("train", scale.train_pictures, _TRAIN_SEED),
        render("test", scale.test_pictures, _TEST_SEED),
        train(light, "lightweight", scale.config, []),
        finish(light, light_weights),
        train(standard, "standard", scale.config, start_standard),
        finish(standard, final["standard"]),
        train(distilled, "lightweight", scale.distil_config, start_distilled),
        finish(distilled, distilled_weights),
        choose,
        evaluate("lightweight"),
        evaluate("standard"),
        card("lightweight", lambda: str(weights.load(final["lightweight"]).info.provenance["run"])),
        card("standard", lambda: standard),
    ]


def gflop_of_update(config: TrainConfig, variant: str) -> float:
    """Operations of one update, 10^9, on average over the input sizes and with the teacher's forward pass."""
    ends = [begin for begin, _ in config.input_sizes[1:]] + [1.0]
    area = sum((end - begin) * (size / 256) ** 2 for (begin, size), end in zip(config.input_sizes, ends, strict=True))
    teacher = _GFLOP_AT_256["standard"] / 3 if config.distil_weight else 0.0
    return config.batch_size * area * (_GFLOP_AT_256[variant] + teacher) * config.width_multiplier**2


def follow(steps: Sequence[Step], deadline: float, say: Callable[[str], None]) -> int:
    """Does what is not done, in order, until all is or the time (`time.monotonic`) is up.

    Returns 0 when all is done, EXIT_UNFINISHED when the time was up, or the exit code of the step that failed.
    Raises TrainerError if a step ends well without its result.
    """
    for number, step in enumerate(steps, start=1):
        if step.is_done():
            continue
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            say(f"time is up before step {number}; the same command goes on")
            return EXIT_UNFINISHED
        say(f"step {number} of {len(steps)}: {step.title}")
        code = step.run(left_s)
        if code != 0:
            say(f"step {number} ended with exit code {code}; the same command goes on from there")
            return code
        if not step.is_done():
            raise TrainerError(f"step {number} ({step.title}) ended without its result")
    return 0


def _stop_after(left_s: float) -> list[str]:
    return [] if math.isinf(left_s) else ["--stop-after-minutes", f"{left_s / 60:.3f}"]


def _pictures_in(folder: Path) -> int:
    file = folder / "annotations.json"
    return len(json.loads(file.read_text(encoding="utf-8"))["images"]) if file.is_file() else 0


def _is_trained(run: Path, steps: int) -> bool:
    progress = read_progress(run)
    return (
        progress is not None
        and progress.step >= steps
        and averages_are_of(run, progress)
        and RunLog(run).is_validated(progress.step)
    )


def _is_finished(run: Path, path: Path) -> bool:
    progress = read_progress(run)
    if progress is None or not (path.is_file() and weights.info_path(path).is_file()):
        return False
    try:
        provenance = weights.load(path).info.provenance
    except WeightsError:  # the two files are not of one making: a step that wrote them was stopped
        return False
    return (provenance.get("run"), provenance.get("updates")) == (run.name, progress.step)


def _are_results_of(results: Path, path: Path) -> bool:
    if not (results.is_file() and path.is_file()):
        return False
    try:
        digest = json.loads(results.read_text(encoding="utf-8"))["weights_sha256"]
    except (ValueError, KeyError, TypeError):  # half a file
        return False
    return bool(digest == weights.file_sha256(path))


def _is_newer(path: Path, than: Path) -> bool:
    return path.is_file() and than.is_file() and path.stat().st_mtime >= than.stat().st_mtime


def _better(first: Path, second: Path) -> Path:
    """The weights with the larger AUC on the held-out pictures; the first where they are equal."""

    def auc(path: Path) -> float:
        return float(weights.load(path).info.metrics["all held-out pictures"]["auc_mmpose_in_256_px_crop"])

    return second if auc(second) > auc(first) else first


def _is_chosen(final: Path, first: Path, second: Path) -> bool:
    try:
        return weights.load(final).sha256 == weights.file_sha256(_better(first, second))
    except WeightsError:  # one of them is not there yet, or half there
        return False


def _choose(final: Path, first: Path, second: Path) -> int:
    better = _better(first, second)
    with replaced_atomically(final, weights.info_path(final)) as (archive, description):
        shutil.copyfile(better, archive)
        shutil.copyfile(weights.info_path(better), description)
    return 0


def in_a_process(arguments: Sequence[str]) -> int:
    """Runs a trainer command in a process of its own, on this terminal."""
    return wait_for([sys.executable, "-m", "trainer", *arguments])


def wait_for(words: Sequence[str]) -> int:
    """Runs a program to its end, however it comes to it, and returns its exit code (128 + a signal that killed it).

    A training that is told to stop saves first, so it is waited for and never killed: Ctrl-C reaches it from the
    terminal, a SIGTERM of this process is passed on.

    Raises:
        KeyboardInterrupt: this process was told to stop, and the program came to its end all the same.
    """
    told: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def tell(number: int, _: FrameType | None) -> None:
        told.append(number)
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, tell) for number in signals]
    try:
        child = subprocess.Popen(words)
        if signal.SIGTERM in told:  # while it was being started
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    if told and code == 0:
        raise KeyboardInterrupt
    return code if code >= 0 else 128 - code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `reproduce`."""
    parser.add_argument("--scale", choices=tuple(SCALES), default="full", help="smoke: minutes, to see that all works")
    parser.add_argument("--out", type=Path, metavar="DIR", help="rendered sets, weights, cards (default: runs/NAME)")
    parser.add_argument(
        "--name", help="of the runs, which get -lightweight and so on added (default: reproduce, or reproduce-smoke)"
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="KIND:PATH[@WEIGHT]", help="further sets to train on"
    )
    parser.add_argument(
        "--holdout", action="append", default=[], metavar="REGEX", help="picture names of those kept for validation"
    )
    parser.add_argument("--test", action="append", default=[], metavar="KIND:PATH", help="further sets to measure on")
    for name in ("hand-meshes", "panoramas", "backgrounds"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="as in `synth`")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: %(default)s)")
    parser.add_argument(
        "--stop-after-minutes",
        type=float,
        metavar="M",
        help="train no longer than that and begin no step after it; exit code 3, the same command goes on",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes")


def run(arguments: argparse.Namespace) -> int:
    """Says the plan, and follows it."""
    started = time.monotonic()
    if arguments.workers < 1:
        raise RefusedError(f"--workers must be at least 1, got {arguments.workers}")
    materials = {
        name: getattr(arguments, name.replace("-", "_")) for name in ("hand-meshes", "panoramas", "backgrounds")
    }
    # What is small and quick is not taken for what is asked for in full, nor in its way.
    name = arguments.name or {"full": "reproduce"}.get(arguments.scale, f"reproduce-{arguments.scale}")
    options = Options(
        folder=arguments.out or RUNS_FOLDER / name,
        prefix=name,
        scale=SCALES[arguments.scale],
        data=tuple(arguments.data),
        holdout=tuple(arguments.holdout),
        tests=tuple(arguments.test),
        material=tuple((name, path) for name, path in materials.items() if path is not None),
        workers=arguments.workers,
    )
    steps = plan(options, in_a_process)
    print(outline(steps), flush=True)
    if arguments.dry_run:
        return 0
    minutes = math.inf if arguments.stop_after_minutes is None else arguments.stop_after_minutes
    code = follow(steps, started + 60 * minutes, lambda line: print(line, flush=True))
    if code == 0:
        print(f"done: {options.folder / 'weights'} holds the weights, {options.folder / 'cards'} their cards")
    return code


def outline(steps: Sequence[Step]) -> str:
    """The plan as lines of text, with the time that what is to do may take."""
    todo = [step for step in steps if not step.is_done()]
    lines = [f"{'done' if step not in todo else '    '}  {n:2}. {step.title}" for n, step in enumerate(steps, start=1)]
    gpu, cpu = sum(step.gpu_minutes for step in todo), sum(step.cpu_minutes for step in todo)
    on_gpu = f"about {_duration(gpu)} at {GPU_TFLOPS:.0f} TFLOP/s, which an H100 may reach"
    lines.append(f"{on_gpu}; about {_duration(cpu)} on two CPU cores")
    return "\n".join(lines)


def _duration(minutes: float) -> str:
    return f"{max(1, math.ceil(minutes))} min" if minutes < 120 else f"{minutes / 60:.0f} h"
