"""What may import what, and that the engine needs nothing of the network, the database or the command line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

BLOCKED = """
import importlib, pkgutil, sys

class Refusing:
    names = {"fastapi", "starlette", "uvicorn", "ray", "sqlalchemy", "alembic", "psycopg", "httpx", "typer", "rich",
             "orjson", "prometheus_client", "plotly", "gymnasium", "blackbox_server", "blackbox_client"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} is not for the engine")

sys.meta_path.insert(0, Refusing())
import blackbox

seen = ["blackbox"]
for module in pkgutil.walk_packages(blackbox.__path__, "blackbox.", onerror=lambda name: None):
    if not module.name.startswith("blackbox.cli"):
        importlib.import_module(module.name)
        seen.append(module.name)
assert len(seen) > 25, seen

from blackbox.algorithm import registry

assert len(registry()) >= 6, registry()
result = blackbox.minimize(lambda x: float((x**2).sum()), [(-5, 5)] * 2, budget=30)
assert result.nfev == 30
"""


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """(file and line, imported top-level package) of every import under a folder, also inside functions."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name.partition(".")[0]


def test_import_contracts_hold() -> None:
    told = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "0 broken" in told.stdout


def test_the_engine_works_where_no_server_package_can_be_imported() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=100)


def test_the_client_needs_httpx_and_numpy_only() -> None:
    foreign = {
        place: name
        for place, name in imports(ROOT / "clients" / "python" / "blackbox_client")
        if name not in sys.stdlib_module_names and name not in ("blackbox_client", "httpx", "numpy")
        if "participant.py" not in place or name != "blackbox"  # the extra `federated`; nothing else imports it
    }
    assert foreign == {}


def test_the_server_knows_methods_only_through_the_registry() -> None:
    named = []
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            named += [f"{path}:{node.lineno}" for module in modules if module.startswith("blackbox.algorithms")]
    assert named == []


def test_ray_is_known_in_one_place() -> None:
    """So that nothing of it is imported by those who do not ask for it, and nothing of it is served."""
    known = re.compile(r"""^\s*(import|from) ray\b|import_module\(["']ray\b""", re.M)
    places = [path for folder in ("blackbox", "server", "clients") for path in (ROOT / folder).rglob("*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in places if known.search(path.read_text())]
    assert found == ["blackbox/backends/ray_cluster/session.py"]


def test_the_engine_reads_no_clock() -> None:
    """Time is an argument, so that tests move it and a replay does not depend on it.

    Backends wait for processes and the command line talks to people: these may look at a clock.
    """
    allowed = ("blackbox/backends/", "blackbox/cli/", "blackbox/minimize/", "blackbox/toolbox/inversion.py")
    clocks = {"time", "monotonic", "time_ns", "now", "utcnow", "today"}
    found = []
    for path in sorted((ROOT / "blackbox").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in ("time", "datetime", "date") and node.func.attr in clocks:
                found.append(f"{name}:{node.lineno}")
    assert [place for place in found if not place.startswith(allowed)] == []
