"""Later releases, as this tree would be if somebody had changed an algorithm: put into the registry for one test."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import pydantic

from blackbox.options import Options

OF_A_STATE = (
    "need",
    "oldest",
    "lanes",
    "ask",
    "recommend",
    "metrics",
    "stopped",
    "payload",
    "base",
    "factors",
    "shape",
)
"""Methods that look at a state."""


def before_bounds(cls: Any) -> Any:
    """Revision 1 of a method that restarts, as it was until 0.2.0: it does not know of bounds."""

    class BeforeBounds(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        Options = cls.Options
        Resolved = cls.Resolved
        State = cls.State
        revision = 1

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.bounds.exist = False

    return BeforeBounds


def renamed(cls: Any, field: str, name: str) -> Any:
    """The algorithm with a field of its state renamed, and nothing else changed."""
    hints = typing.get_type_hints(cls.State)
    names = [part.name for part in dataclasses.fields(cls.State)]
    fields = [(name if part == field else part, hints[part]) for part in names]
    state_class = dataclasses.make_dataclass(cls.State.__name__, fields, frozen=True, slots=True)

    def new(state: Any) -> Any:
        return state_class(*(getattr(state, part) for part in names))

    def old(state: Any) -> Any:
        if isinstance(state, cls.State):
            return state
        return cls.State(*(getattr(state, part) for part, _ in fields))

    class Renamed(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        Options = cls.Options
        Resolved = cls.Resolved
        State = state_class

        def init(self) -> Any:
            return new(super().init())

        def tell(self, state: Any, results: Any) -> Any:
            return new(super().tell(old(state), results))

    def looking(method: str) -> Callable[..., Any]:
        return lambda self, state, *more: getattr(cls, method)(self, old(state), *more)

    for method in OF_A_STATE:
        if hasattr(cls, method):
            setattr(Renamed, method, looking(method))
    return Renamed


def without_option(cls: Any, option: str) -> Any:
    """The algorithm without an option: what its default did it always does."""

    def shortened(model: type[Options]) -> Any:
        kept: Any = {name: (field.annotation, field) for name, field in model.model_fields.items() if name != option}
        shorter: Any = pydantic.create_model(model.__name__, __base__=Options, **kept)
        shorter.renamed = model.renamed
        return shorter

    class Without(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        State = cls.State

        def __init__(self, space: Any, options: Any, *more: Any) -> None:
            super().__init__(space, cls.Resolved(**options.model_dump()), *more)

        @classmethod
        def resolve(cls_, options: Any, space: Any, outlook: Any = None) -> Any:
            full = cls.resolve(cls.Options(**options.model_dump()), space)
            return cls_.Resolved(**full.model_dump(exclude={option}))

    Without.Options, Without.Resolved = shortened(cls.Options), shortened(cls.Resolved)
    return Without


def revised(cls: Any, change: Callable[[Any], Any] = lambda state: state) -> Any:
    """The algorithm's next revision, with what it computes changed."""

    class Revised(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        Options = cls.Options
        Resolved = cls.Resolved
        State = cls.State
        revision = cls.revision + 1

        def tell(self, state: Any, results: Any) -> Any:
            return change(super().tell(state, results))

    return Revised


def stricter(cls: Any, option: str, field: Any) -> Any:
    """The algorithm with another range of an option."""

    class Stricter(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        State = cls.State
        Options = pydantic.create_model(cls.Options.__name__, __base__=cls.Options, **{option: field})
        Resolved = pydantic.create_model(cls.Resolved.__name__, __base__=cls.Resolved, **{option: field})

    return Stricter
