"""Options as people write them, and as they are stored: with nothing left to fill in."""

from __future__ import annotations

import pytest

from blackbox import federation
from blackbox.algorithm import lookup, registry
from blackbox.errors import InvalidOptions
from blackbox.options import Field, Options, parse_options


class Written(Options):
    size: int | None = Field(None, ge=4)
    """Results per step."""
    rate: float | None = Field(None, gt=0)
    """Step size. None: no limit."""
    name: str = "plain"
    """Its name."""


class Resolved(Written):
    """The options with every default filled in."""

    size: int


def test_what_is_left_out_is_filled_in_and_what_is_written_stays() -> None:
    assert Written().with_defaults(Resolved, size=8) == Resolved(size=8)
    assert Written(size=5, name="own").with_defaults(Resolved, size=8) == Resolved(size=5, name="own")
    assert Resolved(size=5).with_defaults(Resolved, size=8) == Resolved(size=5)


def test_fields_keep_their_order_and_so_stored_options_their_bytes() -> None:
    stored = Written().with_defaults(Resolved, size=8).model_dump_json()
    assert stored == '{"size":8,"rate":null,"name":"plain"}'


def test_a_default_must_be_in_the_range_of_its_field() -> None:
    with pytest.raises(InvalidOptions, match="size"):
        Written().with_defaults(Resolved, size=3)


def test_a_default_that_was_not_given_is_missed() -> None:
    with pytest.raises(InvalidOptions, match="size"):
        Written().with_defaults(Resolved)
    with pytest.raises(InvalidOptions, match="size"):
        parse_options(Resolved, {"name": "own"})


def test_a_method_that_fills_in_nothing_stores_what_was_written() -> None:
    assert lookup("random_search").Resolved is lookup("random_search").Options


def test_resolved_options_of_every_method_are_those_that_were_written_in_the_same_order() -> None:
    for name, method in {**registry(), **federation.registry()}.items():
        assert issubclass(method.Resolved, method.Options)
        assert list(method.Resolved.model_fields) == list(method.Options.model_fields), name
