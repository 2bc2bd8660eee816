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

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from service import yaml_files
from service.files import FileError, read_at_most
from service.inference.errors import UnknownModelError
from service.inference.models import ModelReference, Variant
from service.inference.routing import RoutingRules, ShadowRule


def read_rules(path: Path) -> RoutingRules:
    """The rules in a file. Raises FileError if it cannot be read or is wrong."""
    return parse_rules(read_at_most(path), str(path))


def parse_rules(content: bytes, name: str = "routing file") -> RoutingRules:
    """The rules in a file's content. Raises FileError with file and line, what is wrong and what is allowed."""
    document = yaml_files.parse(content, name)
    if not isinstance(document.data, dict):
        raise FileError(f"{name}: expected default, weights, canary or shadow; for no rules, write {{}}")
    return document.validated(_FILE).rules()


def _checked(text: str) -> str:
    try:
        ModelReference.parse(text)
    except UnknownModelError as error:
        raise ValueError(error.detail) from error
    return text


# Text that names a model: variant[@version|@label].
ModelName = Annotated[str, AfterValidator(_checked)]

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
    weights: dict[ModelName, _Weight] | None = None
    canary: dict[Variant, _Share] | None = None
    shadow: list[_Shadow] | None = None

    @model_validator(mode="after")
    def _some_weight(self) -> "_File":
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: at least one must be above 0")
        return self

    def rules(self) -> RoutingRules:
        return RoutingRules(
            default=ModelReference.parse(self.default) if self.default is not None else None,
            weights=tuple((ModelReference.parse(name), weight) for name, weight in (self.weights or {}).items()),
            canary={str(variant): share for variant, share in (self.canary or {}).items()},
            shadow=tuple(
                ShadowRule(rule.source, ModelReference.parse(rule.to), rule.share) for rule in self.shadow or ()
            ),
        )


_FILE: Final = TypeAdapter(_File)
