"""The layers of ARCHITECTURE.md hold, and the check that says so notices when they do not."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """What `make lint` runs, on the source tree below root."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def source_copy(tmp_path: Path) -> Path:
    """A copy of the source tree that a test may spoil."""
    for package in ("service", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=not_source)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def not_source(folder: str, names: list[str]) -> set[str]:
    """What need not be copied from a folder: weights, pictures."""
    return {name for name in names if not (name.endswith(".py") or Path(folder, name).is_dir())}


def test_the_source_keeps_to_its_layers(source_copy: Path) -> None:
    verdict = lint_imports(source_copy)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@pytest.mark.parametrize(
    ("package", "planted", "broken_contract"),
    [
        ("service/pose", "import service.inference", "The service's layers"),
        ("service/inference", "import service.settings", "The service's layers"),
        ("service/rest", "import service.backends", "The service's layers"),
        ("service", "", "The service's layers"),  # a module without a place in the layers
        ("service/inference", "import trainer", "The service never imports the trainer"),
        ("service/client", "import service.rpc.convert", "The client shares service.pose and the messages only"),
        ("trainer", "import service.inference", "Of the service, the trainer imports service.pose only"),
        ("service/pose", "import tensorflow", "service.pose is NumPy and Pillow"),
        ("service/inference", "import fastapi", "service.inference knows no protocol"),
    ],
)
def test_a_planted_violation_breaks_its_contract(
    source_copy: Path, package: str, planted: str, broken_contract: str
) -> None:
    (source_copy / package / "planted.py").write_text(f"{planted}\n")

    verdict = lint_imports(source_copy)

    assert verdict.returncode == 1
    broken = [line for line in verdict.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(broken_contract) for line in broken), verdict.stdout + verdict.stderr


def test_pose_imports_only_numpy_and_pillow_outside_the_standard_library() -> None:
    graph = grimp.build_graph("service", include_external_packages=True, cache_dir=None)
    pose = {"service.pose", *graph.find_descendants("service.pose")}

    imported = set().union(*(graph.find_modules_directly_imported_by(module) for module in pose))

    assert imported - pose - sys.stdlib_module_names == {"numpy", "PIL", "pi_heif"}


def test_no_text_advises_to_install_a_package_of_a_name_that_nobody_owns() -> None:
    texts = [path for folder in ("service", "trainer", "docs") for path in (ROOT / folder).rglob("*.[pm][yd]")]
    assert len(texts) > 100
    assert [path for path in texts if "install 'handpose" in path.read_text("utf-8")] == []
