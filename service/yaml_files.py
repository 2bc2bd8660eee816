"""The operator's YAML files, read strictly: a name given twice is an error, and every error names its line."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from service.files import FileError

Place = tuple[str | int, ...]
"""Names and indices that lead from the document to a value within it."""
T = TypeVar("T")

_DEEPEST: Final = 8
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


@dataclass(slots=True)
class Document:
    """A YAML document.

    Attributes:
        name: of its file, for errors.
        data: its value; None if it is empty. Dates are text, because YAML allows more forms of them than its readers
            should.
        lines: the line, from 1, at which each value within it begins.
    """

    name: str
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def validated(self, adapter: TypeAdapter[T]) -> T:
        """The document as typed values. Raises FileError with the first fault; it never repeats a value."""
        try:
            return adapter.validate_python(self.data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = first["loc"]
            line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), 1)
            shown = ".".join(str(part) for part in place if part != "[key]")
            message = str(first["msg"]).removeprefix("Value error, ")
            where = f"{self.name}, line {line}: {shown}: " if shown else f"{self.name}, line {line}: "
            raise FileError(f"{where}{message[:1].lower()}{message[1:]}") from error


def parse(content: bytes, name: str) -> Document:
    """Read a document. Raises FileError if it is not YAML, repeats a name, or is nested deeper than `_DEEPEST`."""
    document = Document(name)
    try:
        root = yaml.compose(content, yaml.SafeLoader)
        document.data = None if root is None else _value(root, document, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise FileError(f"{name}{where}: no YAML: {error.problem or error.context}") from error
    except FileError:
        raise
    except Exception as error:  # a value that is not what its tag says breaks PyYAML with errors of any kind
        raise FileError(f"{name}: no YAML: {[*str(error).splitlines(), type(error).__name__][0]}") from error
    return document


def _value(node: yaml.Node, document: Document, place: Place) -> Any:
    line = document.lines.setdefault(place, node.start_mark.line + 1)
    if len(place) > _DEEPEST:
        raise FileError(f"{document.name}, line {line}: nested too deep")
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, document, (*place, index)) for index, each in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return node.value if node.tag == _TIMESTAMP else yaml.constructor.SafeConstructor().construct_object(node)
    values = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        key_line = key_node.start_mark.line + 1
        if not key or key == "<<" or key in values:
            wrong = "given twice" if key in values else "not a plain name"
            raise FileError(f"{document.name}, line {key_line}: {key or 'a key'} is {wrong}")
        document.lines[*place, key] = key_line
        values[key] = _value(value_node, document, (*place, key))
    return values
