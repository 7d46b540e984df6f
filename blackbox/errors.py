"""Exceptions of the engine.

::

    BlackboxError
    ├── InvalidInput (ValueError)      the input cannot be used; nothing was changed
    │   ├── InvalidSpace               an invalid search space, or a point that does not fit it
    │   ├── InvalidOptions             options an algorithm does not take
    │   ├── InvalidRegion              a constraint set that is unbounded, empty or badly described
    │   ├── NonFiniteValue             NaN or infinity where a finite number is needed
    │   ├── InvalidContribution        a federated contribution that is not what the open phase asks for
    │   ├── IncompatibleProblem        the algorithm cannot treat this kind of problem; names one that can
    │   └── TooLarge                   more memory or dimensions than allowed; names what fits
    ├── NotFound (KeyError)
    │   ├── RoundNotFound              a federated round that has not closed a phase yet
    │   ├── UnknownAlgorithm
    │   ├── StudyNotFound
    │   ├── TrialNotFound
    │   └── BlobNotFound
    ├── Conflict
    │   ├── AlgorithmChanged           this release cannot continue a computation of another release
    │   ├── StudySpecMismatch          a study of this name exists with another spec
    │   └── StudyStateError            the study's state does not allow this
    ├── LeaseUnknown                   a token that was not issued for this trial
    ├── NumericalError                 an algorithm produced a non-finite state; the old state is kept
    ├── CodecError                     bytes that are not an encoded state
    ├── SolverFailed                   a callback solver raised; its exception is the cause
    ├── SolverStalled                  a callback solver neither named a point nor finished in time
    ├── ReplayMismatch                 a replayed state differs from the digest in the log
    └── StoreUnavailable               the store cannot take writes now; retry
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid field.

    Attributes
    ----------
    pointer : its JSON pointer (RFC 6901).
    code : a stable word.
    message : what is wrong with it.
    """

    pointer: str
    code: str
    message: str


class BlackboxError(Exception):
    """Base of every error the engine raises on purpose.

    Parameters
    ----------
    detail : what was expected and what came.
    hint : what to do about it.
    errors : the invalid fields, if the input has fields.
    """

    def __init__(self, detail: str, *, hint: str = "", errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return f"{self.detail}; {self.hint}" if self.hint else self.detail


class InvalidInput(BlackboxError, ValueError):
    """The input cannot be used. Nothing was changed."""


class InvalidSpace(InvalidInput):
    """An invalid search space, or a point that does not fit its space."""


class InvalidOptions(InvalidInput):
    """Options that the algorithm does not take."""


class InvalidRegion(InvalidInput):
    """A constraint set that is unbounded, empty or badly described."""


class NonFiniteValue(InvalidInput):
    """NaN or infinity where a finite number is needed."""


class InvalidContribution(InvalidInput):
    """A contribution to a federated round that is not what the open phase asks for."""


class IncompatibleProblem(InvalidInput):
    """The algorithm cannot treat this kind of problem."""


class TooLarge(InvalidInput):
    """More memory, dimensions or items than allowed."""


class NotFound(BlackboxError, KeyError):
    """There is nothing of that name or id."""


class RoundNotFound(NotFound):
    """A federated round that has not closed a phase yet."""


class UnknownAlgorithm(NotFound):
    """No algorithm of that name is registered."""


class StudyNotFound(NotFound):
    """No such study (or not yours)."""


class TrialNotFound(NotFound):
    """No such trial in this study."""


class BlobNotFound(NotFound):
    """No base vector of that digest; it may have been dropped after its step closed."""


class Conflict(BlackboxError):
    """The request contradicts what is stored."""


class AlgorithmChanged(Conflict):
    """This release cannot compute the state of a study that another release began. Everything stored can be read."""


class StudySpecMismatch(Conflict):
    """A study of this name exists with another spec."""


class StudyStateError(Conflict):
    """The study's state does not allow this."""


class LeaseUnknown(BlackboxError):
    """A lease token that was not issued for this trial."""


class NumericalError(BlackboxError):
    """An algorithm produced a state that is not finite. The old state is kept."""


class CodecError(BlackboxError):
    """Bytes that are not an encoded state, or of another schema."""


class SolverFailed(BlackboxError):
    """The solver raised an exception; it is the cause of this one."""


class SolverStalled(BlackboxError):
    """The solver neither named a point nor finished within the time it was given."""


class ReplayMismatch(BlackboxError):
    """A replayed state differs from the digest recorded in the log."""


class StoreUnavailable(BlackboxError):
    """The store cannot take writes now. Retrying is safe."""


RENAMED: Mapping[str, str] = {"generation": "step", "generation.closed": "step.closed", "method": "algorithm"}
"""Words of earlier releases, and what they are called now."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or all of them when none is near. A word that was renamed is the nearest.

    >>> nearest("cma", ["cma_es", "cbo"])
    'did you mean "cma_es"?'
    >>> nearest("generation", ["name", "step"])
    'did you mean "step"?'
    """
    names = sorted(known)
    if RENAMED.get(name) in names:
        return f'did you mean "{RENAMED[name]}"?'
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"known: {', '.join(names)}"
