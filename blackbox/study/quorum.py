"""Who has contributed to the open phase, who still may, and whether it closes: a function of what was read at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blackbox.federation import Federation, FederationState
from blackbox.study.participants import Decline
from blackbox.study.rows import ContributionRow, MemberRow


@dataclass(frozen=True, slots=True)
class Quorum:
    """The participants of the open phase.

    Attributes
    ----------
    federation, state : the coordinator.
    members : participants that have not left.
    counted : contributions that count in this phase.
    declines : name -> what the participant said, of those that declined this phase.
    """

    federation: Federation[Any]
    state: FederationState
    members: Sequence[MemberRow]
    counted: Sequence[ContributionRow]
    declines: Mapping[str, Decline]

    @property
    def came(self) -> set[str]:
        """Names of those whose contribution to this round's phase is in."""
        return {row.client for row in self.counted if row.round == self.state.round}

    @property
    def declined(self) -> list[Decline]:
        """What those said who declined the phase and did not contribute after all."""
        came = self.came
        return [one for name, one in sorted(self.declines.items()) if name not in came]

    @property
    def able(self) -> set[str]:
        """Names of those who have contributed, or still may."""
        away = {one.client for one in self.declined}
        names = {member.client for member in self.members} - away
        return {name for name in names if self.federation.invited(self.state, name)}

    @property
    def fewest(self) -> int:
        """Contributions without which the phase does not close, not even at its deadline."""
        return max(1, int(self.federation.options.min_clients))

    @property
    def need(self) -> int:
        """Contributions that close the phase: the method's quorum, but no more than can still come."""
        need: int = self.federation.need(self.state, len(self.members))
        return min(need, max(len(self.able), self.fewest)) if self.declined else need

    @property
    def hopeless(self) -> bool:
        """Whether contributions lack, and all who could have sent one have declined."""
        return bool(self.declined) and len(self.counted) < self.fewest and self.able <= self.came

    def closes(self, due: bool) -> str | None:
        """The reason for which the phase closes, or None; `due`: its deadline has passed."""
        if len(self.counted) >= self.need:
            return "need"
        return "deadline" if due and len(self.counted) >= self.fewest else None
