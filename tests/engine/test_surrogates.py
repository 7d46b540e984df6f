"""Surrogates against plain linear algebra, finite differences and samples of what they model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.errors import InvalidInput, NumericalError
from blackbox.records import Matrix, Vector
from blackbox.rng import Key
from blackbox.toolbox import surrogates
from blackbox.toolbox.surrogates import Kernel, KernelName, RandomFeatures

KERNELS: tuple[KernelName, ...] = ("matern52", "gaussian")


def k(a: Vector, b: Vector, kernel: Kernel) -> float:
    """The kernel of two points, written out."""
    r = math.dist(a, b)
    if kernel.name == "gaussian":
        return math.exp(-r * r / (2 * kernel.length**2))
    s = math.sqrt(5) * r / kernel.length
    return (1 + s + s * s / 3) * math.exp(-s)


def sample(n: int = 30, d: int = 4, seed: int = 0) -> tuple[Matrix, Vector]:
    chance = np.random.default_rng(seed)
    x = chance.uniform(size=(n, d))
    return x, np.sin(3 * x).sum(axis=1) + x[:, 0] ** 2


def difference(f: object, x: Vector, h: float = 1e-5) -> Vector:
    """Central differences of f at x."""
    assert callable(f)
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_and_their_slopes(name: KernelName) -> None:
    kernel, (x, _) = Kernel(0.7, name), sample(5)
    square = surrogates.square_distances(x, x)
    np.testing.assert_allclose(kernel.value(square), [[k(a, b, kernel) for b in x] for a in x], rtol=1e-10)
    a, b = x[0], x[1]
    by_hand = difference(lambda p: k(p, b, kernel), a)
    c = kernel.slope(np.array([[math.dist(a, b) ** 2]]))[0, 0]
    np.testing.assert_allclose(-c * (a - b), by_hand, rtol=1e-7)
    h = 1e-3  # d2/dx dx' k at x = x', by differences
    mixed = (2 * k(a, a, kernel) - 2 * k(a, a + h * np.eye(4)[0], kernel)) / h**2
    assert kernel.gradient_variance == pytest.approx(mixed, rel=0.01)
    assert kernel.slope(np.zeros((1, 1)))[0, 0] == pytest.approx(kernel.gradient_variance)


@pytest.mark.parametrize("name", KERNELS)
def test_the_posterior_is_that_of_plain_linear_algebra(name: KernelName) -> None:
    (x, y), kernel, noise = sample(), Kernel(1.1, name), 1e-4
    process = surrogates.fit(x, y, kernel, noise)
    K = np.array([[k(a, b, kernel) for b in x] for a in x]) + noise * np.eye(len(x))
    scaled = (y - y.mean()) / (y.max() - y.min())
    weights = np.linalg.solve(K, scaled)
    at = np.random.default_rng(3).uniform(size=(7, 4))
    for i, p in enumerate(at):
        row = np.array([k(p, b, kernel) for b in x])
        mean = y.mean() + (y.max() - y.min()) * float(row @ weights)
        assert process.mean(at)[i] == pytest.approx(mean, rel=1e-7)
        variance = (y.max() - y.min()) ** 2 * (1 - float(row @ np.linalg.solve(K, row)))
        assert process.variance(at)[i] == pytest.approx(variance, rel=1e-4, abs=1e-9)
        np.testing.assert_allclose(process.gradient(p), difference(lambda q: process.mean(q[None])[0], p), rtol=1e-5)
        slopes = np.array([difference(lambda q, b=b: k(q, b, kernel), p) for b in x])  # (n, d)
        trace = sum(kernel.gradient_variance - g @ np.linalg.solve(K, g) for g in slopes.T)
        assert process.gradient_variance(at)[i] == pytest.approx(trace, rel=1e-4)


def test_the_gradient_is_known_where_it_was_measured_and_unknown_far_away() -> None:
    x, y = sample(60, 3)
    process = surrogates.fit(x, y, Kernel(1.0))
    near, far = process.gradient_variance(np.array([[0.5, 0.5, 0.5], [9.0, 9.0, 9.0]]))
    assert near < 0.1 * far
    assert far == pytest.approx(3 * process.kernel.gradient_variance)
    truth = 3 * np.cos(3 * np.full(3, 0.5)) + np.array([1.0, 0, 0])
    np.testing.assert_allclose(process.gradient(np.full(3, 0.5)), truth, atol=0.15)


def test_appending_points_equals_fitting_them_all() -> None:
    x, y = sample(40)
    x -= x.mean(axis=0)  # one centre and one scale for both
    early = surrogates.fit(x[:30], y[:30], Kernel(1.0), 1e-3)
    late = early.append(x[30:35], y[30:35]).append(x[35:], y[35:])
    whole = surrogates.fit(x, y, Kernel(1.0), 1e-3)
    at = np.random.default_rng(1).uniform(-0.5, 0.5, size=(9, 4))
    np.testing.assert_allclose(late.gradient_variance(at), whole.gradient_variance(at), rtol=1e-6)
    np.testing.assert_allclose(late.variance(at) / late.scale**2, whole.variance(at) / whole.scale**2, rtol=1e-6)
    targets = (y - early.offset) / early.scale
    K = early.kernel.value(surrogates.square_distances(x, x)) + 1e-3 * np.eye(40)
    row = early.kernel.value(surrogates.square_distances(at, x))
    np.testing.assert_allclose(late.mean(at), early.offset + early.scale * row @ np.linalg.solve(K, targets), rtol=1e-9)


def test_repeats_and_near_repeats_do_no_harm() -> None:
    x, y = sample(10)
    twice, values = np.concatenate([x, x[:3]]), np.concatenate([y, y[:3] + 0.2])
    merged, means = surrogates.distinct(twice, values)
    np.testing.assert_array_equal(merged, x)
    np.testing.assert_allclose(means, y + np.r_[np.full(3, 0.1), np.zeros(7)])
    close = np.concatenate([x, x + 1e-13])
    process = surrogates.fit(close, np.concatenate([y, y]), Kernel(1.0), 0.0)
    assert process.noise > 0
    np.testing.assert_allclose(process.mean(x), y, atol=1e-3)


def test_flat_or_single_values_have_no_gradient() -> None:
    x, _ = sample(5)
    for n in (1, 5):
        process = surrogates.fit(x[:n], np.full(n, 3.0), Kernel(1.0))
        np.testing.assert_array_equal(process.gradient(x[0]), 0.0)
        assert process.mean(x)[0] == 3.0


def test_what_cannot_be_fitted_is_said() -> None:
    x, y = sample(5)
    with pytest.raises(InvalidInput, match="finite"):
        surrogates.fit(x, np.where(np.arange(5) == 2, np.nan, y), Kernel(1.0))
    with pytest.raises(InvalidInput, match=r"\(n, d\) points"):
        surrogates.fit(x[:0], y[:0], Kernel(1.0))
    with pytest.raises(NumericalError, match="cannot be factored"):
        surrogates.factored(np.full((2, 2), np.nan))
    with pytest.raises(NumericalError, match="cannot be factored"):
        surrogates.factored(np.array([[1.0, 2.0], [2.0, 1.0]]))


def test_the_nearest_points_keep_their_order() -> None:
    x = np.array([[3.0], [1.0], [-1.0], [0.0], [5.0]])
    assert surrogates.nearest(x, np.zeros(1), 2).tolist() == [1, 3]  # 1 and -1 tie, the earlier one wins
    assert surrogates.nearest(x, np.zeros(1), 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("length", [0.3, 1.0])
def test_the_likely_length_is_near_the_one_that_made_the_values(length: float) -> None:
    found = []
    for seed in range(5):
        chance = np.random.default_rng(seed)
        x = chance.uniform(size=(120, 2))
        K = Kernel(length).value(surrogates.square_distances(x, x))
        y = np.linalg.cholesky(K + 1e-8 * np.eye(120)) @ chance.normal(size=120)
        found.append(surrogates.likely_length(x, y))
    assert 0.6 * length < np.median(found) < 1.7 * length


def test_golden_section_finds_the_bottom() -> None:
    assert surrogates.golden_section(lambda t: (t - 0.3) ** 2, -2.0, 5.0, 1e-6) == pytest.approx(0.3, abs=1e-5)


def test_random_features_approximate_their_kernel() -> None:
    x, _ = sample(12)
    features = RandomFeatures.draw(Key.from_seed(0), 20_000, 4, 0.8)
    exact = Kernel(0.8, "gaussian").value(surrogates.square_distances(x, x))
    np.testing.assert_allclose(features(x) @ features(x).T, exact, atol=4 / math.sqrt(20_000))


def test_features_of_one_key_are_the_same_for_all() -> None:
    a, b = (RandomFeatures.draw(Key.from_seed(4), 50, 7, 0.5) for _ in range(2))
    np.testing.assert_array_equal(a.frequencies, b.frequencies)
    np.testing.assert_array_equal(a.phases, b.phases)
    assert len(a) == 50
    assert 0 <= a.phases.min() < a.phases.max() < 2 * math.pi


def test_both_ways_to_fit_features_agree() -> None:
    x, y = sample(40)
    wide, ridge = RandomFeatures.draw(Key.from_seed(1), 60, 4, 0.8), 1e-3
    weights = wide.fit(x, y, ridge)  # in 40 dimensions
    phi, scale = wide(x), np.ptp(y)
    primal = np.linalg.solve(phi.T @ phi + ridge * np.eye(60), phi.T @ (y - y.mean()))
    np.testing.assert_allclose(weights, primal, rtol=1e-6)
    narrow = RandomFeatures.draw(Key.from_seed(1), 20, 4, 0.8)  # in 20
    phi = narrow(x)
    dual = phi.T @ np.linalg.solve(phi @ phi.T + ridge * np.eye(40), y - y.mean())
    np.testing.assert_allclose(narrow.fit(x, y, ridge), dual, rtol=1e-6)
    assert scale > 0


def test_models_of_features_average_and_differentiate() -> None:
    x, y = sample(50)
    features = RandomFeatures.draw(Key.from_seed(2), 400, 4, 1.0)
    a, b = features.fit(x, y), features.fit(x, 2 * y + x[:, 1])
    p = np.full(4, 0.4)
    np.testing.assert_allclose(
        features.gradient(a, p), difference(lambda q: features.mean(a, q[None])[0], p), rtol=1e-6
    )
    both = (features.gradient(a, p) + features.gradient(b, p)) / 2
    np.testing.assert_allclose(features.gradient((a + b) / 2, p), both, rtol=1e-9)
    truth = 3 * np.cos(3 * p) + np.array([0.8, 0, 0, 0])
    np.testing.assert_allclose(features.gradient(a, p), truth, atol=0.2)
    np.testing.assert_array_equal(features.fit(x, np.ones(50)), 0.0)
