"""Genomes that are lists of noise addresses: kept as arrays, and kept short by re-basing.

A genome is what a recipe adds to its base, one term per ancestor (Such et al. 2017, arXiv:1712.06567). Under truncation
selection the parents' lineages coalesce: all of them soon begin with the same terms, and these only grow in number. As
soon as enough are shared, their point becomes the new base vector and every genome drops them. Terms are added in
order, in float32, so no point changes by a bit. Where lineages stay apart, a limit of terms is kept by giving up the
lineages that split off from the first parent's longest ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox.records import Ints, Term, Vector

__all__ = ["Genome", "Genomes", "coalesced", "shared"]

Genome: TypeAlias = tuple[Term, ...]
"""The terms of a recipe on the open base."""


@dataclass(frozen=True, slots=True)
class Genomes:
    """Genomes as arrays, one after another, with N terms in all.

    Attributes
    ----------
    ends : (n,) where each genome ends; it begins where the one before ends.
    stream : (N,) uint64; stream, step and lane are the address of a term's noise.
    step, lane : (N,) int64.
    scale : (N,) float64, the factor of the noise.
    """

    ends: Ints
    stream: NDArray[np.uint64]
    step: Ints
    lane: Ints
    scale: Vector

    @classmethod
    def of(cls, genomes: Sequence[Genome]) -> Genomes:
        """Return the arrays of n genomes whose terms are all of one kind."""
        terms = [term for genome in genomes for term in genome]
        return cls(
            ends=np.cumsum([len(genome) for genome in genomes], dtype=np.int64),
            stream=np.array([term.stream for term in terms], dtype=np.uint64),
            step=np.array([term.step for term in terms], dtype=np.int64),
            lane=np.array([term.lane for term in terms], dtype=np.int64),
            scale=np.array([term.scale for term in terms], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Ints:
        """(n,) terms of each genome."""
        return np.diff(self.ends, prepend=0)

    def genome(self, i: int, kind: str) -> Genome:
        """Return the i-th genome, with terms of the given kind of noise."""
        own = slice(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        columns = [column[own].tolist() for column in (self.stream, self.step, self.lane, self.scale)]
        return tuple(Term(a, step, lane, scale, kind) for a, step, lane, scale in zip(*columns, strict=True))

    def all(self, kind: str) -> list[Genome]:
        """Return every genome, with terms of the given kind of noise."""
        return [self.genome(i, kind) for i in range(len(self))]


def shared(genomes: Sequence[Genome]) -> int:
    """Return the number of first terms that all genomes share."""
    first, *others = genomes
    n = len(first)
    for other in others:
        n = next((i for i, (a, b) in enumerate(zip(first[:n], other, strict=False)) if a != b), min(n, len(other)))
    return n


def coalesced(parents: list[Genome], enough: int, most: int) -> tuple[list[Genome], int]:
    """Choose the parents to keep, and how many of their shared first terms become the new base.

    Parameters
    ----------
    parents : at least one, best first.
    enough : number of shared terms at which they become a base.
    most : largest number of terms of a child.

    Returns
    -------
    parents, cut : all parents, unless a child would have too many terms; then the closest kin of the first one, as many
        as leave room for a child. `cut` is 0 where the base stays.
    """
    n_shared, longest = shared(parents), max(map(len, parents))
    cut = n_shared if n_shared >= enough else 0
    if longest - cut < most:
        return parents, cut
    cut = min(max(enough, longest + 1 - most), len(parents[0]))
    kin = [genome for genome in parents if genome[:cut] == parents[0][:cut] and len(genome) - cut < most]
    return kin, shared(kin)
