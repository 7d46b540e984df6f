"""FedProx: local zeroth-order descent with a pull towards the common point.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith (2020), Federated Optimization in Heterogeneous Networks, arXiv:1812.06127,
with finite differences in place of gradients. Each participant descends on f_i(z) + beta/2 |z - x|^2::

    g <- g + beta (z - x)

See `blackbox.federation.descent` for the rest.
"""

from __future__ import annotations

from blackbox.federation.descent import Descent, DescentParticipant, DescentResolved, DescentState, ScalarOptions
from blackbox.federation.method import federated
from blackbox.options import Field
from blackbox.records import Vector


class FedProxOptions(ScalarOptions):
    """Options of `fedprox`. Lengths are in internal units: bounded parameters are the unit interval."""

    beta: float = Field(0.01, ge=0)
    """Strength of the pull towards the common point, in units of the objective over squared internal units: compare
    with the curvature of the objective. 0 is FedZO."""


class FedProxResolved(DescentResolved, FedProxOptions):
    """The options with every default filled in."""


class FedProxParticipant(DescentParticipant[FedProxResolved]):
    """Local descent with a pull back to the point at which the round began."""

    def pull(self, state: DescentState) -> Vector | float:
        # z - x = sum of coefficient times direction: the pull is linear in the coefficients, too
        away = state.coefficients if self.scalars else state.z - state.x
        return self.options.beta * away


@federated("fedprox")
class FedProx(Descent[FedProxResolved]):
    """FedZO with a pull towards the common point, for participants that differ (arXiv:1812.06127)."""

    Options = FedProxOptions
    Resolved = FedProxResolved
    Participant = FedProxParticipant
    revision = 2  # 2026-11: a local step without a value moves nothing, and a phase without one contributes nothing
