"""Nothing between a network or a database and the interpreter can run code: no pickle, no eval, no object loaders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("blackbox", "server", "clients") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
PIPES = {
    "blackbox/backends/processes.py": "pipes to our own children on this machine",
    "clients/python/blackbox_client/worker/lanes.py": "a pipe to the worker's own evaluating process",
}
"""Where multiprocessing may be used, which pickles what goes through its pipes, and why that is nobody else's data."""


def violations(source: str, name: str) -> Iterator[str]:
    """Each use of something that turns bytes into running code."""
    for node in ast.walk(ast.parse(source)):
        at = f"{name}:{getattr(node, 'lineno', 0)}"
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            top = module.partition(".")[0]
            if top in MODULES:
                yield f"{at} imports {module}"
            if top == "multiprocessing" and name not in PIPES:
                yield f"{at} imports {module}, whose pipes pickle"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).removeprefix("builtins.")
        if called in CALLS:
            yield f"{at} calls {called}"
        constants = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        given = {word.arg for word in node.keywords}
        if called in ("np.load", "numpy.load") and "allow_pickle" not in given:
            yield f"{at} calls {called} without allow_pickle=False"
        for option in ("allow_pickle", "shell"):
            if option in given and constants.get(option) is not False:
                yield f"{at} calls {called} with {option}"


def test_nothing_turns_bytes_into_code() -> None:
    assert len(FILES) > 50
    found = [each for path in FILES for each in violations(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert found == []


def test_the_scan_finds_what_it_looks_for() -> None:
    bad = [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "eval('1')",
        "__import__('os')",
        "np.load('f')",
        "np.load('f', allow_pickle=True)",
        "numpy.savez('f', allow_pickle=flag)",
        "subprocess.run('ls', shell=True)",
        "import builtins; builtins.exec('1')",
        "from multiprocessing import Pipe",
    ]
    assert [source for source in bad if not list(violations(source, "server/x.py"))] == []
    assert list(violations("np.load('f', allow_pickle=False)\nre.compile('a')\nmodel.eval()", "server/x.py")) == []


def test_the_stated_exceptions_are_still_needed() -> None:
    for name in PIPES:
        assert "multiprocessing" in (ROOT / name).read_text()
