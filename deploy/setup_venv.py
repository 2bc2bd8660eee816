"""Makes `.venv` and installs this project's extras into it: `python3 deploy/setup_venv.py service embedded`.

Needs nothing beyond Python's standard library. When `.venv` already holds the extras and neither
pyproject.toml nor constraints.txt has changed, it does nothing and takes no time. Debian and Ubuntu ship
a Python without pip and without ensurepip, so pip is looked for in three places; none of them needs root
or changes the system.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = VENV / "handpose-setup.json"
MINIMUM_PYTHON = (3, 11)


class SetupError(Exception):
    """The environment cannot be made; the message says what would help."""


def main() -> None:
    """Bring `.venv` up to date with the extras named on the command line."""
    parser = argparse.ArgumentParser(description="Make .venv and install this project into it.")
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml; those installed before stay")
    try:
        set_up(set(parser.parse_args().extras))
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    except KeyboardInterrupt:
        sys.exit("set-up interrupted; run this again to go on from here")


def set_up(wanted: set[str]) -> None:
    """Install the wanted extras, unless they are there already; with none wanted, only provide pip."""
    sources = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    stamp = read_stamp()
    installed = set(stamp.get("extras", "").split())
    moved = stamp.get("root", str(ROOT)) != str(ROOT)  # the scripts in a moved environment name the old place
    if stamp.get("sources") == sources and wanted <= installed and VENV_PYTHON.exists() and not moved:
        return

    if moved or not has_pip():
        create_venv()
        installed = set()
    if not wanted:
        return

    extras = " ".join(sorted(wanted | installed))
    # A stamp without "sources" says that an installation was begun; an interrupted one is taken up again.
    write_stamp(root=str(ROOT), extras=extras)
    say(f"installing this project's extras into .venv: {extras}")
    requirement = f".[{extras.replace(' ', ',')}]"
    if not run(*venv_pip("install", "--constraint", str(CONSTRAINTS), "--editable", requirement), cwd=ROOT):
        raise SetupError("pip could not install the packages, see above; run this again to go on from here")
    write_stamp(root=str(ROOT), extras=extras, sources=sources)


def read_stamp() -> dict[str, str]:
    """What the last set-up wrote, empty if there was none."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def write_stamp(**stamp: str) -> None:
    """Record what `.venv` holds and which files that follows from."""
    STAMP.write_text(json.dumps(stamp, indent=1) + "\n")


def create_venv() -> None:
    """Make a fresh `.venv` with pip in it, from the first place that has pip."""
    if sys.version_info < MINIMUM_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"this is Python {found}, 3.11 or newer is needed: name one with PYTHON=python3.11")
    say(f"making .venv with Python {sys.version.split()[0]} ({sys.executable})")
    venv.EnvBuilder(clear=True, symlinks=True).create(VENV)
    for obtain_pip in (pip_from_ensurepip, pip_from_pip, pip_from_debian):
        if obtain_pip() and has_pip():
            return
    raise SetupError(
        "found no pip for .venv: this Python has neither ensurepip nor a pip, and Debian's python3-pip-whl "
        "could not be fetched. Install one (Debian, Ubuntu: apt-get install python3-venv) and run this again."
    )


def has_pip() -> bool:
    """Whether `.venv` has a pip that runs."""
    return VENV_PYTHON.exists() and run(*venv_pip("--version"), quiet=True)


def pip_from_ensurepip() -> bool:
    """The usual place; Debian moves it to the package python3-venv."""
    return has_module("ensurepip") and run(VENV_PYTHON, "-m", "ensurepip", "--default-pip", quiet=True)


def pip_from_pip() -> bool:
    """The pip of the Python that runs this, if it is 22.3 or newer."""
    return has_module("pip") and run(sys.executable, "-m", "pip", "--python", VENV_PYTHON, "install", "pip")


def pip_from_debian() -> bool:
    """The wheel in Debian's package python3-pip-whl, fetched and unpacked in a temporary folder.

    A bare Debian may have no package lists, and a user may not fetch them for the system, so apt keeps its
    own in the temporary folder.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    say("this Python comes without pip: fetching Debian's package python3-pip-whl for .venv")
    with tempfile.TemporaryDirectory() as folder:
        # Root's apt would hand over to a user who may not enter the folder.
        options = (f"Dir::State={folder}", f"Dir::Cache={folder}", "APT::Sandbox::User=")
        apt = ("apt-get", "--quiet", *(f"--option={option}" for option in options))
        fetched = run(*apt, "update") and run(*apt, "download", "python3-pip-whl", cwd=folder)
        packages = list(Path(folder).glob("python3-pip-whl_*.deb"))
        if not (fetched and packages and run("dpkg-deb", "--extract", packages[0], folder)):
            return False
        wheels = list(Path(folder).glob("usr/share/python-wheels/pip-*.whl"))
        return bool(wheels) and run(VENV_PYTHON, wheels[0] / "pip", "install", "--no-index", wheels[0])


def has_module(name: str) -> bool:
    """Whether the Python that runs this has the module."""
    return importlib.util.find_spec(name) is not None


def venv_pip(*arguments: str) -> list[str]:
    """The command line of the pip in `.venv`."""
    return [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def run(*command: str | Path, quiet: bool = False, cwd: str | Path | None = None) -> bool:
    """Run a command, with its output to see unless quiet; whether it succeeded."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.call([str(part) for part in command], stdout=output, stderr=output, cwd=cwd) == 0


def say(line: str) -> None:
    """Tell what happens now, before a command that takes its time."""
    print(f"==> {line}", flush=True)


if __name__ == "__main__":
    main()
