"""Evaluators that can only ask and tell, in federated rounds between real processes, and a server that dies."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from blackbox_client import Client, RetryPolicy, Worker
from blackbox_client.participant import Participant
from blackbox_server.store import SqlStore

from blackbox import federation
from blackbox.space import Space
from blackbox.study.effects import perform
from blackbox.study.hosting import HostedStudy
from blackbox.study.kinds import open_study
from blackbox.study.settling import Report
from blackbox.study.trials import TrialStudy
from tests.end_to_end.service import PATIENCE, Command, Service, blackbox, until
from tests.end_to_end.test_federated_rounds import SPACE, Quadratic, all_done, centralised_gap

LONG = 4 * PATIENCE
JOB = """
import time
import numpy as np

CENTRE = np.random.default_rng({number}).uniform(0.2, 0.8, 20)


def evaluate(params):
    time.sleep({seconds})
    return float(np.square(np.asarray(params["w"]) - CENTRE).sum())
"""


def job(folder: Path, number: int, seconds: float = 0.0) -> str:
    """A module whose objective is that of `Quadratic(number)`."""
    (folder / f"job_{number}.py").write_text(JOB.format(number=number, seconds=seconds))
    return f"job_{number}:evaluate"


def patient(url: str) -> Client:
    return Client(url, retry=RetryPolicy(base_seconds=0.05, max_seconds=0.5, give_up_seconds=2 * LONG))


def by_hand(url: str, study: str, objective: Quadratic, repeats: list[str]) -> None:
    """Ask for one point and tell its value until the study ends; every tell is sent twice."""
    with patient(url) as client:
        handle = client.study(study)
        while True:
            answer = handle.ask(wait_seconds=5)
            if answer.study.ended:
                return
            for trial in answer.trials:
                value = objective(trial.params)
                handle.tell(trial, value)
                repeats.append(handle.tell(trial, value).outcomes[0].outcome)


@pytest.mark.slow
def test_hosted_evaluators_survive_two_deaths_of_the_server_and_one_of_their_own(tmp_path: Path) -> None:
    """Two participants keep their machines, three are hosted: one tells everything twice, one is worked for by two
    processes of which one is killed, one is a worker. The server is killed twice in the middle of a round."""
    n = 5
    with Service(tmp_path) as service:
        service.start()
        study = service.client().create_study(
            name="hosted",
            space=SPACE,
            algorithm={"name": "scaffold", "options": {"rounds": 5, "local_steps": 3, "quorum": 1.0}},
            rounds={"min_joined": n},
            lease={"default_seconds": 1.0},
        )
        objectives = [Quadratic(i) for i in range(n)]
        repeats: list[str] = []
        places = {}
        for i in (2, 3, 4):
            places[i] = service.client().study(study.id).host(f"c{i}").id

        def keeps(i: int) -> None:
            with patient(service.url) as client:
                Participant(client.study(study.id), objectives[i], client=f"c{i}").run()

        def works() -> None:
            with patient(service.url) as client:
                Worker(client.study(places[3]), objectives[3], name="works").run()

        threads = [threading.Thread(target=keeps, args=(i,), daemon=True) for i in (0, 1)]
        threads.append(
            threading.Thread(target=by_hand, args=(service.url, places[2], objectives[2], repeats), daemon=True)
        )
        threads.append(threading.Thread(target=works, daemon=True))
        for thread in threads:
            thread.start()
        arguments = ("worker", places[4], job(tmp_path, 4, 0.01), "--url", service.url)
        with Command(tmp_path, *arguments, "--name", "dies") as doomed, Command(tmp_path, *arguments) as other:
            until(lambda: study.refresh().step >= 1, "the second round", patience=LONG)
            doomed.kill9()
            service.kill9()
            service.start()
            until(lambda: study.refresh().step >= 3, "the fourth round", patience=LONG)
            service.kill9()
            service.start()
            all_done(threads)
            assert other.ended(LONG) == 0, other.err
        assert study.refresh().state == "COMPLETED"
        gap = centralised_gap(study, n)
        service.kill9()
        replayed = {place: replays(service, place) for place in (study.id, *places.values())}
        for place in places.values():
            done = blackbox(tmp_path, "replay", place, "--database", str(service.database))
            assert "every digest is equal" in done.out, done.err
        with closing(SqlStore(service.database)) as store:
            rows = store.read(lambda tx: tx.contributions(study.id, 0, 2**62))
            kept = perform(store, open_study(study.id))
            spent = {place: _evaluations(store, place) for place in places.values()}
    assert sorted((row.client, row.round) for row in rows) == [(f"c{i}", r) for i in range(n) for r in range(5)]
    assert all(row.step is not None and row.step >= 0 for row in rows), "each was counted"
    assert set(repeats) == {"duplicate"}
    assert replayed[study.id] == 5
    for told, machine in spent.values():
        assert told == machine == 5 * 3 * 21, "every point of the machine has one value, none has two"
    undisturbed = federation.rehearse(
        federation.build("scaffold", Space.from_json(SPACE), kept.federation.options, kept.key),  # type: ignore[attr-defined]
        {f"c{i}": lambda points, c=Quadratic(i).centre: np.square(points - c).sum(axis=1) for i in range(n)},
        5,
    )
    best = np.mean([Quadratic(i).centre for i in range(n)], axis=0)
    alone, begin = (float(np.linalg.norm(x - best)) for x in (undisturbed.state.x, undisturbed.path[0]))
    print(f"gap {gap:.4f}, undisturbed and with other directions {alone:.4f}, after one round {begin:.4f}")
    assert gap < max(2 * alone, 0.5 * begin)


def replays(service: Service, study: str) -> int:
    """Steps that replay to their recorded digests; fails at the first that does not."""
    with closing(SqlStore(service.database)) as store:
        records = list(perform(store, perform(store, open_study(study)).replay()))
    assert all(record.digest == digest for record, digest in records)
    return len(records)


def _evaluations(store: SqlStore, place: str) -> tuple[int, int]:
    """Values told, and values that the machine took."""
    study = perform(store, open_study(place))
    assert isinstance(study, HostedStudy)
    row, state = perform(store, study.state())
    return row.used, state.own.work.total


def test_what_a_dead_server_owed_is_sent_when_anybody_comes_back(server: Service) -> None:
    """An evaluator tells its last value and is gone; the server dies in between, and an ordinary participant calls."""
    study = server.client().create_study(
        name="owed", space=SPACE, algorithm={"name": "fedzo", "options": {"rounds": 1, "local_steps": 1, "quorum": 1.0}}
    )
    place = server.client().study(study.id).host("gone")
    objective = Quadratic(0)
    trials = place.ask(count=100).trials
    for trial in trials[:-1]:
        place.tell(trial, objective(trial.params))
    server.kill9()
    with closing(SqlStore(server.database)) as store:  # the tell that is stored, but after which the process dies
        hosted = perform(store, open_study(place.id))
        last = Report(trials[-1].number, value=objective(trials[-1].params))
        perform(store, TrialStudy.tell(hosted, [last], now=0.0))
    server.start()
    assert study.open_phase().state == "COMPLETED"
    assert place.ask().reason == "completed"
