"""Convex compact sets: membership, linear minimisation and, where it is cheap, Euclidean projection.

To add a set: subclass `Region` in one of the files here, give it a literal `type`, and add it to `AnyRegion`. Its
fields and their docstrings are its JSON form and schema; the tests run over a list of examples of every type.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from blackbox.regions.balls import (
    Box,
    Ellipsoid,
    GroupBall,
    KSparsePolytope,
    L1Ball,
    L2Ball,
    LpBall,
    OrderedL1Ball,
)
from blackbox.regions.base import FEASIBLE, Region
from blackbox.regions.combinatorial import Birkhoff, PathPolytope
from blackbox.regions.compositions import AffineImage, MinkowskiSum, Part, Product, UnionHull
from blackbox.regions.hulls import Hull
from blackbox.regions.matrices import Fantope, NuclearBall, SchattenBall, SpectralBall, Spectraplex
from blackbox.regions.polytopes import FlowPolytope, Polytope, Transportation
from blackbox.regions.simplices import (
    Budgets,
    CappedSimplex,
    GroupLimit,
    Knapsack,
    Permutahedron,
    Simplex,
    UnitSimplex,
)
from blackbox.validation import from_tagged_json

__all__ = [
    "FEASIBLE",
    "AffineImage",
    "AnyRegion",
    "Birkhoff",
    "Box",
    "Budgets",
    "CappedSimplex",
    "Ellipsoid",
    "Fantope",
    "FlowPolytope",
    "GroupBall",
    "GroupLimit",
    "Hull",
    "KSparsePolytope",
    "Knapsack",
    "L1Ball",
    "L2Ball",
    "LpBall",
    "MinkowskiSum",
    "NuclearBall",
    "OrderedL1Ball",
    "Part",
    "PathPolytope",
    "Permutahedron",
    "Polytope",
    "Product",
    "Region",
    "SchattenBall",
    "Simplex",
    "SpectralBall",
    "Spectraplex",
    "Transportation",
    "UnionHull",
    "UnitSimplex",
    "region_from_json",
    "region_types",
]

AnyRegion: TypeAlias = Annotated[
    Box
    | L1Ball
    | L2Ball
    | LpBall
    | Ellipsoid
    | KSparsePolytope
    | OrderedL1Ball
    | GroupBall
    | Simplex
    | UnitSimplex
    | CappedSimplex
    | Knapsack
    | Permutahedron
    | Budgets
    | NuclearBall
    | SpectralBall
    | SchattenBall
    | Spectraplex
    | Fantope
    | Birkhoff
    | PathPolytope
    | FlowPolytope
    | Transportation
    | Polytope
    | Hull
    | Product
    | AffineImage
    | MinkowskiSum
    | UnionHull,
    Field(discriminator="type"),
]
"""Any region, discriminated by `type`: the annotation for models that hold one."""

for _composition in (Part, Product, AffineImage, MinkowskiSum, UnionHull):
    _composition.model_rebuild(_types_namespace={"AnyRegion": AnyRegion})

_TYPES: dict[str, type[Region]] = {cls.model_fields["type"].default: cls for cls in get_args(get_args(AnyRegion)[0])}


def region_types() -> dict[str, type[Region]]:
    """The classes of regions by the `type` of their JSON."""
    return dict(_TYPES)


def region_from_json(raw: object, at: str = "/region") -> Region:
    """The region that a JSON object describes.

    Parameters
    ----------
    raw : object with `type` and the fields of that region.
    at : JSON pointer of `raw` in the document, for the error.

    Raises
    ------
    InvalidRegion
        Naming the fields at error: unknown types and fields, empty and unbounded sets.
    """
    return from_tagged_json(raw, _TYPES, at)
