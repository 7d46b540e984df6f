"""Rooms that stay few, and files that stay short."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "blackbox": 20,
    "server/blackbox_server": 14,
    "clients/python/blackbox_client": 10,
}
"""Most modules and folders at the top of each package."""
LONGEST = 500


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(("package", "most"), PACKAGES.items())
def test_a_package_has_few_rooms(package: str, most: int) -> None:
    rooms = [
        entry.name
        for entry in (ROOT / package).iterdir()
        if entry.suffix == ".py" or (entry.is_dir() and entry.name != "__pycache__")
    ]
    assert len(rooms) <= most, sorted(rooms)


def test_the_import_contract_has_few_layers_and_names_rooms_only() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert len(layers) <= 13
    named = {name.strip() for layer in layers for name in layer.split("|")}
    found = {
        f"blackbox.{entry.stem}"
        for entry in (ROOT / "blackbox").iterdir()
        if (entry.suffix == ".py" and entry.stem != "__init__") or (entry.is_dir() and entry.name != "__pycache__")
    }
    assert named == found


def test_a_long_file_says_why_it_is_one() -> None:
    silent = []
    for path in sources("blackbox", "server", "clients", "docker"):
        text = path.read_text()
        if "migrations" in path.parts or text.count("\n") <= LONGEST:
            continue
        if "one file because" not in (ast.get_docstring(ast.parse(text)) or "").lower():
            silent.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
    assert silent == [], 'split it, or say in its docstring that it is "one file because ..."'


def test_the_story_of_a_studys_trials_fits_four_hundred_lines() -> None:
    assert (ROOT / "blackbox" / "study" / "trials.py").read_text().count("\n") <= 400
