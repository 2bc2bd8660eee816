"""What the images install, as read from pyproject.toml."""

from pathlib import Path

import pytest

from deploy.image.requirements import requirements

PYPROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"


def names(*extras: str) -> set[str]:
    return {each.split(">=")[0] for each in requirements(PYPROJECT, list(extras))}


def test_an_extra_comes_with_what_the_project_itself_needs(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\ndependencies = ["b>=2", "a"]\n[project.optional-dependencies]\nmore = ["c", "a"]\nother = ["d"]\n'
    )
    assert requirements(pyproject, ["more"]) == ["a", "b>=2", "c"]


def test_the_gateway_needs_neither_tensorflow_nor_keras() -> None:
    assert "fastapi" in names("service", "tracing")
    assert not {"tensorflow", "keras", "tensorflow-serving-api"} & names("service", "tracing")


def test_an_extra_that_the_project_does_not_have_is_refused() -> None:
    with pytest.raises(KeyError, match="servise"):
        requirements(PYPROJECT, ["servise"])
