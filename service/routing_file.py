"""The operator's routing rules in a YAML file: read, checked, and followed when the file changes.

    default: lightweight          # for requests that nothing else decides
    weights:                      # requests that name no model; a client always gets the same one
      lightweight: 80
      standard: 20
    canary:                       # share of a variant's requests that goes to its version labelled "canary"
      lightweight: 0.05
    shadow:                       # copies after the answer is out
      - from: lightweight         # leave out for all variants
        to: standard              # variant[@version|@label]
        share: 0.1

Every part may be left out. What the rules mean is decided in `service.inference.routing`; that a model exists is not
checked here, because models come and go while the file stays.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.inference.errors import UnknownModelError
from service.inference.models import ModelReference, Variant
from service.inference.routing import Router, RoutingRules, ShadowRule

_log = logging.getLogger(__name__)

MAX_BYTES: Final = 256 * 1024


class RoutingFileError(ValueError):
    """The file is not one of routing rules; the message names file and line, what is wrong and what is allowed."""


def read_rules(path: Path) -> RoutingRules:
    """The rules in a file.

    Raises:
        RoutingFileError: if it cannot be read or is not right.
    """
    return parse_rules(_content_of(path), str(path))


def parse_rules(content: bytes, name: str = "routing file") -> RoutingRules:
    """The rules in a file's content; `name` is what errors call it.

    Raises:
        RoutingFileError: if they are not right.
    """
    if len(content) > MAX_BYTES:
        raise RoutingFileError(f"{name}: longer than {MAX_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(content)
        try:
            root = loader.get_single_node()
            lines: dict[tuple[str | int, ...], int] = {}
            data = {} if root is None else _plain(root, loader, (), lines, name)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise RoutingFileError(f"{name}{where}: no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, RoutingFileError):
            raise
        raise RoutingFileError(f"{name}: no YAML: {error}") from error
    if not isinstance(data, dict):
        raise RoutingFileError(f"{name}, line 1: expected default, weights, canary or shadow")
    try:
        return _File.model_validate(data).rules()
    except ValidationError as error:
        raise RoutingFileError(_in_one_line(error, lines, name)) from error


class RoutingFile:
    """Keeps a router's rules those of a file.

    Args:
        path: the file.
        router: gets the rules.
    """

    def __init__(self, path: Path, router: Router) -> None:
        self._path = path
        self._router = router
        self._content: bytes | None = None

    def load(self) -> bool:
        """Follow the file as it is now; whether it has changed since.

        Raises:
            RoutingFileError: if it is not right. The router keeps its rules.
        """
        # The content is compared, not the time: a mounted file changes by a link that now leads elsewhere.
        content = _content_of(self._path)
        if content == self._content:
            return False
        self._router.follow(parse_rules(content, str(self._path)))
        self._content = content
        return True

    async def watch(self, every_s: float = 1.0) -> None:
        """Follow the file for ever. A file that is not right changes nothing, and is logged once."""
        trouble: str | None = None
        while True:
            await asyncio.sleep(every_s)
            try:
                if await asyncio.to_thread(self.load):
                    _log.info("following the routing rules in %s as they are now", self._path)
                trouble = None
            except RoutingFileError as error:
                if str(error) != trouble:
                    _log.error("the routing rules stay as they were: %s", error)
                trouble = str(error)


def _content_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RoutingFileError(f"{path}: cannot be read: {error.strerror}") from error


def _model(text: str) -> str:
    try:
        ModelReference.parse(text)
    except UnknownModelError as error:
        raise ValueError(error.detail) from error
    return text


_Model = Annotated[str, AfterValidator(_model)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Shadow(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    source: Variant | None = Field(None, alias="from")
    to: _Model
    share: _Share


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    default: _Model | None = None
    weights: dict[_Model, _Weight] = Field(default_factory=dict)
    canary: dict[Variant, _Share] = Field(default_factory=dict)
    shadow: list[_Shadow] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _empty_parts_count_as_left_out(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}

    @model_validator(mode="after")
    def _some_weight(self) -> "_File":
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: at least one must be above 0")
        return self

    def rules(self) -> RoutingRules:
        return RoutingRules(
            default=ModelReference.parse(self.default) if self.default is not None else None,
            weights=tuple((ModelReference.parse(name), weight) for name, weight in self.weights.items()),
            canary=dict(self.canary),
            shadow=tuple(ShadowRule(rule.source, ModelReference.parse(rule.to), rule.share) for rule in self.shadow),
        )


def _plain(
    node: yaml.Node,
    loader: yaml.SafeLoader,
    path: tuple[str | int, ...],
    lines: dict[tuple[str | int, ...], int],
    name: str,
) -> Any:
    """A node as plain Python values, noting for each path within it the line where it begins."""
    lines[path] = node.start_mark.line + 1
    seen: set[str] = set()

    def below(key: str | int, value: yaml.Node) -> Any:
        if (*path, key) in lines or len(path) > 8:
            raise RoutingFileError(f"{name}, line {value.start_mark.line + 1}: nested too deep")
        return _plain(value, loader, (*path, key), lines, name)

    match node:
        case yaml.MappingNode():
            result = {}
            for key_node, value in node.value:
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
                if not key or key == "<<" or key in seen:
                    what = "given twice" if key in seen else "not a plain name"
                    raise RoutingFileError(f"{name}, line {key_node.start_mark.line + 1}: {key or 'a key'} is {what}")
                seen.add(key)
                result[key] = below(key, value)
                lines[(*path, key)] = key_node.start_mark.line + 1
            return result
        case yaml.SequenceNode():
            return [below(index, value) for index, value in enumerate(node.value)]
        case _:
            return loader.construct_object(node)


def _in_one_line(error: ValidationError, lines: dict[tuple[str | int, ...], int], name: str) -> str:
    """What is wrong first: file, line, place, reason."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = tuple(first["loc"])
    line = next((lines[prefix] for prefix in _prefixes(place) if prefix in lines), 1)
    shown = ".".join(str(part) for part in place if part != "[key]")
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name}, line {line}: {f'{shown}: ' if shown else ''}{message[:1].lower()}{message[1:]}"


def _prefixes(place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """The place itself, then what contains it, from the inside out."""
    for length in range(len(place), -1, -1):
        yield place[:length]
