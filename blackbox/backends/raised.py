"""What an objective raised, on its way from another process: its name and words arrive, whatever becomes of its class.

An exception that pickles need not unpickle (one whose `__init__` takes other arguments than its `args`, such as
`httpx.HTTPStatusError`). Where it does not, a `RemoteError` says what it was. `sys.exit` is an `ObjectiveExited`
everywhere: it would end the process that evaluates, and of its code and words nothing would be seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class ObjectiveExited(RuntimeError):
    """The objective, or the import of its module, called `sys.exit`."""


class RemoteError(RuntimeError):
    """An exception of another process that cannot be rebuilt here; the text says its type, its words and why.

    Attributes
    ----------
    type_name : name of its type.
    """

    def __init__(self, text: str, type_name: str = "RemoteError") -> None:
        super().__init__(text, type_name)
        self.type_name = type_name

    def __str__(self) -> str:
        return str(self.args[0])


def exited(error: SystemExit) -> ObjectiveExited:
    """The exception that says what an objective gave to `sys.exit`."""
    code = "" if error.code is None else repr(error.code)
    made = ObjectiveExited(
        f"the objective called sys.exit({code[:500]}); raise an exception to end the run, or return float('nan') for a "
        "point that cannot be evaluated"
    )
    made.__cause__ = error
    return made


def words(error: BaseException) -> str:
    """The text of an exception; never raises."""
    try:
        return str(error)
    except Exception as unprintable:
        return f"(its text raises {type(unprintable).__name__})"


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception in a form that arrives in another process.

    Attributes
    ----------
    type_name, text : name of its type, and its words.
    traceback : where it was raised, as Python prints it.
    pickled : the exception; None if it cannot be rebuilt.
    """

    type_name: str
    text: str
    traceback: str
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException, dumps: Callable[[Any], Any], loads: Callable[[bytes], Any]) -> Raised:
        """The exception, tried out: what cannot be rebuilt in this process is not sent."""
        where = "".join(traceback.format_exception(error))
        if isinstance(error, SystemExit):
            error = exited(error)
        pickled: bytes | None = None
        try:
            pickled = bytes(dumps(error))
            rebuilt = loads(pickled)
            if type(rebuilt) is not type(error) or words(rebuilt) != words(error):
                pickled = None
        except Exception:
            pickled = None
        return cls(type(error).__name__, words(error), where, pickled)

    def rebuilt(self, loads: Callable[[bytes], Any], where: str) -> BaseException:
        """The exception itself if possible, else a `RemoteError`; with the traceback of `where` as a note."""
        error: BaseException | None = None
        if self.pickled is not None:
            try:
                error = loads(self.pickled)
            except Exception:
                error = None
        if not isinstance(error, BaseException):
            error = RemoteError(f"{self.type_name}: {self.text}", self.type_name)
        error.add_note(f"{where}:\n{self.traceback}")
        return error
