"""The operator's YAML files as plain values, strictly: a name given twice is an error, and every value has its line."""

from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from service.files import FileError

Place = tuple[str | int, ...]
"""Names and indices that lead from the document to a value within it."""

_DEEPEST: Final = 8
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


@dataclass(slots=True)
class Document:
    """A YAML document.

    Attributes:
        data: its value. Dates are text, because YAML allows more forms of them than its readers should.
        lines: the line, from 1, at which each value within it begins.
    """

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """The line of a value, or of the innermost one around it that is known."""
        return next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), 1)


def parse(content: bytes, name: str) -> Document:
    """Read a document; without one, its data is None. `name` is the file's in errors.

    Raises:
        FileError: it is no YAML, repeats a name, or is nested deeper than `_DEEPEST`.
    """
    document = Document()
    try:
        loader = yaml.SafeLoader(content)
        try:
            root = loader.get_single_node()
            document.data = None if root is None else _value(root, loader, (), document.lines, name)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise FileError(f"{name}{where}: no YAML: {error.problem or error.context}") from error
    except FileError:
        raise
    except Exception as error:  # a value that is not what its tag says breaks PyYAML with errors of any kind
        raise FileError(f"{name}: no YAML: {[*str(error).splitlines(), type(error).__name__][0]}") from error
    return document


def _value(node: yaml.Node, loader: yaml.SafeLoader, place: Place, lines: dict[Place, int], name: str) -> Any:
    lines[place] = line = node.start_mark.line + 1
    if len(place) > _DEEPEST:
        raise FileError(f"{name}, line {line}: no YAML for this file: nested too deep")
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, loader, (*place, index), lines, name) for index, each in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return node.value if node.tag == _TIMESTAMP else loader.construct_object(node)
    values = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        key_line = key_node.start_mark.line + 1
        if not key or key == "<<" or key in values:
            wrong = "given twice" if key in values else "not a plain name"
            raise FileError(f"{name}, line {key_line}: {key or 'a key'} is {wrong}")
        values[key] = _value(value_node, loader, (*place, key), lines, name)
        lines[*place, key] = key_line
    return values
