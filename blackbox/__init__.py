"""Gradient-free / zeroth-order black-box optimization.

>>> import blackbox
>>> space = {"x": blackbox.Float(low=-5, high=5), "act": blackbox.Categorical(choices=["relu", "gelu"])}
>>> result = blackbox.minimize(lambda p: p["x"] ** 2 + (p["act"] == "relu"), space, budget=200)
>>> result.x["act"]
'gelu'
"""

from blackbox.algorithm import Algorithm, Traits, algorithm, registry
from blackbox.errors import BlackboxError
from blackbox.minimize import Candidate, Optimizer, minimize, run
from blackbox.options import Field, Options
from blackbox.records import Dense, Notice, Pending, Points, Recipe, Recipes, Results, Stop, Structured, Term, dense
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Categorical, Float, Int, Space, Vector
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore

__all__ = [
    "UNKNOWN",
    "Algorithm",
    "BlackboxError",
    "Candidate",
    "Categorical",
    "Dense",
    "Field",
    "Float",
    "Int",
    "Key",
    "MemoryStore",
    "Notice",
    "Optimizer",
    "Options",
    "Outlook",
    "Pending",
    "Points",
    "Recipe",
    "Recipes",
    "Results",
    "Space",
    "Stop",
    "Structured",
    "Study",
    "Term",
    "Traits",
    "Vector",
    "algorithm",
    "create",
    "dense",
    "minimize",
    "perform",
    "registry",
    "run",
]

_RENAMED = {"Real": "Float", "Integer": "Int", "Choice": "Categorical"}


def __getattr__(name: str) -> object:
    """Say where a name has gone that an older release had."""
    if name in _RENAMED:
        raise AttributeError(f"blackbox.{name} is blackbox.{_RENAMED[name]} now, as on the wire")
    raise AttributeError(f"module 'blackbox' has no attribute {name!r}")
