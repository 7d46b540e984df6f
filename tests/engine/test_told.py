"""What an objective may return, and what it is told where that is no number."""

import datetime
import doctest
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from blackbox_client.protocol import plain
from blackbox_client.worker.evaluation import evaluate

import blackbox
from blackbox.errors import InvalidInput
from blackbox.minimize import told
from blackbox.minimize.told import number_of


class Tensor:
    """As PyTorch has them: `item` for one element."""

    def __init__(self, *elements):
        self.elements = elements
        self.shape = (len(elements),)

    def item(self):
        (element,) = self.elements
        return element


class Quantity:
    def __float__(self):
        return 1.5


ONE_NUMBER = [
    (3, 3.0),
    (-7.5, -7.5),
    (2**53 + 1, float(2**53)),
    (Decimal("0.1"), 0.1),
    (Fraction(1, 3), 1 / 3),
    (np.longdouble("0.1"), 0.1),
    (np.float16(0.5), 0.5),
    (np.int8(-3), -3.0),
    (np.uint64(2**63), 2.0**63),
    (np.array(3), 3.0),
    (np.array([1.5]), 1.5),
    (np.array([[2]]), 2.0),
    (np.array(Decimal(2), dtype=object), 2.0),
    (Tensor(2.5), 2.5),
    (Quantity(), 1.5),
]


@pytest.mark.parametrize(("value", "number"), ONE_NUMBER, ids=lambda value: type(value).__name__)
def test_every_type_that_means_one_real_number_is_read(value, number):
    assert number_of(value) == number
    assert type(number_of(value)) is float


def test_numbers_beyond_float64_and_masked_ones_are_points_without_a_value():
    for value in (10**400, Decimal("1e999"), Fraction(10**500, 3), np.longdouble("1e400")):
        assert number_of(value) == math.inf
        assert number_of(-value) == -math.inf
    assert math.isnan(number_of(np.ma.masked))
    assert math.isnan(number_of(Decimal("NaN")))
    result = blackbox.minimize(lambda x: 10**400 if x[0] < 0 else float(x[0]), [(-1, 1)], budget=20)
    assert result.x[0] >= 0
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 100, ()))
    assert {trial.extra for trial in trials if trial.state == "INFEASIBLE"} == {'{"reason": "value was inf"}'}


async def asynchronous():
    return 1.0


NO_NUMBER = [
    (None, "is a `return` missing"),
    ("0.5", "the text of a number"),
    (b"2", "the text of a number"),
    (np.str_("0.5"), "the text of a number"),
    ("far", "nan"),
    (True, "truth value"),
    (np.True_, "truth value"),
    (np.array(False), "truth value"),
    (1j, "real part or the modulus"),
    (np.complex64(1), "real part or the modulus"),
    (np.datetime64("2020-01-01"), "seconds"),
    (np.timedelta64(3, "s"), "seconds"),
    (np.array(np.datetime64("2020-01-01")), "seconds"),
    (datetime.timedelta(1), "seconds"),
    ([1.0], "one number"),
    ((1.0, 2.0), "one number"),
    (np.array([1.0, 2.0]), "one number"),
    (np.array([]), "one number"),
    (Tensor(1.0, 2.0), "one number"),
    (np.array([None]), "is a `return` missing"),
    (object(), "nan"),
    (Decimal("sNaN"), "nan"),
    (lambda: 1.0, "nan"),
]


@pytest.mark.parametrize(("value", "hint"), NO_NUMBER, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused_with_what_to_return_instead(value, hint):
    with pytest.raises(InvalidInput, match="must return a number") as caught:
        blackbox.minimize(lambda x: value, [(-5, 5)], budget=10)
    assert hint in caught.value.hint


def test_an_async_objective_is_told_how_to_run_it():
    with pytest.raises(InvalidInput, match=r"async function: give a function that runs it"):
        blackbox.minimize(lambda x: asynchronous(), [(-5, 5)], budget=10)


@pytest.mark.parametrize(("value", "number"), ONE_NUMBER[:-1], ids=lambda value: type(value).__name__)
def test_the_clients_worker_reads_the_same_numbers(value, number):
    told_by_client = plain(evaluate(lambda: value, ()).item())["value"]
    assert float(told_by_client) == number


@pytest.mark.parametrize("value", [case for case, _ in NO_NUMBER], ids=lambda value: type(value).__name__)
def test_the_clients_worker_takes_nothing_else_for_a_number(value):
    if not isinstance(value, list):  # a list is a vector of values to the client
        assert evaluate(lambda: value, ()).status == "failed"


def test_examples_run():
    assert doctest.testmod(told).failed == 0
