"""Fuzzes one target in this process until the time is up or something is found: `python -m tests.fuzz.worker rest`.

Started by `python -m tests.fuzz`, one process a target, because a fuzzer's process may crash, hang or grow: that is
what it is for.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy

from tests.fuzz.targets import DICTIONARIES, TARGETS, Check, Property, Target

_MEMORY_MB: Final = 2048
_EXAMPLES_A_ROUND: Final = 100
_INSTRUMENTED: Final = ["service", "PIL", "yaml", "starlette", "fastapi", "python_multipart", "uvicorn", "websockets"]
"""Modules whose branches count as coverage. What is compiled does not count, and is fuzzed all the same."""


def main() -> int:
    """Fuzz; the exit status tells whether something was found."""
    parser = argparse.ArgumentParser(description="Fuzz one target.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for reproducers and the growing corpus")
    arguments = parser.parse_args()
    target: Target = TARGETS[arguments.target]
    arguments.out.mkdir(parents=True, exist_ok=True)
    if target.engine == "coverage":
        by_coverage(target, arguments.out, arguments.seconds, arguments.seed)
        return 0
    return by_properties(target, arguments.out, arguments.seconds, arguments.seed)


def by_coverage(target: Target, out: Path, seconds: int, start: int) -> None:
    """Mutate bytes towards new branches. libFuzzer ends the process itself, and writes what it found to `out`."""
    import atheris

    grown = out / "corpus"
    grown.mkdir(exist_ok=True)
    seeds = [str(target.inputs()[0].parent)] if target.inputs() else []
    dictionary = DICTIONARIES / f"{target.name}.txt"
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        f"-timeout={target.hang_s}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-artifact_prefix={out}/",
        f"-seed={start}",
        "-print_final_stats=1",
        *([f"-dict={dictionary}"] if dictionary.is_file() else []),
    ]
    with ExitStack() as resources:
        with atheris.instrument_imports(include=_INSTRUMENTED):
            check = resources.enter_context(target.open_bytes())
        atheris.Setup([sys.argv[0], *flags, str(grown), *seeds], _ending_at_once(check, out))
        atheris.Fuzz()


def _ending_at_once(check: Check, out: Path) -> Check:
    """The check, which at the first thing that it finds writes the input to `out` and ends the process.

    libFuzzer would do so, too, but only after Python has ended its threads, and those of a service in disorder may not.
    """

    def until_found(data: bytes) -> None:
        try:
            check(data)
        except BaseException:  # noqa: BLE001 -- whatever it is, it is what we are looking for
            (out / f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}").write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return until_found


def by_properties(target: Target, out: Path, seconds: int, start: int) -> int:
    """Draw values until the time is up; 1 if a property failed, with the smallest such value in `out`."""
    began, executions, rounds = time.monotonic(), 0, 0
    last = out / "last-value.txt"

    def watched(each: Property) -> Callable[[Any], None]:
        def holds(value: Any) -> None:
            nonlocal executions
            executions += 1
            last.write_text(f"{each.name}: {value!r}\n")  # what a process that dies or hangs was at
            faulthandler.dump_traceback_later(target.hang_s, exit=True)
            try:
                each.holds(value)
            finally:
                faulthandler.cancel_dump_traceback_later()

        return holds

    with target.open_properties() as opened:
        properties = list(opened)
        while time.monotonic() - began < seconds:
            each = properties[rounds % len(properties)]
            try:
                run_property(each.values, watched(each), examples=_EXAMPLES_A_ROUND, start=start + rounds)
            except Unsatisfiable:
                properties.remove(each)  # a call without parameters cannot be asked wrongly
            except Exception:  # noqa: BLE001 -- whatever it is, it is what we are looking for
                report = traceback.format_exc()
                (out / "crash.txt").write_text(f"{last.read_text()}\n{report}")
                print(report, file=sys.stderr)
                return 1
            rounds += 1
            if rounds % 20 == 0:
                print(f"{executions} executions", file=sys.stderr, flush=True)
    print(json.dumps({"executions": executions, "seconds": round(time.monotonic() - began, 1)}))
    return 0


def run_property(values: SearchStrategy[Any], holds: Callable[[Any], None], *, examples: int, start: int) -> None:
    """Try so many values; raises what the property raises for the smallest value that was found."""

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def run(value: Any) -> None:
        holds(value)

    run()


if __name__ == "__main__":
    sys.exit(main())
