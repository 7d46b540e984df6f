"""Clipping, noise and the accountant against closed forms, quadrature, exact answers and published figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from blackbox import federation
from blackbox.errors import InvalidContribution, InvalidOptions
from blackbox.federation import privacy as dp
from blackbox.rng import Key
from blackbox.space import Space, Vector
from tests.contracts.federation import CLIENTS, Variant, bowl, make, participant, work

PRIVATE = {"clip": {"delta": 0.05}, "noise": 2.0}


def classic_epsilon(rdp: np.ndarray, delta: float) -> float:
    """Mironov (2017), prop. 3, which the published figures use."""
    a = np.array(dp.ORDERS)
    return float((rdp + math.log(1 / delta) / (a - 1)).min())


# the accountant


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)])
def test_the_accountant_reproduces_published_figures(noise: float, epochs: int, published: float) -> None:
    """tensorflow/privacy, tutorials/README.md: 60 000 examples, batches of 256, delta 1e-5."""
    rate = 256 / 60_000
    steps = epochs * 60_000 // 256
    rdp = steps * dp.rdp_sampled_gaussian(rate, noise)
    assert classic_epsilon(rdp, 1e-5) == pytest.approx(published, rel=0.01)
    assert dp.epsilon(rdp, 1e-5) < 0.95 * published


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
@pytest.mark.parametrize("noise", [0.7, 1.5])
def test_sampled_divergences_agree_with_quadrature(rate: float, noise: float) -> None:
    orders = (2, 3, 8, 20)

    def divergence(a: int) -> float:
        def integrand(t: float) -> float:
            ratio = (1 - rate) + rate * math.exp((2 * t - 1) / (2 * noise**2))
            return math.exp(-t * t / (2 * noise**2) + a * math.log(ratio)) / (noise * math.sqrt(2 * math.pi))

        width = 12 * noise
        total = integrate.quad(integrand, -width, a + width, limit=400, points=[0.0, 1.0, float(a)])[0]
        return math.log(total) / (a - 1)

    expected = [divergence(a) for a in orders]
    np.testing.assert_allclose(dp.rdp_sampled_gaussian(rate, noise, orders), expected, rtol=1e-6)
    by_hand = math.log1p(rate**2 * math.expm1(1 / noise**2))  # order 2
    assert dp.rdp_sampled_gaussian(rate, noise, orders)[0] == pytest.approx(by_hand, rel=1e-10)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    np.testing.assert_array_equal(dp.rdp_sampled_gaussian(1.0, 1.3), dp.rdp_gaussian(1.3))
    np.testing.assert_allclose(dp.rdp_sampled_gaussian(1 - 1e-12, 1.3)[:60], dp.rdp_gaussian(1.3)[:60], rtol=1e-6)
    np.testing.assert_allclose(dp.rdp_gaussian(2.0, (2, 10)), [0.25, 1.25])
    assert dp.rdp_sampled_gaussian(0.0, 1.0).max() == 0
    assert np.isinf(dp.rdp_gaussian(0.0)).all()


@pytest.mark.parametrize("noise", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_is_above_the_exact_one_and_not_far(noise: float, delta: float) -> None:
    """Balle and Wang (2018), arXiv:1805.06530, theorem 8: the exact delta of one Gaussian release."""

    def exact_delta(eps: float) -> float:
        a, b = 1 / (2 * noise) - eps * noise, -1 / (2 * noise) - eps * noise
        return float(stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b))

    exact = optimize.brentq(lambda e: exact_delta(e) - delta, 1e-9, 50)
    found = dp.epsilon(dp.rdp_gaussian(noise), delta)
    assert exact <= found <= 1.25 * exact
    assert found < classic_epsilon(dp.rdp_gaussian(noise), delta)


def test_the_noise_of_a_mean_is_that_of_its_largest_weight() -> None:
    assert dp.mean_noise([1.0] * 16, 0.5) == pytest.approx(2.0)
    assert dp.mean_noise([3.0, 4.0], 1.0) == pytest.approx(5 / 4)
    assert dp.mean_noise([7.0], 1.0) == 1.0


# clipping and noise


def test_clipping_keeps_the_direction_and_cuts_the_length() -> None:
    v = np.array([3.0, 4.0])
    np.testing.assert_array_equal(dp.clip(v, 5.0), v)
    np.testing.assert_allclose(dp.clip(v, 1.0), [0.6, 0.8])
    np.testing.assert_allclose(dp.clip(np.array([3e300, 4e300]), 1.0), [0.6, 0.8])
    np.testing.assert_array_equal(dp.clip(np.array([np.nan, 1.0]), 1.0), [0.0, 0.0])
    np.testing.assert_array_equal(dp.clip(np.zeros(3), 1.0), np.zeros(3))


def test_noise_is_normal_and_known_to_the_secret_alone() -> None:
    noise = dp.gaussian(b"s" * 32, "here", 200_000)
    assert stats.kstest(noise, "norm").pvalue > 0.01
    assert np.abs(noise).max() > 4.35  # farther than the table of `rng` goes
    np.testing.assert_array_equal(noise, dp.gaussian(b"s" * 32, "here", 200_000))
    for other in (dp.gaussian(b"t" * 32, "here", 200_000), dp.gaussian(b"s" * 32, "there", 200_000)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.01


def contributed(options: dict[str, Any], f: Any = None, dim: int = 6) -> federation.Contribution:
    space = Space({"w": Vector(dim=dim, low=-1, high=1)})
    coordinator = federation.build("fedzo", space, options, Key.from_seed(1))
    machine = federation.accept(coordinator.invitation(), client="ann", secret=b"x" * 32)
    own = work(machine, machine.init(), coordinator.broadcast(coordinator.init()), f or (lambda x: x.sum(axis=1)))
    sent = machine.contribution(own)
    assert sent.to_bytes() == machine.contribution(own).to_bytes()
    return sent


def test_what_leaves_is_clipped_and_noised_as_stated() -> None:
    dim = 5000
    options = {"local_steps": 1, "count": 2}
    bare = contributed(options, dim=dim).vectors["delta"].astype(float)
    clipped = contributed({**options, "privacy": {"clip": {"delta": 0.1}, "noise": 0}}, dim=dim)
    noised = contributed({**options, "privacy": {"clip": {"delta": 0.1}, "noise": 3.0}}, dim=dim)
    assert np.linalg.norm(bare) > 0.5
    np.testing.assert_allclose(clipped.vectors["delta"], bare * 0.1 / np.linalg.norm(bare), rtol=1e-5)
    assert clipped.privacy == federation.Privacy({"delta": 0.1}, 0.0)
    noise = noised.vectors["delta"].astype(float) - clipped.vectors["delta"]
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert stats.kstest(noise / 0.3, "norm").pvalue > 0.01


def test_another_vector_gets_other_noise() -> None:
    """Two runs of one phase must not show the difference of their vectors bare."""
    private = {"local_steps": 1, "privacy": {"clip": {"delta": 0.1}, "noise": 1.0}}
    bare = {"local_steps": 1, "privacy": {"clip": {"delta": 0.1}, "noise": 0.0}}
    up, down = (contributed(private, lambda x, s=s: s * x.sum(axis=1)) for s in (1.0, -1.0))
    clean_up, clean_down = (contributed(bare, lambda x, s=s: s * x.sum(axis=1)) for s in (1.0, -1.0))
    difference = up.vectors["delta"] - down.vectors["delta"]
    assert np.abs(difference - (clean_up.vectors["delta"] - clean_down.vectors["delta"])).max() > 0.01


# the coordinator


def test_too_little_privacy_is_refused() -> None:
    coordinator = make(Variant("fedzo", {"privacy": PRIVATE, "local_steps": 1}))
    machine = participant(coordinator, "ann")
    own = work(machine, machine.init(), coordinator.broadcast(coordinator.init()), bowl("ann"))
    sent = machine.contribution(own)
    coordinator.check(sent)
    for facts, word in (
        (None, "demands clipped"),
        (federation.Privacy({"delta": 0.05}, 1.9), "at least 2.0"),
        (federation.Privacy({"delta": 0.06}, 2.0), "must be 0.05"),
        (federation.Privacy({"delta": 0.04}, 2.0), "must be 0.05"),
        (federation.Privacy({}, 2.0), "must be 0.05"),
    ):
        with pytest.raises(InvalidContribution, match=word):
            coordinator.check(replace(sent, privacy=facts))


def test_epsilon_adds_up_over_rounds_and_vectors() -> None:
    for variant, vectors in (
        (Variant("fedzo", {"privacy": PRIVATE}), 1),
        (Variant("scaffold", {"privacy": {"clip": {"delta": 0.05, "control": 1.0}, "noise": 2.0}}), 2),
    ):
        coordinator = make(variant, local_steps=1, count=1)
        done = federation.rehearse(coordinator, {name: bowl(name) for name in CLIENTS}, 3)
        metrics = coordinator.metrics(done.state)
        releases = 3 * vectors
        alone = dp.epsilon(releases * dp.rdp_gaussian(1.0), 1e-5)  # replacement: half of z = 2
        mean = dp.epsilon(releases * dp.rdp_gaussian(2.0 * math.sqrt(len(CLIENTS))), 1e-5)
        assert metrics["epsilon_coordinator"] == pytest.approx(alone)
        assert metrics["epsilon_published"] == pytest.approx(mean)
        assert mean < alone


def test_a_participant_counts_what_was_lost_as_well() -> None:
    coordinator = make(Variant("fedzo", {"privacy": PRIVATE}), local_steps=1, count=1)
    machine = participant(coordinator, "ann")
    state, own = coordinator.init(), machine.init()
    assert machine.epsilon(own) == 0.0
    for n in range(1, 4):
        own = machine.start(own, coordinator.broadcast(state))
        assert machine.epsilon(own) == dp.epsilon_of_replacement(n - 1, 2.0, 1e-5)
        own = work(machine, own, coordinator.broadcast(state), bowl("ann"))
        assert machine.epsilon(own) == dp.epsilon_of_replacement(n, 2.0, 1e-5)
        state = coordinator.tell(state, [machine.contribution(own)] if n == 2 else [])  # two of three are lost
    assert coordinator.epsilon_coordinator(state) == dp.epsilon_of_replacement(1, 2.0, 1e-5)


def test_random_participation_is_counted_as_sampling() -> None:
    coordinator = make(Variant("fedzo", {"privacy": PRIVATE, "participation": 0.5}), local_steps=1, count=1)
    sent = []
    for name in CLIENTS:
        machine = participant(coordinator, name)
        own = work(machine, machine.init(), coordinator.broadcast(coordinator.init()), bowl(name))
        sent.append(machine.contribution(own))
    state = coordinator.tell(coordinator.init(), sent)
    np.testing.assert_allclose(state.rdp, dp.rdp_sampled_gaussian(0.5, 4.0))


def test_it_stops_before_the_privacy_is_spent() -> None:
    limit = dp.epsilon(4.5 * dp.rdp_gaussian(1.0), 1e-5)
    coordinator = make(Variant("fedzo", {"privacy": {**PRIVATE, "max_epsilon": limit}}), local_steps=1, count=1)
    done = federation.rehearse(coordinator, {name: bowl(name) for name in CLIENTS}, 30)
    stop = coordinator.stopped(done.state)
    assert done.state.round == 4
    assert stop is not None
    assert stop.reason == "privacy"
    assert coordinator.epsilon_coordinator(done.state) < limit


@pytest.mark.parametrize(
    ("privacy", "word"),
    [
        ({"clip": {}, "noise": 1.0}, "at least 1 item"),
        ({"clip": {"delt": 1.0}}, "privacy/clip/delta: is required"),
        ({"clip": {"delta": 1.0, "weights": 1.0}}, "no such vector"),
        ({"clip": {"delta": -1.0}}, "positive"),
        ({"clip": {"delta": 1.0}, "noise": -1.0}, "greater than or equal to 0"),
    ],
)
def test_privacy_options_that_make_no_sense_are_refused(privacy: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidOptions, match=word):
        make(Variant("fedzo", {"privacy": privacy}))


def test_noise_costs_accuracy_but_many_participants_average_it_away() -> None:
    """Twenty participants, one bowl: with noise the mean still comes near its minimum."""
    clients = [f"c{i}" for i in range(20)]
    space = Space({"w": Vector(dim=6, low=0, high=1, init=0.0)})
    options = {"local_steps": 5, "count": 6, "privacy": {"clip": {"delta": 0.15}, "noise": 0.3}}
    coordinator = federation.build("fedzo", space, options, Key.from_seed(2))
    done = federation.rehearse(coordinator, dict.fromkeys(clients, lambda x: np.square(x - 0.6).sum(axis=1)), 20)
    assert np.linalg.norm(done.state.x - 0.6) < 0.15
    assert math.isfinite(coordinator.metrics(done.state)["epsilon_published"])
