"""FedZO: local zeroth-order descent, then the mean of the moves.

Fang, Yu, Jiang, Shi, Jones, Zhou (2022), Communication-Efficient Stochastic Zeroth-Order Optimization for Federated
Learning, arXiv:2201.09531. With `payload="scalars"` it is DeComFL (Li et al. 2024, arXiv:2405.15861)::

    x <- x + server_rate * sum over the arrived i of p_i (z_i,T - x),   p_i = weight_i / sum of their weights

See `blackbox.federation.descent` for the local steps.
"""

from __future__ import annotations

from blackbox.federation.descent import Descent, DescentParticipant, DescentResolved, ScalarOptions
from blackbox.federation.method import federated


class FedZoOptions(ScalarOptions):
    """Options of `fedzo`. Lengths are in internal units: bounded parameters are the unit interval."""


class FedZoResolved(DescentResolved, FedZoOptions):
    """The options with every default filled in."""


class FedZoParticipant(DescentParticipant[FedZoResolved]):
    """Plain local descent."""


@federated("fedzo")
class FedZo(Descent[FedZoResolved]):
    """Plain federated zeroth-order descent: the baseline, and with scalars the least to send (arXiv:2201.09531)."""

    Options = FedZoOptions
    Resolved = FedZoResolved
    Participant = FedZoParticipant
    revision = 2  # 2026-11: a local step without a value moves nothing, and a phase without one contributes nothing
