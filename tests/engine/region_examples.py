"""One example of every region, with a second and independent way to its least inner product."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog

from blackbox.regions import (
    AffineImage,
    Birkhoff,
    Box,
    Budgets,
    CappedSimplex,
    Ellipsoid,
    Fantope,
    FlowPolytope,
    GroupBall,
    GroupLimit,
    Hull,
    Knapsack,
    KSparsePolytope,
    L1Ball,
    L2Ball,
    LpBall,
    MinkowskiSum,
    NuclearBall,
    OrderedL1Ball,
    Part,
    PathPolytope,
    Permutahedron,
    Polytope,
    Product,
    Region,
    SchattenBall,
    Simplex,
    SpectralBall,
    Spectraplex,
    Transportation,
    UnionHull,
    UnitSimplex,
)

norm = np.linalg.norm
CENTRE = (1.0, -2.0, 0.5, 0.0)
POINTS = ((0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (1.0, 1.0), (1.0, 0.0))
SQUARE = ((2.0, 0.5), (0.5, 1.0))
DAG = ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 1 + 3), (5, 3))  # the last edge is on no path from 0
NETWORK = ((0, 1), (1, 2), (0, 2), (2, 3), (1, 3))


@dataclass(frozen=True)
class Example:
    """A set, its dimension, and an independent way to its least inner product with g."""

    region: Region
    dim: int
    least: Callable[[np.ndarray], float]
    corners: np.ndarray | None = None
    """All extreme points, where they are few."""

    def __str__(self) -> str:
        return json.dumps(self.region.to_json()).replace('"', "")[:60]


def few(region: Region, corners: Any) -> Example:
    corners = np.array(corners, dtype=np.float64)
    return Example(region, corners.shape[1], lambda g: float((corners @ g).min()), corners)


def formula(region: Region, dim: int, least: Callable[[np.ndarray], float]) -> Example:
    return Example(region, dim, least)


def programme(region: Region, dim: int, corners: Any = None, **constraints: Any) -> Example:
    """SciPy's interior-point method on dense constraints: another solver on another form."""

    def least(g: np.ndarray) -> float:
        found = linprog(g, **{"bounds": (None, None), **constraints}, method="highs-ipm")
        assert found.status == 0
        return float(found.fun)

    return Example(region, dim, least, corners)


def cross(radius: float, centre: Any = 0.0, weights: Any = 1.0, dim: int = 4) -> np.ndarray:
    spokes = np.diag(np.broadcast_to(radius / np.asarray(weights), (dim,)))
    return np.concatenate([spokes, -spokes]) + np.asarray(centre)


def matrices(shape: tuple[int, int], least: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
    return lambda g: least(g.reshape(shape))


def singular(g: np.ndarray) -> np.ndarray:
    return np.linalg.svd(g, compute_uv=False)


def eigen(g: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh((g + g.T) / 2)


def knapsack_corners(weights: Any, upper: Any, budget: float, exact: bool) -> np.ndarray:
    """Every choice of 0, upper or what is left, kept where it is feasible."""
    weights, upper = np.array(weights, dtype=np.float64), np.array(upper, dtype=np.float64)
    found = []
    for sides in itertools.product((0, 1), repeat=len(weights)):
        x = np.array(sides) * upper
        if weights @ x <= budget + 1e-12 and (not exact or abs(weights @ x - budget) < 1e-12):
            found.append(x)
        for i in range(len(weights)):
            y = x.copy()
            y[i] = (budget - weights @ x + weights[i] * x[i]) / weights[i]
            if 0 <= y[i] <= upper[i]:
                found.append(y)
    return np.array(found)


def nested_corners() -> Example:
    """Greedy spending in every order of every subset names all extreme points."""
    limits = [((0, 1), 1.0), ((2, 3), 2.0), ((0, 1, 2, 3), 2.5), ((3,), 0.7)]
    found = {(0.0,) * 4}
    for n in range(1, 5):
        for order in itertools.permutations(range(4), n):
            x = [0.0] * 4
            for i in order:
                x[i] = min(limit - sum(x[j] for j in members) for members, limit in limits if i in members)
            found.add(tuple(x))
    region = Budgets(dim=4, budgets=[GroupLimit(members=members, limit=limit) for members, limit in limits])
    return few(region, sorted(found))


BALL_MATRIX = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
OWL = (3.0, 2.0, 2.0, 0.5)
PAIRS = ((0, 2), (1, 3))
EXAMPLES = [
    few(Box(lower=-1.0, upper=2.0), list(itertools.product((-1, 2), repeat=3))),
    few(
        Box(lower=(-1.0, 0.0, 3.0), upper=(1.0, 0.0, 3.5)),
        list(itertools.product((-1, 1), (0,), (3, 3.5))),
    ),
    few(L1Ball(radius=2.0), cross(2.0)),
    few(L1Ball(radius=0.5, centre=CENTRE), cross(0.5, CENTRE)),
    few(L1Ball(radius=2.0, weights=(1.0, 2.0, 0.5, 4.0)), cross(2.0, weights=[1, 2, 0.5, 4])),
    formula(L2Ball(radius=2.0), 4, lambda g: -2 * norm(g)),
    formula(L2Ball(radius=0.5, centre=CENTRE), 4, lambda g: g @ np.array(CENTRE) - 0.5 * norm(g)),
    formula(LpBall(p=1.5, radius=2.0), 4, lambda g: -2 * norm(g, 3)),
    formula(LpBall(p=4.0, centre=CENTRE), 4, lambda g: g @ np.array(CENTRE) - norm(g, 4 / 3)),
    formula(
        Ellipsoid(matrix=BALL_MATRIX.tolist(), radius=1.5, centre=(1.0, 0.0, -1.0)),
        3,
        lambda g: g @ [1, 0, -1] - 1.5 * math.sqrt(g @ np.linalg.solve(BALL_MATRIX, g)),
    ),
    formula(Ellipsoid(matrix=(4.0, 1.0, 0.25)), 3, lambda g: -norm(g / [2, 1, 0.5])),
    few(
        KSparsePolytope(k=2, radius=1.5),
        [s for s in itertools.product((-1.5, 0, 1.5), repeat=4) if np.count_nonzero(s) == 2],
    ),
    few(
        OrderedL1Ball(weights=OWL, radius=2.0),
        [
            np.array(s) * 2.0 / sum(OWL[: np.count_nonzero(s)])
            for s in itertools.product((-1, 0, 1), repeat=4)
            if np.count_nonzero(s)
        ],
    ),
    formula(GroupBall(groups=2, radius=2.0), 4, lambda g: -2 * max(norm(g[:2]), norm(g[2:]))),
    formula(
        GroupBall(groups=PAIRS, centre=CENTRE),
        4,
        lambda g: g @ np.array(CENTRE) - max(norm(g[list(p)]) for p in PAIRS),
    ),
    few(Simplex(), np.eye(4)),
    few(Simplex(radius=3.0), 3 * np.eye(4)),
    few(UnitSimplex(radius=2.0), np.concatenate([2 * np.eye(4), np.zeros((1, 4))])),
    few(CappedSimplex(total=2.0), [s for s in itertools.product((0, 1), repeat=4) if sum(s) == 2]),
    few(CappedSimplex(total=1.25, cap=0.5), knapsack_corners([1] * 4, [0.5] * 4, 1.25, exact=True)),
    few(
        Knapsack(weights=(1.0, 2.0, 3.0), budget=3.5, upper=(1.0, 1.0, 2.0)),
        knapsack_corners([1, 2, 3], [1, 1, 2], 3.5, exact=False),
    ),
    few(
        Knapsack(weights=(1.0, 2.0, 3.0), budget=3.5, upper=(1.0, 1.0, 2.0), exact=True),
        knapsack_corners([1, 2, 3], [1, 1, 2], 3.5, exact=True),
    ),
    few(Permutahedron(values=(3.0, 1.0, -2.0, 1.0)), list(itertools.permutations((3, 1, -2, 1)))),
    nested_corners(),
    formula(NuclearBall(rows=2, cols=3, radius=2.0), 6, matrices((2, 3), lambda g: -2 * singular(g)[0])),
    formula(SpectralBall(rows=3, cols=2, radius=2.0), 6, matrices((3, 2), lambda g: -2 * singular(g).sum())),
    formula(SchattenBall(rows=2, cols=3, p=3.0), 6, matrices((2, 3), lambda g: -norm(singular(g), 1.5))),
    formula(Spectraplex(order=3, radius=2.0), 9, matrices((3, 3), lambda g: 2 * eigen(g)[0])),
    formula(Spectraplex(order=3, exact=False), 9, matrices((3, 3), lambda g: min(eigen(g)[0], 0.0))),
    formula(Fantope(order=3, k=2), 9, matrices((3, 3), lambda g: eigen(g)[:2].sum())),
    few(Birkhoff(order=3), [np.eye(3)[list(p)].ravel() for p in itertools.permutations(range(3))]),
    few(
        PathPolytope(edges=DAG, source=0, target=4),
        [[1, 0, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 1, 0]],
    ),
    programme(
        FlowPolytope(edges=NETWORK, supply=(2.0, 1.0, 0.0, -3.0), capacity=(2.0, 3.0, 1.0, 2.5, 2.0)),
        5,
        A_eq=[[1, 0, 1, 0, 0], [-1, 1, 0, 0, 1], [0, -1, -1, 1, 0], [0, 0, 0, -1, -1]],
        b_eq=[2, 1, 0, -3],
        bounds=list(zip([0] * 5, [2, 3, 1, 2.5, 2], strict=True)),
    ),
    programme(
        Transportation(supply=(2.0, 1.0), demand=(0.5, 1.5, 1.0)),
        6,
        A_eq=[
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 1, 1],
            [1, 0, 0, 1, 0, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 0, 1, 0, 0, 1],
        ],
        b_eq=[2, 1, 0.5, 1.5, 1],
        bounds=(0, None),
    ),
    few(
        Polytope(a_ub=((1.0, 1.0), (-1.0, 0.0), (0.0, -1.0)), b_ub=(2.0, 0.0, 1.0), lower=-9.0, upper=9.0),
        [[0, -1], [3, -1], [0, 2]],
    ),
    few(
        Polytope(a_ub=((1.0, -1.0, 0.0),), b_ub=(0.5,), a_eq=((1.0, 1.0, 2.0),), b_eq=(2.0,), lower=0.0, upper=1.0),
        [[0, 1, 0.5], [0, 0, 1], [1, 1, 0], [0.5, 0, 0.75], [1, 0.5, 0.25]],
    ),
    few(Hull(points=POINTS), [POINTS[0], POINTS[1], POINTS[2]]),
    few(
        Product(parts=[Part(dim=2, region=Simplex(radius=2.0)), Part(dim=1, region=Box(lower=-1.0))]),
        [[2, 0, -1], [0, 2, -1], [2, 0, 1], [0, 2, 1]],
    ),
    formula(
        Product(parts=[Part(dim=2, region=L2Ball()), Part(dim=2, region=L1Ball(radius=3.0))]),
        4,
        lambda g: -norm(g[:2]) - 3 * np.abs(g[2:]).max(),
    ),
    few(
        AffineImage(matrix=((1.0, 2.0, 0.0), (0.0, 1.0, 1.0)), offset=1.0, region=Simplex()),
        [[2, 1], [3, 2], [1, 2]],
    ),
    formula(
        AffineImage(matrix=SQUARE, region=L2Ball(radius=2.0)),
        2,
        lambda g: -2 * norm(np.array(SQUARE).T @ g),
    ),
    formula(
        MinkowskiSum(regions=[L2Ball(radius=0.5), Simplex(radius=2.0)]),
        3,
        lambda g: 2 * g.min() - 0.5 * norm(g),
    ),
    few(
        MinkowskiSum(regions=[Box(), Hull(points=((0.0, 0.0), (1.0, 1.0)))]),
        [[0, 0], [1, 0], [0, 1], [2, 1], [1, 2], [2, 2]],
    ),
    formula(
        UnionHull(regions=[L1Ball(radius=2.0), Box(lower=-1.0)]),
        3,
        lambda g: -max(2 * np.abs(g).max(), np.abs(g).sum()),
    ),
]
