"""Genomes survive their arrays; shared first terms are found, and what cannot stay short is given up."""

from __future__ import annotations

import pytest

from blackbox.records import Term
from blackbox.toolbox.genomes import Genome, Genomes, coalesced, shared


def line(*lanes: int) -> Genome:
    """A genome whose ancestors were born in these lanes, one a step."""
    return tuple(Term(0, step, lane, 0.5, "rademacher") for step, lane in enumerate(lanes))


def test_genomes_survive_their_arrays() -> None:
    genomes = [line(1, 2, 3), (), line(4), (Term(2**64 - 1, 2**40, 7, -1e-8, "rademacher"),), ()]
    packed = Genomes.of(genomes)
    assert len(packed) == 5
    assert packed.lengths.tolist() == [3, 0, 1, 1, 0]
    assert packed.all("rademacher") == genomes
    assert [packed.genome(i, "rademacher") for i in range(5)] == genomes
    assert Genomes.of([]).all("normal") == []


@pytest.mark.parametrize(
    ("genomes", "n"),
    [
        ([line(1, 2, 3)], 3),
        ([line(1, 2, 3), line(1, 2, 4, 5)], 2),
        ([line(1, 2, 3), line(1)], 1),
        ([line(1, 2), line(3, 2)], 0),
        ([line(1, 2), line(1, 2), ()], 0),
    ],
)
def test_shared_terms_are_those_that_all_begin_with(genomes: list[Genome], n: int) -> None:
    assert shared(genomes) == n


def test_a_base_changes_as_soon_as_enough_terms_are_shared() -> None:
    parents = [line(1, 2, 3, 4), line(1, 2, 3, 5), line(1, 2, 3)]
    assert coalesced(parents, enough=4, most=9) == (parents, 0)
    assert coalesced(parents, enough=3, most=9) == (parents, 3)


def test_where_a_child_would_be_too_long_the_first_parents_kin_goes_on() -> None:
    first, cousin, stranger = line(1, 2, 3, 4, 5), line(1, 2, 3, 6), line(9, 2, 3, 4, 5)
    parents, cut = coalesced([first, stranger, cousin], enough=2, most=5)
    assert (parents, cut) == ([first, cousin], 3)
    assert all(len(genome) - cut < 5 for genome in parents), "there is room for a child's term"


def test_of_the_kin_only_those_with_room_for_a_child_go_on() -> None:
    first, long = line(1, 2), line(1, 2, 3, 4, 5, 6)
    assert coalesced([first, long], enough=2, most=4) == ([first], 2)
