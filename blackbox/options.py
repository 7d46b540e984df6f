"""What a user may tune: the base model of every algorithm's options.

Options are frozen, refuse unknown fields and non-finite numbers, and their attribute docstrings are the JSON schema's
descriptions. Defaults that depend on the problem are None in the model and filled in once by `Algorithm.resolve`, whose
result is of a type of its own, a subclass in which these fields are no longer optional. The resolved options are stored
with the study, so that a later change of a default cannot alter a replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

import pydantic
from pydantic import Field

from blackbox.errors import InvalidOptions
from blackbox.validation import Model, field_errors, invalid

__all__ = ["Field", "Options", "known_options", "parse_options"]

M = TypeVar("M", bound=pydantic.BaseModel)
R = TypeVar("R", bound="Options")


class Options(Model):
    """Base of all algorithm options."""

    def with_defaults(self, resolved: type[R], **defaults: Any) -> R:
        """These options as `resolved`, with each field that is still None set to the given value.

        Parameters
        ----------
        resolved : a subclass in which these fields are not optional.
        defaults : by name; validated as if they had been written by hand.

        Raises
        ------
        InvalidOptions
            If a default is out of the field's range.
        """
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        full = parse_options(type(self), {**self.model_dump(), **missing}) if missing else self
        return parse_options(resolved, full.model_dump())


def parse_options(model: type[M], raw: dict[str, Any]) -> M:
    """Validate `raw` as `model`.

    Raises
    ------
    InvalidOptions
        Naming each field, what was expected, what came, and the nearest field for an unknown one.
    """
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        raise invalid(
            InvalidOptions, field_errors(error, model), "`blackbox algorithms NAME` lists its options"
        ) from None


def known_options(model: type[M], raw: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Stored options without those that `model` does not know (any more), and the names of these, dotted."""
    try:
        model.model_validate(raw)
    except pydantic.ValidationError as error:
        unknown = [fault["loc"] for fault in error.errors() if fault["type"] == "extra_forbidden"]
        known = deepcopy(raw)
        return known, tuple(".".join(map(str, place)) for place in unknown if _removed(known, place))
    return raw, ()


def _removed(options: dict[str, Any], place: Sequence[int | str]) -> bool:
    """Remove a nested option; whether it was found. In a place there are names of union members beside keys."""
    inner: Any = options
    for key in place[:-1]:
        if isinstance(inner, dict) and key in inner:
            inner = inner[key]
    if not isinstance(inner, dict) or place[-1] not in inner:
        return False
    del inner[place[-1]]
    return True
