"""What holds for the sources themselves and import-linter cannot see; its contracts are in pyproject.toml."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]

PROTOCOL_WORDS: Final = re.compile(
    r"\bX-[A-Z][\w-]*|\bAuthorization\b|\b[Bb]earer\b|\b[Tt]raceparent\b|\bContent-Type\b|\bRetry-After\b|\bUser-Agent\b"
    r"|\bHTTP\b|\bgRPC\b|\bREST\b|\bWebSocket\b|\bstatus code\b"
)


def test_the_core_speaks_of_no_protocol() -> None:
    sources = sorted((ROOT / "service" / "inference").rglob("*.py"))
    assert sources
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in sources
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in PROTOCOL_WORDS.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("benchmarks", {"tests"}),
        ("tests", {"benchmarks"}),
        ("deploy", {"tests", "benchmarks"}),
        ("service", {"tests", "benchmarks", "deploy"}),
        ("trainer", {"tests", "benchmarks", "deploy"}),
    ],
)
def test_imports_between_the_top_folders_go_one_way(folder: str, forbidden: set[str]) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources
        for module in imported_by(path)
        if module.partition(".")[0] in forbidden
    ]
    assert found == []


def imported_by(path: Path) -> Iterator[str]:
    """The modules that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
