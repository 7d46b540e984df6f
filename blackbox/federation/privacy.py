"""Clipping, noise and the accountant of federated contributions.

A participant clips each vector to norm C and adds Gaussian noise of standard deviation z C to every coordinate before
it leaves. Renyi differential privacy (Mironov 2017, arXiv:1702.07476) adds up over releases and is turned into
(epsilon, delta) at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts are imported when first used
from numpy.typing import NDArray

from blackbox.records import Vector

ORDERS: tuple[int, ...] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
"""Orders at which divergences are tracked. Integers, where the subsampled mechanism has a closed form."""


def clip(vector: Vector, limit: float) -> Vector:
    """Scale a vector down to Euclidean norm `limit` if it is longer; with a NaN or infinity it becomes zero."""
    if not np.isfinite(vector).all():
        return np.zeros_like(vector)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0.0:
        return vector
    length = largest * math.sqrt(float(np.square(vector / largest).sum()))
    return vector if length <= limit else vector * (limit / length)


def gaussian(secret: bytes, address: str, n: int) -> Vector:
    """Return (n,) standard-normal noise that only the holder of the secret can know.

    SHAKE-256 of secret and address, 64 bits a number, through the normal quantile function: unlike the noise of `rng`,
    which is drawn from a shared key and a table of 2^16 numbers, it cannot be guessed and has tails (to 8.2). The same
    address gives the same noise, so that a repeated request releases nothing new.
    """
    raw = hashlib.shake_256(len(secret).to_bytes(8, "little") + secret + address.encode()).digest(8 * n)
    words = np.frombuffer(raw, "<u8")
    noise: Vector = scipy.special.ndtri(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)
    return noise


# -- accounting --------------------------------------------------------------------------------------------------------


def rdp_gaussian(noise: float, orders: Sequence[int] = ORDERS) -> Vector:
    """Return the Renyi divergence of one Gaussian release at sensitivity 1: a / (2 z^2) (Mironov 2017, prop. 7).

    Parameters
    ----------
    noise : z, standard deviation over sensitivity; 0 gives infinity.
    """
    a = np.asarray(orders, dtype=np.float64)
    return np.full(len(a), np.inf) if noise <= 0 else a / (2 * noise * noise)


@lru_cache(maxsize=256)
def _rdp_sampled(rate: float, noise: float, orders: tuple[int, ...]) -> tuple[float, ...]:
    found = []
    for a in orders:
        k = np.arange(a + 1, dtype=np.float64)
        binomial = scipy.special.gammaln(a + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(a - k + 1)
        terms = binomial + (a - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise * noise)
        found.append(max(float(scipy.special.logsumexp(terms)), 0.0) / (a - 1))
    return tuple(found)


def rdp_sampled_gaussian(rate: float, noise: float, orders: Sequence[int] = ORDERS) -> Vector:
    """Renyi divergence of one Gaussian release to which each participant is admitted with probability `rate`.

    Mironov, Talwar, Zhang (2019), arXiv:1908.10530, section 3.3, integer orders a::

        1 / (a - 1) log sum_k C(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 z^2))

    Parameters
    ----------
    rate : q in [0, 1]; 1 is `rdp_gaussian`.
    noise : z, standard deviation over sensitivity.
    """
    if rate <= 0:
        return np.zeros(len(orders))
    if rate >= 1 or noise <= 0:
        return rdp_gaussian(noise, orders)
    return np.array(_rdp_sampled(rate, noise, tuple(orders)))


def epsilon(rdp: NDArray[Any], delta: float, orders: Sequence[int] = ORDERS) -> float:
    """Return the smallest epsilon for `delta` that the divergences prove.

    Canonne, Kamath, Steinke (2020), arXiv:2004.00010, prop. 12, better than log(1/delta) / (a - 1)::

        min over a of  R(a) + log(1 - 1/a) - (log delta + log a) / (a - 1)

    Parameters
    ----------
    rdp : (len(orders),) summed divergences.
    delta : in (0, 1).
    """
    a = np.asarray(orders, dtype=np.float64)
    bound = np.asarray(rdp) + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return max(float(bound.min()), 0.0)


def epsilon_of_replacement(releases: int, noise: float, delta: float) -> float:
    """Return the epsilon of clipped and noised vectors that are seen one by one.

    Replacing all data of a participant moves a clipped vector by up to 2 C: half the noise per sensitivity.

    Parameters
    ----------
    releases : number of vectors.
    noise : z, standard deviation over C.
    """
    return epsilon(releases * rdp_gaussian(noise / 2), delta) if releases else 0.0


def mean_noise(weights: Sequence[float], noise: float) -> float:
    """Return z of a weighted mean of contributions with noise z each, for the participant of the largest weight.

    The mean sum p_i (v_i + z C n_i) moves by at most p_max C with one participant, and has the standard deviation
    z C sqrt(sum p_i^2): z sqrt(n) for n equal weights.
    """
    w = np.asarray(weights, dtype=np.float64)
    return noise * math.sqrt(float(np.square(w).sum())) / float(w.max())
