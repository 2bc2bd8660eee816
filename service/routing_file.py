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
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service import yaml_files
from service.files import FileError, follow, read_at_most
from service.inference.errors import UnknownModelError
from service.inference.models import ModelReference, Variant
from service.inference.routing import Router, RoutingRules, ShadowRule

MAX_BYTES: Final = 256 * 1024


def read_rules(path: Path) -> RoutingRules:
    """The rules in a file.

    Raises:
        FileError: it cannot be read or is wrong.
    """
    return parse_rules(read_at_most(path, MAX_BYTES), str(path))


def parse_rules(content: bytes, name: str = "routing file") -> RoutingRules:
    """The rules in a file's content; `name` is the file's name in errors.

    Raises:
        FileError: they are wrong.
    """
    document = yaml_files.parse(content, name)
    if document.data is None:
        raise FileError(f"{name}: is empty; for no rules, write {{}}")
    if not isinstance(document.data, dict):
        raise FileError(f"{name}, line 1: expected default, weights, canary or shadow")
    try:
        return _File.model_validate(document.data).rules()
    except ValidationError as error:
        raise FileError(_in_one_line(error, document, name)) from error


class RoutingFile:
    """Hands the rules in a file to a router, again whenever the file changes.

    Args:
        path: the file.
        router: gets the rules.
    """

    def __init__(self, path: Path, router: Router) -> None:
        self._path = path
        self._router = router
        self._content: bytes | None = None

    def load(self) -> bool:
        """Read the file if it has changed; whether it had.

        Raises:
            FileError: it is wrong. The router keeps its rules.
        """
        # The content is compared, not the time: a mounted file changes by a link that now leads elsewhere.
        content = read_at_most(self._path, MAX_BYTES)
        if content == self._content:
            return False
        self._router.follow(parse_rules(content, str(self._path)))
        self._content = content
        return True

    async def watch(self, every_s: float = 1.0) -> None:
        """Follow the file for ever. A file that is wrong changes nothing, and is logged once."""
        await follow(lambda: asyncio.to_thread(self.load), every_s=every_s, what=f"routing rules in {self._path}")


def _checked(text: str) -> str:
    try:
        ModelReference.parse(text)
    except UnknownModelError as error:
        raise ValueError(error.detail) from error
    return text


ModelName = Annotated[str, AfterValidator(_checked)]
"""Text that names a model: variant[@version|@label]."""

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Shadow(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    source: Variant | None = Field(None, alias="from")
    to: ModelName
    share: _Share


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    default: ModelName | None = None
    weights: dict[ModelName, _Weight] = Field(default_factory=dict)
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


def _in_one_line(error: ValidationError, document: yaml_files.Document, name: str) -> str:
    """What is wrong first: file, line, place, reason."""
    first = error.errors(include_url=False, include_context=False)[0]
    shown = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = str(first["msg"]).removeprefix("Value error, ")
    place = f"{shown}: " if shown else ""
    return f"{name}, line {document.line_of(first['loc'])}: {place}{message[:1].lower()}{message[1:]}"
