"""Writes constraints.txt: the newest versions that fit pyproject.toml, for every extra and all they need.

Run by `make constraints` with the Python of `.venv`. pip resolves as if nothing were installed, and installs
nothing.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# What `make install` installs on Linux with Python 3.11. Written by `make constraints`.\n"


def main() -> None:
    """Resolve the extras named on the command line and replace constraints.txt."""
    requirement = f".[{','.join(sys.argv[1:])}]"
    print(f"==> resolving {requirement}, this takes a minute or two", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    resolve = [*pip, "--dry-run", "--ignore-installed", "--report", "-", requirement]
    answer = subprocess.run(resolve, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    packages = (package["metadata"] for package in json.loads(answer)["install"])
    pins = sorted(f"{normalised(package['name'])}=={package['version']}\n" for package in packages)
    pins = [pin for pin in pins if not pin.startswith("handpose==")]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(pins))
    print(f"==> constraints.txt pins {len(pins)} packages")


def normalised(name: str) -> str:
    """The one spelling of a package's name that all its spellings come to."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
