"""Schedules follow their formulas and travel as JSON inside options."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter

from blackbox.errors import InvalidOptions
from blackbox.options import Options, parse_options
from blackbox.toolbox.schedules import (
    AnySchedule,
    Constant,
    Cosine,
    Exponential,
    Linear,
    PositiveSchedule,
    Power,
    Schedule,
    Warmup,
)

EXAMPLES = [
    (Constant(value=3.0), lambda t: 3.0),
    (Power(scale=2.0, offset=1.0), lambda t: 2 / (t + 2)),
    (Power(scale=0.1, exponent=0.602, offset=20.0), lambda t: 0.1 / (t + 21) ** 0.602),
    (Linear(start=1.0, end=0.2, steps=8), lambda t: 1 - 0.1 * t if t < 8 else 0.2),
    (Cosine(start=1.0, end=0.2, steps=8), lambda t: 0.2 + 0.4 * (1 + math.cos(math.pi * t / 8)) if t < 8 else 0.2),
    (Exponential(start=2.0, factor=0.9, floor=0.5), lambda t: max(2 * math.exp(t * math.log(0.9)), 0.5)),
    (Warmup(steps=4, then=2.0), lambda t: min((t + 1) / 4, 1) * 2),  # type: ignore[arg-type]
    (Warmup(steps=4, then=Power(scale=2.0)), lambda t: (t + 1) / 2 if t < 4 else 2 / (t - 3)),
]
by_type = pytest.mark.parametrize(("schedule", "formula"), EXAMPLES, ids=lambda x: getattr(x, "type", ""))


class Example(Options):
    rate: AnySchedule = Constant(value=0.1)
    sigma: PositiveSchedule | None = None


@by_type
def test_a_schedule_follows_its_formula(schedule: Schedule, formula) -> None:
    for t in [*range(30), 1000]:
        assert schedule(t) == pytest.approx(formula(t), rel=1e-12)


@by_type
def test_a_schedule_round_trips_through_json(schedule: Schedule, formula) -> None:
    adapter = TypeAdapter(AnySchedule)
    assert adapter.validate_json(adapter.dump_json(schedule)) == schedule


@pytest.mark.parametrize("ramp", [Linear, Cosine])
def test_a_ramp_is_exact_at_its_ends_and_constant_after(ramp: type[Linear | Cosine]) -> None:
    schedule = ramp(start=0.3, end=0.1, steps=7)
    assert schedule(0) == 0.3
    assert schedule(7) == schedule(10**9) == 0.1


def test_options_take_a_number_as_a_constant() -> None:
    assert parse_options(Example, {"rate": 3}).rate(17) == 3.0
    assert parse_options(Example, {"rate": {"type": "cosine", "start": 1, "steps": 2}}).rate(1) == pytest.approx(0.5)
    resolved = parse_options(Example, {"rate": 3}).model_dump(mode="json")
    assert parse_options(Example, resolved) == parse_options(Example, {"rate": 3})
    assert {"type": "number"} in Example.model_json_schema()["properties"]["rate"]["anyOf"]


@pytest.mark.parametrize(
    "raw",
    [
        True,
        "fast",
        math.nan,
        {"type": "parabola"},
        {"type": "cosine"},
        {"type": "linear", "start": 1, "steps": 0},
        {"type": "exponential", "start": 1, "factor": 1.5},
        {"type": "power", "scale": 1, "exponent": -1},
    ],
)
def test_a_bad_schedule_is_refused_by_the_options_that_hold_it(raw: object) -> None:
    with pytest.raises(InvalidOptions) as info:
        parse_options(Example, {"rate": raw})
    assert info.value.errors[0].pointer.startswith("/rate")


@pytest.mark.parametrize("raw", [0, -1.0, {"type": "linear", "start": 0.0, "end": 1.0, "steps": 3}])
def test_a_positive_schedule_is_positive_at_first_whatever_it_falls_to(raw: object) -> None:
    falling = parse_options(Example, {"sigma": {"type": "linear", "start": 0.1, "end": -1, "steps": 3}}).sigma
    assert falling is not None
    assert falling(3) == -1.0
    with pytest.raises(InvalidOptions, match="must be positive at step 0, got") as info:
        parse_options(Example, {"sigma": raw})
    assert [error.pointer for error in info.value.errors] == ["/sigma"]
