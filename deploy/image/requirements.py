"""Prints what the named extras need, one requirement a line: `requirements.py pyproject.toml service`.

The images install packages and code in separate layers, so that a change of the code does not install TensorFlow
again; pip itself can only install a project's requirements together with the project. Standard library only: it runs
before anything is installed.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The project's own requirements and those of the extras, sorted, each once.

    Raises:
        KeyError: if the project has no such extra.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    known: dict[str, list[str]] = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in extras for each in known[extra])]
    return sorted(set(wanted))


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
