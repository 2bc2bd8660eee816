"""The doors that are fuzzed, and how to open each. Importing this imports nothing of the service.

That matters: coverage guidance rewrites modules while they are imported, which the worker does target by target.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from hypothesis.strategies import SearchStrategy

CORPUS: Final = Path(__file__).parent / "corpus"
DICTIONARIES: Final = Path(__file__).parent / "dictionaries"
PATIENCE: Final = float(os.environ.get("FUZZ_PATIENCE", "1"))
"""How many times longer than usual an input may take: for a machine on which fuzzers are stopped for minutes."""

Check = Callable[[bytes], None]
"""Feeds one input to the service. Raises if the service did what it must never do."""

Engine = Literal["coverage", "properties"]


class FoundError(AssertionError):
    """The service did what it must never do."""


@dataclass(frozen=True, slots=True)
class Property:
    """Something that holds for every value of a strategy."""

    name: str
    values: SearchStrategy[Any]
    holds: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Target:
    """One door.

    Attributes:
        name: on the command line; also the names of its corpus folder and of its module here.
        about: what is fuzzed.
        engine: `coverage`: bytes, mutated towards new paths through the code (atheris, which is libFuzzer).
            `properties`: values of strategies (hypothesis, schemathesis).
        max_bytes: longest input.
        hang_s: seconds after which one input counts as hanging, on a machine that is busy with other fuzzers.
    """

    name: str
    about: str
    engine: Engine
    max_bytes: int = 4096
    hang_s: int = round(180 * PATIENCE)

    def open_bytes(self) -> AbstractContextManager[Check]:
        """The check of a `coverage` target, with whatever it needs running around it."""
        return cast("AbstractContextManager[Check]", self._module().opened())

    def open_properties(self) -> AbstractContextManager[Sequence[Property]]:
        """The properties of a `properties` target."""
        return cast("AbstractContextManager[Sequence[Property]]", self._module().opened())

    def inputs(self) -> list[Path]:
        """The files of its corpus: seeds, and what once broke something."""
        return sorted((CORPUS / self.name).glob("*"))

    def _module(self) -> Any:
        return importlib.import_module(f"{__package__}.{self.name}")


TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        Target("openapi", "every call of the OpenAPI document, with what fits it and what does not", "properties"),
        Target("images", "decoding of image files, down to the model's input", "coverage", 16384),
        Target("geometry", "geometry, cropping, belief maps, tracking and smoothing", "properties"),
        Target("files", "routing file, model server configuration, model card, settings", "coverage"),
        Target("rest", "bodies and headers of REST calls: raw, JSON, base64, multipart, chunked", "coverage"),
        Target("http", "raw bytes on REST's socket", "coverage"),
        Target("rpc", "gRPC messages and metadata, whole and mutated", "coverage"),
        Target("keys", "the file of API keys, and what is shown at the door of REST, gRPC and WebSocket", "coverage"),
        Target("stream", "messages and frames of a WebSocket stream", "coverage"),
    )
}
