"""Runs the fuzzers, each in a process of its own, and says what came of it: `python -m tests.fuzz [TARGET ...]`.

The exit status is 0 if nothing was found: no crash, no failure that is the service's, no input that hangs. What was
found lies in the output folder, and is fed to its target once more by `--reproduce FILE`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_TO_START_AND_STOP_S: Final = 900  # on a machine that is busy with other fuzzers
_SAY_EVERY_S: Final = 60
_RUNS: Final = re.compile(r"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)
_DONE: Final = re.compile(r"^Done \d+ runs in (\d+) second", re.MULTILINE)
_RESULT: Final = re.compile(r'^\{"executions": .*\}$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of fuzzing one target.

    Attributes:
        target: its name.
        executions: inputs that were tried.
        seconds: how long that took, without starting.
        found: what was found, by a file or in words; empty if all is well.
    """

    target: str
    executions: int
    seconds: float
    found: str


def main(arguments: Sequence[str]) -> int:
    """Fuzz; 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz the service.",
        epilog="targets:\n" + "\n".join(f"  {each.name:10} {each.about}" for each in TARGETS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at the same time (default 2)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--out", type=Path, default=_ROOT / "build" / "fuzz", help="default: build/fuzz")
    parser.add_argument("--reproduce", type=Path, help="a file that was found; give its target, too")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    names = given.targets or list(TARGETS)
    if given.reproduce is not None:
        return _reproduce(names, given.reproduce)
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000 + 1
    print(
        f"fuzzing {', '.join(names)}: {given.minutes:g} minutes each, {given.jobs} at a time, seed {seed}", flush=True
    )
    with ThreadPoolExecutor(given.jobs) as pool:
        running = [pool.submit(_fuzz, name, given.minutes, seed, given.out) for name in names]
        outcomes = [each.result() for each in running]
    print(f"\n{'target':10} {'inputs':>12} {'seconds':>8}  found")
    for each in outcomes:
        print(f"{each.target:10} {each.executions:12,} {each.seconds:8.0f}  {each.found or 'nothing'}")
    (given.out / "outcomes.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=2) + "\n")
    return 1 if any(each.found for each in outcomes) else 0


def _fuzz(name: str, minutes: float, seed: int, out: Path) -> Outcome:
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    before, began = _reproducers(folder), time.monotonic()
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name),
        *("--seconds", str(round(minutes * 60)), "--seed", str(seed), "--out", str(folder)),
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT)
        status = _wait(process, name, began, began + minutes * 60 + _TO_START_AND_STOP_S)
    text = log.read_text(errors="replace")
    new = sorted(_reproducers(folder) - before)
    executions, fuzzed_s = _executions(text)
    if new:
        found = f"{new[0]} (see {log})"
    elif status is None:
        found = f"the fuzzer did not end (see {log})"
    elif fuzzed_s is None or status != 0:
        found = f"the fuzzer ended with {status} (see {log})"
    else:
        found = ""
    seconds = fuzzed_s or time.monotonic() - began
    print(f"{name}: {executions:,} inputs in {seconds:.0f} s: {found or 'nothing found'}", flush=True)
    return Outcome(name, executions, round(seconds, 1), found)


def _wait(process: "subprocess.Popen[bytes]", name: str, began: float, until: float) -> int | None:
    """The exit status; None if it had to be killed."""
    while time.monotonic() < until:
        try:
            return process.wait(_SAY_EVERY_S)
        except subprocess.TimeoutExpired:
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    process.kill()
    process.wait()
    return None


def _executions(log: str) -> tuple[int, float | None]:
    """How many inputs were tried, and for how many seconds; None if the fuzzer did not come to its end."""
    if (runs := _RUNS.search(log)) is not None:
        done = _DONE.search(log)
        return int(runs[1]), float(done[1]) if done is not None else None
    if (found := _RESULT.search(log)) is not None:
        result = json.loads(found[0])
        return int(result["executions"]), float(result["seconds"])
    return 0, None


def _reproducers(folder: Path) -> set[Path]:
    return {path for kind in ("crash", "timeout", "oom", "leak") for path in folder.glob(f"{kind}*")}


def _reproduce(names: Sequence[str], file: Path) -> int:
    if len(names) != 1 or TARGETS[names[0]].engine != "coverage":
        print("name the one target that the file is for; values of properties are in the file in words")
        return 2
    with TARGETS[names[0]].open_bytes() as check:
        check(file.read_bytes())
    print("nothing happened")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
