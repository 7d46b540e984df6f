"""A study whose trials are leased: renewing leases, withdrawing trials and queueing them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blackbox.study import leases, ledger
from blackbox.study.effects import Steps, write
from blackbox.study.granting import Granter
from blackbox.study.leases import Renewal
from blackbox.study.reading import RecordedStudy
from blackbox.study.rows import StudyRow, TrialRow, Tx


class LeasedStudy(RecordedStudy):
    """What a study of trials does with leases that are out, beside granting and telling."""

    _granter: Granter

    def heartbeat(
        self, tokens: Sequence[str], *, now: float, extend_seconds: float | None = None
    ) -> Steps[list[Renewal]]:
        """Renew leases; see `Renewal`."""
        seconds = self._granter.lease_seconds(extend_seconds)

        def work(tx: Tx) -> list[Renewal]:
            row = ledger.locked(tx, self.id)
            return leases.renew(tx, row, self.head.secret, tokens, now=now, seconds=seconds)

        return (yield from write(work))

    def report(self, token: str, *, step: int | None, value: float | None, now: float) -> Steps[Renewal]:
        """Renew a lease and keep an interim value; see `leases.report`."""
        seconds = self._granter.lease_seconds(None)

        def work(tx: Tx) -> Renewal:
            row = ledger.locked(tx, self.id)
            return leases.report(tx, row, self.head.secret, token, step=step, value=value, now=now, seconds=seconds)

        return (yield from write(work))

    def cancel_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Withdraw an open trial; its worker is told to abandon it at the next heartbeat."""

        return self._change(number, leases.cancel)

    def requeue_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Queue a trial again that is leased, lost, failed or withdrawn, and has no result."""

        return self._change(number, leases.requeue)

    def _change(self, number: int, change: Callable[[TrialRow], None]) -> Steps[TrialRow]:
        def work(tx: Tx) -> tuple[StudyRow, TrialRow]:
            row = ledger.locked(tx, self.id)
            trial = leases.change_trial(tx, row, number, change)
            row.asks += 1
            tx.put_study(row)
            return row, trial

        self._row, trial = yield from write(work)
        return trial
