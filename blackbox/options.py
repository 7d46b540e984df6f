"""Options: the base model of what a user may tune of an algorithm, and how stored options are read.

Options are frozen, refuse unknown fields and non-finite numbers, and their attribute docstrings are the JSON schema's
descriptions. Defaults that depend on the problem are None in the model and filled in once by `Algorithm.resolve`, whose
result is of a type of its own, a subclass in which these fields are no longer optional. The resolved options are stored
with the study, so that a later change of a default cannot alter a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic import Field

from blackbox.errors import FieldError, InvalidOptions
from blackbox.validation import Model, field_errors, invalid, pointer

__all__ = ["Field", "Options", "Renamed", "known_options", "parse_options"]

M = TypeVar("M", bound=pydantic.BaseModel)
R = TypeVar("R", bound="Options")


def _same(value: Any, stored: Mapping[str, Any]) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Renamed:
    """Today's form of an option that had another name.

    Attributes
    ----------
    now : today's name.
    since : the release that renamed it.
    convert : (stored value, all stored options) to today's value; by default the value itself.
    unit : what today's value counts, where its unit changed.
    """

    now: str
    since: str
    convert: Callable[[Any, Mapping[str, Any]], Any] = _same
    unit: str = ""

    def hint(self, old: str) -> str:
        """Return the hint for somebody who writes the old name."""
        return f"{old} is called {self.now} since {self.since}" + (f" and counts {self.unit}" if self.unit else "")


class Options(Model):
    """Base of all algorithm options.

    Attributes
    ----------
    renamed : old names of options. Studies that were stored with them are read (`known_options`), and nobody may write
        them any more (`parse_options`).
    """

    renamed: ClassVar[Mapping[str, Renamed]] = {}

    def with_defaults(self, resolved: type[R], **defaults: Any) -> R:
        """Return these options as `resolved`, with each field that is still None set to the given default.

        Parameters
        ----------
        resolved : a subclass of this class in which these fields are not optional.
        defaults : values by field name; validated as if they had been written by hand.

        Raises
        ------
        InvalidOptions
            If a default is out of the field's range.
        """
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        full = parse_options(type(self), {**self.model_dump(), **missing}) if missing else self
        return parse_options(resolved, full.model_dump())


def parse_options(model: type[M], raw: dict[str, Any]) -> M:
    """Validate `raw` as `model` and return the instance.

    Raises
    ------
    InvalidOptions
        It names each field, what was expected and what came, for an unknown field the nearest known one, and for an old
        name today's.
    """
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        hint = "`blackbox algorithms NAME` lists its options"
        faults = [_explained(fault, _renamed(model)) for fault in field_errors(error, model)]
        raise invalid(InvalidOptions, faults, hint) from None


def known_options(model: type[M], stored: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return stored options as `model` takes them: under today's names, without those it no longer knows.

    Returns
    -------
    The options, and the dotted names of those left out.
    """
    raw = _by_todays_names(_renamed(model), stored)
    try:
        model.model_validate(raw)
    except pydantic.ValidationError as error:
        unknown = [fault["loc"] for fault in error.errors() if fault["type"] == "extra_forbidden"]
        known = deepcopy(raw)
        return known, tuple(".".join(map(str, place)) for place in unknown if _removed(known, place))
    return raw, ()


def _renamed(model: type[pydantic.BaseModel]) -> Mapping[str, Renamed]:
    return model.renamed if issubclass(model, Options) else {}


def _explained(fault: FieldError, renamed: Mapping[str, Renamed]) -> FieldError:
    """Return the fault, with today's name in the message where an old one was written."""
    for old, entry in renamed.items():
        if fault.pointer == pointer(old) and fault.code == "extra_forbidden":
            return replace(fault, message=entry.hint(old))
    return fault


def _by_todays_names(renamed: Mapping[str, Renamed], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored options under today's names; an old one that is None is left out and so gets today's default."""
    options = {name: value for name, value in stored.items() if name not in renamed}
    for old, entry in renamed.items():
        if stored.get(old) is not None and entry.now not in options:
            options[entry.now] = entry.convert(stored[old], stored)
    return options


def _removed(options: dict[str, Any], place: Sequence[int | str]) -> bool:
    """Remove a nested option and return whether it was found. A place holds names of union members beside keys."""
    inner: Any = options
    for key in place[:-1]:
        if isinstance(inner, dict) and key in inner:
            inner = inner[key]
    if not isinstance(inner, dict) or place[-1] not in inner:
        return False
    del inner[place[-1]]
    return True
