"""Whole steps at once: many points in one call, and equal results for any number of workers."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest

import blackbox
from blackbox.backends.inline import Inline
from blackbox.errors import InvalidInput
from tests.engine import objectives_for_processes as objectives

BOX = [(-5, 5)] * 3
METHODS = ["cma_es", "openai_es", "cbo", "nelder_mead"]


def rows_of(result):
    """What is stored of a run, apart from times: trials with points and values, and the digest of every step."""
    study, store = result.study, result.store
    trials = store.read(lambda tx: tx.page(study.id, 0, 10_000, ()))
    points = store.read(lambda tx: tx.points(study.id, [trial.number for trial in trials]))
    steps = store.read(lambda tx: tx.steps(study.id, 0, 10_000))
    told = [(t.number, t.step, t.lane, t.state, t.value, t.seq, t.attempt, points[t.number].vector) for t in trials]
    return told, [(step.step, step.upto_seq, step.digest) for step in steps], result.x.tobytes(), result.nfev


class Shuffled:
    """Several workers that finish in an order of chance."""

    def __init__(self, n, seed):
        self.n, self.rng, self.out = n, np.random.default_rng(seed), []

    @property
    def free(self):
        return self.n - len(self.out)

    def submit(self, ticket, *arguments):
        self.out.append((ticket, arguments))

    def wait(self):
        done = []
        for _ in range(self.rng.integers(1, self.n + 1)):
            if self.out:
                inline = Inline(objectives.square)
                ticket, arguments = self.out.pop(self.rng.integers(len(self.out)))
                inline.submit(ticket, *arguments)
                done += inline.wait()
        return done

    def close(self):
        pass


@pytest.mark.parametrize("method", METHODS)
def test_repeatable_runs_are_equal_for_any_number_of_workers(method):
    runs = [blackbox.minimize(objectives.square, BOX, method, 150, repeatable=True)]
    for n in (1, 2, 3, 20):
        made = Shuffled(n, seed=n)
        runs.append(
            blackbox.minimize(objectives.square, BOX, method, 150, repeatable=True, backend=lambda fn, made=made: made)
        )
    first = rows_of(runs[0])
    assert all(rows_of(run) == first for run in runs[1:])
    assert first[-1] == 150


@pytest.mark.slow
def test_repeatable_processes_give_equal_bytes_for_one_two_and_three_workers():
    runs = [blackbox.minimize(objectives.square, BOX, "cma_es", 80, repeatable=True)]
    for n in (1, 2, 3):
        runs.append(
            blackbox.minimize(objectives.square, BOX, "cma_es", 80, repeatable=True, backend="processes", n_workers=n)
        )
    assert all(rows_of(run) == rows_of(runs[0]) for run in runs[1:])


def test_the_first_error_of_a_repeatable_step_is_that_of_its_first_point():
    def f(x):
        raise ValueError(f"{x[0]:.3f}")

    said = set()
    for n in (1, 3):
        made = Shuffled(n, seed=4)
        made_inline = Inline(f)
        made.wait = partial(_latest, made, made_inline)
        with pytest.raises(ValueError, match=r"\d") as caught:
            blackbox.minimize(f, BOX, "cma_es", 150, repeatable=True, backend=lambda fn, made=made: made)
        said.add(str(caught.value))
        assert caught.value.result.nfev == 7  # the step is told, with all its errors
    assert len(said) == 1


def _latest(made, inline):
    ticket, arguments = made.out.pop()
    inline.submit(ticket, *arguments)
    return inline.wait()


def test_the_known_number_of_workers_is_part_of_the_study_except_of_repeatable_runs():
    seen = []
    for backend, repeatable in (("processes", False), ("processes", True), ("inline", False)):
        result = blackbox.minimize(
            objectives.square,
            BOX,
            "cma_es",
            backend=backend,
            n_workers=1,
            repeatable=repeatable,
            deadline_seconds=0.0,
        )
        seen.append(result.study.spec.parallelism.workers)
    assert seen == [1, None, None]


@pytest.mark.parametrize("method", METHODS)
def test_a_vectorized_objective_gets_a_step_in_one_call(method):
    sizes = []

    def f(x):
        sizes.append(x.shape)
        return (x**2).sum(axis=1)

    result = blackbox.minimize(f, BOX, method, 60, vectorized=True)
    assert rows_of(result) == rows_of(blackbox.minimize(objectives.square, BOX, method, 60, repeatable=True))
    assert sum(n for n, _ in sizes) == 60
    assert {d for _, d in sizes} == {3}
    if method != "nelder_mead":
        assert len(sizes) < 20


def test_a_vectorized_objective_of_named_parameters_gets_a_list_of_dicts_and_their_evaluations():
    space = {"x": blackbox.Float(low=-1, high=1), "kind": blackbox.Categorical(choices=["a", "b"])}

    def f(points, evaluations):
        assert [e.trial.step for e in evaluations] == [evaluations[0].trial.step] * len(points)
        return [{"value": p["x"] ** 2, "behaviour": [p["x"]]} if p["kind"] == "a" else float("nan") for p in points]

    options = {"popsize": 8}
    result = blackbox.minimize(f, space, "random_search", 24, options=options, vectorized=True, with_trial=True)
    assert (result.nfev, result.x["kind"]) == (24, "a")


@pytest.mark.parametrize(
    ("returned", "came"),
    [
        (lambda x: x[:, 0][1:], r"shape \(7,\)"),
        (lambda x: x, r"shape \(8, 3\)"),
        (lambda x: [1.0], "1 values"),
        (lambda x: 1.0, "got float"),
        (lambda x: "12345678", "got str"),
        (lambda x: {"value": [1.0] * 8}, "got dict"),
    ],
)
def test_a_batch_with_another_number_of_values_is_refused(returned, came):
    with pytest.raises(InvalidInput, match=rf"got 8 points and must return 8 values in their order, got {came}|{came}"):
        blackbox.minimize(returned, BOX, "random_search", 20, options={"popsize": 8}, vectorized=True)


def test_one_column_of_values_is_taken_and_one_unfit_value_is_named():
    result = blackbox.minimize(lambda x: (x**2).sum(axis=1, keepdims=True), BOX, budget=20, vectorized=True)
    assert result.nfev == 20
    with pytest.raises(InvalidInput, match="must return a number, got NoneType"):
        blackbox.minimize(lambda x: [None] * len(x), BOX, vectorized=True)


def test_batches_are_made_in_this_process():
    with pytest.raises(InvalidInput, match="leave backend out"):
        blackbox.minimize(objectives.square, BOX, vectorized=True, backend="processes")


def test_an_interrupt_in_a_batch_keeps_what_is_finished():
    calls = []

    def f(x):
        calls.append(x)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return objectives.square(x)

    with closing(Inline(f)) as inline, pytest.raises(KeyboardInterrupt) as caught:
        blackbox.minimize(
            f, BOX, "random_search", 40, options={"popsize": 8}, repeatable=True, backend=lambda _: inline
        )
    assert caught.value.result.nfev == 11
