"""What is in the two wheels: `blackbox` and `blackbox_server` in one, `blackbox_client` in the other, nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "blackbox-zoo": (ROOT, {"blackbox", "blackbox_server"}),
    "blackbox-zoo-client": (ROOT / "clients" / "python", {"blackbox_client"}),
}


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_declares_exactly_its_packages(name: str) -> None:
    folder, packages = DISTRIBUTIONS[name]
    found = project(folder)
    assert found["project"]["name"] == name
    hatch = found["tool"]["hatch"]["build"]
    assert {Path(path).name for path in hatch["targets"]["wheel"]["packages"]} == packages
    assert all((folder / path / "__init__.py").is_file() for path in hatch["targets"]["wheel"]["packages"])
    assert all((folder / path / "py.typed").is_file() for path in hatch["targets"]["wheel"]["packages"])
    assert hatch["dev-mode-exact"] is True


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wheel_holds_exactly_its_packages(name: str, tmp_path: Path) -> None:
    folder, packages = DISTRIBUTIONS[name]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages
    for package in packages:
        source = next(path for path in (folder, ROOT / "server") if (path / package).is_dir()) / package
        files = [*source.rglob("*.py"), *source.rglob("*.md")]  # pages travel with the code that they are about
        wanted = {f"{package}/{path.relative_to(source).as_posix()}" for path in files}
        assert wanted <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".db", ".lock"))]


def test_the_engine_alone_needs_no_server_package() -> None:
    needed = {Requirement(text).name for text in project(ROOT)["project"]["dependencies"]}
    assert needed == {"numpy", "scipy", "cma", "pydantic"}
    needed = {Requirement(text).name for text in project(ROOT / "clients" / "python")["project"]["dependencies"]}
    assert needed == {"httpx", "numpy"}


def test_every_dependency_says_what_it_buys() -> None:
    """One line per dependency, each with a comment (several on one line share theirs)."""
    bare = []
    for folder, _ in DISTRIBUTIONS.values():
        for number, line in enumerate((folder / "pyproject.toml").read_text().splitlines(), 1):
            listed = line.startswith('    "') and line.rstrip().rstrip(",").endswith('"') and ">=" in line
            if listed and not any(word in line for word in ("pytest", "ruff", "mypy")):
                bare.append(f"{folder.name}/pyproject.toml:{number}")
    assert bare == []


def test_the_installed_script_is_the_command_line() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="blackbox")
    assert script.value == "blackbox.cli:main"
    assert script.load().__module__ == "blackbox.cli"
