"""Options of every federated method, and the phases of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blackbox.options import Field, Options


class PrivacyOptions(Options):
    """Clipping and Gaussian noise that every participant applies before anything leaves it."""

    clip: dict[str, float] = Field(min_length=1)
    """Largest Euclidean norm of each vector that travels, by name ("delta", "weights", ...); see the method's page. A
    good start is the median norm without privacy, which the metric `update_norm` shows."""
    noise: float = Field(1.0, ge=0, le=1e6)
    """z: standard deviation of the noise on each coordinate, in units of the clip."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability with which the promise may fail; well below 1 / (number of participants)."""
    max_epsilon: float | None = Field(None, gt=0)
    """Stop before the epsilon towards the coordinator would pass this. None: never."""


class FederationOptions(Options):
    """Options that every federated method has."""

    rounds: int | None = Field(50, ge=1)
    """Rounds after which it stops. None: never."""
    local_steps: int = Field(10, ge=1, le=10_000)
    """Steps that each participant takes on its own objective per round."""
    server_rate: float = Field(1.0, gt=0, le=100)
    """Factor on the mean move of the participants; 1 goes to the mean of where they ended."""
    quorum: float = Field(0.7, gt=0, le=1)
    """Share of the invited participants whose contributions close a phase. The phase does not wait for the others."""
    min_clients: int = Field(1, ge=1)
    """Fewest contributions that close a phase."""
    participation: float = Field(1.0, gt=0, le=1)
    """Probability with which a participant is invited to a round, drawn for each anew from the study's key."""
    max_staleness: int = Field(0, ge=0, le=1000)
    """Moves that were computed up to this many rounds ago still count. 0: late ones are dropped."""
    staleness_power: float = Field(0.5, ge=0, le=10)
    """A move of age a rounds has its weight multiplied by (1 + a)^-power."""
    privacy: PrivacyOptions | None = None
    """Clipping and noise at the participants. None: contributions leave as they are."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One exchange of a round: its name, and the vectors (name -> length) that a contribution to it holds."""

    name: str
    payload: Mapping[str, int]
