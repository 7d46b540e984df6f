"""Optimization in process: `minimize(fn, space, ...)`, `Optimizer` for loops of one's own, `run` for existing studies.

`front` is the door; `problem` reads what people give, `stores` opens where a study is kept, `driving` evaluates it on a
backend, `told` reads what objectives return, `result` says what was found.
"""

from blackbox.minimize.driving import run
from blackbox.minimize.front import minimize
from blackbox.minimize.optimizer import Candidate, Optimizer
from blackbox.minimize.result import summary

__all__ = ["Candidate", "Optimizer", "minimize", "run", "summary"]
