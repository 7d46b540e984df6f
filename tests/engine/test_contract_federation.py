"""Every registered federated method keeps the contract, with each payload and with privacy noise."""

from __future__ import annotations

from typing import Any

import pytest

from blackbox import federation
from tests.contracts.federation import FederationContract, Variant

FALLING = {"type": "exponential", "start": 0.03, "factor": 0.85}
SMALL: dict[str, dict[str, Any]] = {
    "fzoos": {
        "features": 200,
        "neighbours": 40,
        "candidates": 20,
        "transfer_points": 10,
        "local_steps": 5,
        "rate": FALLING,
    },
}
VARIANTS = [
    *(
        Variant(name, SMALL.get(name, {"count": 4, "local_steps": 5, "rate": FALLING}))
        for name in federation.registry()
    ),
    Variant("fedzo", {"payload": "scalars", "count": 4, "local_steps": 5, "rate": FALLING}),
    Variant(
        "fedprox", {"payload": "scalars", "count": 4, "local_steps": 5, "rate": FALLING, "directions": "rademacher"}
    ),
    Variant("scaffold", {"control": "fresh", "count": 4, "local_steps": 5, "rate": FALLING}),
    Variant("fzoos", {**SMALL["fzoos"], "correction": "none", "neighbours": 20, "length": "likelihood"}),
]


class TestEveryFederatedMethod(FederationContract):
    @pytest.fixture(params=VARIANTS, ids=str)
    def variant(self, request: pytest.FixtureRequest) -> Variant:
        chosen: Variant = request.param
        return chosen
