"""Rows of federated rounds: members, contributions, updates of the common point."""

from __future__ import annotations

from collections.abc import Sequence

from blackbox.study.rows import ContributionRow, MemberRow, UpdateRow
from blackbox_server.store.verbs.base import Verbs, arguments, columns, insert, no_nan, upsert

PUT_MEMBER, MEMBER_ARGUMENTS = upsert("members", MemberRow, "study, client"), arguments(MemberRow)
MEMBER = f"SELECT {columns(MemberRow)} FROM members WHERE study = ? AND client = ?"
MEMBERS = f"SELECT {columns(MemberRow)} FROM members WHERE study = ? AND left_at IS NULL ORDER BY client"
INSERT_CONTRIBUTION, CONTRIBUTION_ARGUMENTS = insert("contributions", ContributionRow), arguments(ContributionRow)
CONTRIBUTIONS = f"SELECT {columns(ContributionRow)} FROM contributions WHERE study = ?"
CONTRIBUTION = f"{CONTRIBUTIONS} AND client = ? AND round = ? AND phase = ?"
CONTRIBUTIONS_LOGGED = f"{CONTRIBUTIONS} AND seq > ? AND seq <= ? ORDER BY seq"
CONTRIBUTIONS_WAITING = f"{CONTRIBUTIONS} AND step IS NULL ORDER BY seq"
SETTLE = "UPDATE contributions SET step = ? WHERE study = ? AND seq = ?"
SETTLE_AND_FORGET = "UPDATE contributions SET step = ?, content = NULL WHERE study = ? AND seq = ?"
INSERT_UPDATE, UPDATE_ARGUMENTS = insert("updates", UpdateRow), arguments(UpdateRow)
UPDATES = f"SELECT {columns(UpdateRow)} FROM updates WHERE study = ? AND version > ? ORDER BY version LIMIT ?"


class RoundVerbs(Verbs):
    """Verbs of `Tx` about federated rounds."""

    def put_member(self, row: MemberRow) -> None:
        no_nan(row.joined_at, row.left_at)
        self._add(PUT_MEMBER, [MEMBER_ARGUMENTS(row)], row.study, "")

    def member(self, study: str, client: str) -> MemberRow | None:
        found = self._execute(MEMBER, (study, client)).fetchone()
        return MemberRow(*found) if found else None

    def members(self, study: str) -> list[MemberRow]:
        return [MemberRow(*row) for row in self._execute(MEMBERS, (study,))]

    def insert_contribution(self, row: ContributionRow) -> None:
        what = f"{row.client} has contributed to {row.phase} of round {row.round}"
        self._add(INSERT_CONTRIBUTION, [CONTRIBUTION_ARGUMENTS(row)], row.study, what)

    def contribution(self, study: str, client: str, round: int, phase: str) -> ContributionRow | None:
        found = self._execute(CONTRIBUTION, (study, client, round, phase)).fetchone()
        return ContributionRow(*found) if found else None

    def contributions(self, study: str, after_seq: int, upto_seq: int) -> list[ContributionRow]:
        return [ContributionRow(*row) for row in self._execute(CONTRIBUTIONS_LOGGED, (study, after_seq, upto_seq))]

    def waiting_contributions(self, study: str) -> list[ContributionRow]:
        return [ContributionRow(*row) for row in self._execute(CONTRIBUTIONS_WAITING, (study,))]

    def settle_contributions(self, study: str, seqs: Sequence[int], step: int, keep: bool) -> None:
        sql = SETTLE if keep else SETTLE_AND_FORGET
        self.connection.executemany(sql, [(step, study, seq) for seq in seqs])

    def insert_update(self, row: UpdateRow) -> None:
        self._add(INSERT_UPDATE, [UPDATE_ARGUMENTS(row)], row.study, f"the update to version {row.version} is there")

    def updates(self, study: str, after_version: int, limit: int) -> list[UpdateRow]:
        return [UpdateRow(*row) for row in self._execute(UPDATES, (study, after_version, limit))]
