"""An example that is not run is a rumour: every Python block of the pages, and every docstring example, runs here.

A block is left out where an HTML comment `<!-- not run: reason -->` stands before it. The blocks of one page share a
namespace, in order, and find a live server without keys at BLACKBOX_URL. Importing the libraries takes longer than most
pages, so a process imports them once and runs a group of pages, each in a child forked from it.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import blackbox_client
import blackbox_server
import pytest

import blackbox
from tests.end_to_end.service import Service

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "blackbox/README.md",
    "blackbox/federation/README.md",
    "blackbox/backends/README.md",
    "blackbox/regions/README.md",
    "clients/README.md",
    "clients/python/README.md",
    "server/README.md",
    "tests/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "blackbox" / "federation" / "methods").glob("*.md")),
)
METHODS = ROOT / "blackbox" / "algorithms"
METHOD_PAGES = tuple(sorted(f"blackbox/algorithms/{page.name}" for page in METHODS.glob("*.md")))
SECTIONS = ["When to use it", "Cost", "Measured", "Traps", "Source"]
BLOCK = re.compile(r"(<!--\s*not run:[^\n]*?-->\s*)?^```python\n(.*?)^```", re.S | re.M)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, source) of each block that is run; the line is that of its first statement."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start(2)) + 1, found[2]) for found in BLOCK.finditer(text) if found[1] is None]


def program(page: Path) -> str:
    """One program of all blocks, at the lines where they stand, so that a traceback points into the page."""
    lines: list[str] = []
    for line, source in blocks(page):
        lines += [""] * (line - 1 - len(lines)) + source.splitlines()
    return "\n".join(lines) + "\n"


def groups() -> dict[str, list[Path]]:
    """The pages that have blocks to run, by group; those about the tests are the only ones that need `tests` itself."""
    pages = [ROOT / name for name in PAGES + METHOD_PAGES if (ROOT / name).is_file() and blocks(ROOT / name)]
    found: dict[str, list[Path]] = {}
    for page in pages:
        folder = page.parent.name
        found.setdefault(folder if folder in ("algorithms", "methods", "tests") else "overviews", []).append(page)
    return found


RUNNER = """
import os, runpy, sys, traceback
import blackbox, blackbox_client, numpy, scipy.optimize  # once for all pages

failed = []
for script in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.argv = [script]
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(script)
sys.exit(f"failed: {failed}" if failed else 0)
"""


LONG = ("algorithms", "tests")
"""Groups whose blocks are left to the whole suite."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Service(tmp_path_factory.mktemp("server")) as service:
        yield service.start().url


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=pytest.mark.slow if group in LONG else ()) for group in groups()]
)
def test_the_blocks_of_the_pages_run(group: str, url: str, tmp_path: Path) -> None:
    scripts = []
    for page in groups()[group]:
        script = tmp_path / f"{page.parent.name}-{page.stem}.py"
        script.write_text(program(page))
        scripts.append(script)
    path = str(ROOT) if group == "tests" else ""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *scripts],
        cwd=tmp_path,
        env={**os.environ, "BLACKBOX_URL": url, "BLACKBOX_KEY": "", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_there_and_no_block_hides_behind_another_spelling() -> None:
    assert [name for name in PAGES if not (ROOT / name).is_file()] == []
    for name in PAGES + METHOD_PAGES:
        text = (ROOT / name).read_text()
        assert not re.findall(r"^```(?:py|Python|python3|pycon)\s*$", text, re.M), name
        assert not re.findall(r"<!--\s*not run\s*(?:-->|:\s*-->)", text), f"{name}: say why a block is not run"


def built_in() -> set[str]:
    """Names of the methods in `blackbox.algorithms`, and `auto`."""
    ours = {
        name for name, method in blackbox.registry().items() if method.__module__.startswith("blackbox.algorithms.")
    }
    return ours | {"auto"}


def test_every_method_has_its_page_with_the_same_sections() -> None:
    pages = {Path(name).stem: (ROOT / name).read_text() for name in METHOD_PAGES}
    assert set(pages) == built_in()
    for name, text in pages.items():
        assert text.startswith(f"# {name}\n"), name
        assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS, name
        for section in re.split(r"^## .+$", text, flags=re.M)[1:]:
            assert len(section.split()) > 5, f"{name}: a section that says nothing"


def test_links_between_pages_lead_somewhere() -> None:
    for name in PAGES + METHOD_PAGES:
        page = ROOT / name
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{name}: {link}"


def modules() -> list[str]:
    found = []
    for package in (blackbox, blackbox_client, blackbox_server):
        found.append(package.__name__)
        found += [each.name for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if not name.endswith("__main__") and ".migrations." not in name]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in examples(module):
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
