"""Options as people write them, and as they are stored: with nothing left to fill in."""

from __future__ import annotations

from typing import Any

import pytest

from blackbox import federation
from blackbox.algorithm import lookup, registry
from blackbox.errors import InvalidOptions
from blackbox.options import Field, Options, known_options, parse_options
from blackbox.rng import Key
from blackbox.space import Space, Vector


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


# Options that had another name

FREE = Space({"x": Vector(dim=9)})
BALL = Space({"x": Vector(dim=9, region={"type": "l1_ball"})})
RENAMED: list[tuple[str, dict[str, Any], int]] = [
    ("openai_es", {"population": 6}, 6),
    ("pgpe", {"population": 6}, 6),
    ("deep_ga", {"population": 6}, 6),
    ("cbo", {"members": 6}, 6),
    ("ars", {"directions": 6, "top": 2}, 12),
    ("mezo", {"count": 6}, 12),
    ("zo_sgd", {"count": 6}, 12),
    ("zo_sgd", {"count": 6, "difference": "forward"}, 7),
    ("zo_adam", {"count": 6}, 12),
    ("zo_frank_wolfe", {"count": 6}, 7),
    ("zo_frank_wolfe", {"count": 6, "difference": "central"}, 12),
    ("zo_frank_wolfe", {"count": 6, "scheme": "jaguar"}, 12),
    ("zo_frank_wolfe", {"count": 6, "scheme": "vertices", "difference": None}, 7),
]
"""Options as they were stored or written until 0.1, and the results of a step that they meant."""


def test_the_old_names_are_these() -> None:
    assert {name for name, method in registry().items() if method.Options.renamed} == {name for name, *_ in RENAMED}


@pytest.mark.parametrize(("name", "old", "popsize"), RENAMED)
def test_a_stored_option_is_read_by_its_old_name_and_in_its_old_unit(
    name: str, old: dict[str, Any], popsize: int
) -> None:
    method, space = lookup(name), BALL if name == "zo_frank_wolfe" else FREE
    (renamed,) = method.Options.renamed
    read, dropped = known_options(method.Options, old)
    assert (read, dropped) == ({key: value for key, value in old.items() if key != renamed} | {"popsize": popsize}, ())
    options = method.resolve(parse_options(method.Options, read), space)
    built = method(space, options, Key.from_seed(1))
    first = {"cbo": 1}.get(
        name, 18 if old.get("scheme") == "jaguar" else popsize
    )  # jaguar begins with every coordinate
    assert built.need(built.init()) == first


@pytest.mark.parametrize(("name", "old", "popsize"), RENAMED)
def test_whoever_writes_an_old_name_is_told_the_new_one(name: str, old: dict[str, Any], popsize: int) -> None:
    (renamed,) = lookup(name).Options.renamed
    with pytest.raises(InvalidOptions, match=f"{renamed} is called popsize since 0.2") as caught:
        parse_options(lookup(name).Options, old)
    (fault,) = caught.value.errors
    assert fault.pointer == f"/{renamed}"


def test_an_old_option_without_a_value_gets_todays_default() -> None:
    read, dropped = known_options(lookup("zo_frank_wolfe").Options, {"scheme": "kwsa", "count": None})
    assert (read, dropped) == ({"scheme": "kwsa"}, ())


@pytest.mark.parametrize("name", ["openai_es", "pgpe", "mezo", "ars", "zo_sgd", "zo_adam"])
def test_a_number_of_results_that_leaves_half_a_pair_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptions, match="popsize: must be even for mirrored pairs, got 7; use 8") as caught:
        parse_options(lookup(name).Options, {"popsize": 7})
    assert [fault.pointer for fault in caught.value.errors] == ["/popsize"]
