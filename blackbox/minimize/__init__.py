"""Optimization in process: `minimize(fn, space, ...)`, and `run(study, ...)` for an existing study."""

from blackbox.minimize.driving import run
from blackbox.minimize.front import minimize
from blackbox.minimize.result import summary

__all__ = ["minimize", "run", "summary"]
