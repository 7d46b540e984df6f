"""Gradient-free / zeroth-order black-box optimization.

>>> import blackbox
>>> space = {"x": blackbox.Real(low=-5, high=5), "act": blackbox.Choice(choices=["relu", "gelu"])}
>>> result = blackbox.minimize(lambda p: p["x"] ** 2 + (p["act"] == "relu"), space, budget=200)
>>> result.x["act"]
'gelu'
"""

from blackbox.algorithm import Algorithm, Traits, algorithm, registry
from blackbox.errors import BlackboxError
from blackbox.minimize import minimize, run
from blackbox.options import Field, Options
from blackbox.records import Dense, Pending, Points, Recipe, Recipes, Results, Stop, Structured, Term, dense
from blackbox.rng import Key
from blackbox.space import Choice, Integer, Real, Space, Vector
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore

__all__ = [
    "Algorithm",
    "BlackboxError",
    "Choice",
    "Dense",
    "Field",
    "Integer",
    "Key",
    "MemoryStore",
    "Options",
    "Pending",
    "Points",
    "Real",
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
