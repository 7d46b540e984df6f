"""One call of each kind, with everything that it may carry: what `test_twin.py` compares with the document."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from blackbox_client import StudyHandle, completed, errors, failed, infeasible, injected, protocol, released, stopped
from blackbox_client.client import Client
from blackbox_client.participant import Participant

from blackbox.federation import Contribution
from tests.client.conftest import RealServer

SQUARE = {name: {"type": "float", "low": -5, "high": 5} for name in ("x", "y")}
FREE = {"theta": {"type": "vector", "dim": 5, "init": 0.5}}


def everything_once(server: RealServer) -> None:
    """Send every member of every declared type, and meet every member of every answer."""
    client: Client = server.client()
    about_the_service(client)
    study = client.create_study(
        name="all",
        space=SQUARE,
        direction="maximize",
        algorithm={"name": "cma_es", "options": {"popsize": 6}},
        budget={"evaluations": 20, "max_cost": 100.0, "deadline": datetime(2030, 1, 1, tzinfo=UTC)},
        target=1e6,
        lease={"default_seconds": 60.0, "max_seconds": 600.0, "max_attempts": 2, "max_lost": 2},
        parallelism=64,
        rounds={"min_joined": 2, "deadline_seconds": 5.0, "keep": "open"},
        seed=2**63,
        noise="auto",
        start="skip",
        duplicates="reuse",
        non_finite="infeasible",
        require_lease=True,
        labels={"team": "a"},
    )
    assert len(list(client.studies(limit=1))) == 1
    ask_and_tell(study)
    trials_by_hand(client)
    study.update(
        budget=30,
        labels={"team": "b"},
        lease={"default_seconds": 30.0},
        parallelism={"max_leased": 8, "workers": 4},
        if_match=study.refresh().etag,
    )
    study.pause(reason="lunch")
    study.ask()
    study.resume(reason="after lunch")
    study.snapshot()
    branch = study.fork(0, name="branch", algorithm={"name": "random_search", "options": {}})
    branch.complete(reason="seen")
    branch.delete()
    study.fork(0, name="another").cancel(reason="seen, too")
    reading(study)
    assert len(list(client.studies(limit=1))) == 2, "with a second page"
    recipes(client)
    rounds(server, client)


def about_the_service(client: Client) -> None:
    client.service()
    client.limits()
    client.algorithms()
    client.federated_algorithms()
    client.explain("study-not-found")
    key = client.create_key(["study:read"], name="readers", project="default", expires_seconds=3600.0)
    assert key.secret
    known = client.keys()
    assert {each.id for each in known} > {key.id}
    client.delete_key(key.id)


def ask_and_tell(study: StudyHandle) -> None:
    trials = study.ask(6, worker="w", wait_seconds=0.5, lease_seconds="auto", resume=True).trials
    next_ones = {"count": 1, "worker": "w", "lease_seconds": 50.0, "wait_seconds": 0.5}
    told = study.tell(
        [
            completed(
                trials[0], 0.5, stderr=0.1, n=3, cost={"usd": 0.1}, behaviour=[1.0], sums={"count": 1}, info={"a": 1}
            ),
            infeasible(trials[1], "too steep"),
            failed(trials[2], "no memory", error_type="MemoryError"),
            stopped(trials[3], 0.25, fidelity=3),
            released(trials[4]),
            completed("t_999", 1.0),
        ],
        worker="w",
        ask=next_ones,  # type: ignore[arg-type]
    )
    assert [outcome.outcome for outcome in told.outcomes] == [
        *("applied", "applied", "requeued", "applied", "released", "rejected"),
    ]
    study.tell([injected({"x": 1.0, "y": 1.0}, 0.3, source="elsewhere", key="k1")])
    assert told.ask is not None
    held = told.ask.trials[0]
    study.report(held, 1, 0.5)
    assert study.trial(held).number == held.number
    leases = study.heartbeat([held, "t_9.forged"], extend_seconds=90.0).leases
    assert isinstance(leases[1].problem, errors.LeaseUnknown)


def trials_by_hand(client: Client) -> None:
    study = client.create_study(name="by hand", space=SQUARE, algorithm="random_search")
    (queued,) = study.enqueue([{"params": {"x": 0.0, "y": 0.0}}])
    study.cancel_trial(queued, reason="not that one")
    study.requeue(queued, reason="that one")
    point = {"params": {"x": 1.0, "y": 1.0}, "source": "a file", "info": {"line": 7}}
    (known,) = study.enqueue([{**point, "value": 0.5}])  # type: ignore[typeddict-item]
    study.enqueue([{**point, "status": "infeasible"}])  # type: ignore[typeddict-item]
    with pytest.raises(errors.InvalidRequest):
        study.enqueue([{"params": {"x": 9.0, "y": 1.0}, "value": 0.5}])
    (trial,) = study.ask(worker="mallory").trials
    study.tell(trial, 0.1, worker="mallory")
    assert study.invalidate(known, reason="wrong units").invalidated == 1
    assert client.quarantine("mallory", reason="made up").invalidated == {study.id: 1}
    study.delete()


def reading(study: StudyHandle) -> None:
    study.best(1, view="observed")
    study.best(2)
    study.best(view="recommended")
    study.best(view="proposed")
    list(study.trials(state="COMPLETED,QUEUED", limit=1))
    study.event_page(types=["trial.completed"], wait_seconds=0.5, limit=5)
    assert list(study.export("ndjson", after_seq=1))
    assert study.health() == ()
    assert study.brief()


def recipes(client: Client) -> None:
    study = client.create_study(
        name="recipes", space=FREE, algorithm={"name": "openai_es", "options": {"popsize": 4, "observations": 1}}
    )
    for step in range(4):
        trials = study.ask(4, encoding="seed").trials
        assert all(len(study.arguments(trial)["theta"]) == 5 for trial in trials)
        sums = {"count": 1, "total": [1.0], "squares": [1.0]}
        study.tell([completed(trial, float(step + i), sums=sums) for i, trial in enumerate(trials)])
    assert any(trial.recipe for trial in study.trials())
    assert study.best(view="recommended").items[0].payload


def rounds(server: RealServer, client: Client) -> None:
    study = client.create_study(
        name="rounds",
        space={"x": {"type": "vector", "dim": 3, "low": 0, "high": 1}},
        algorithm={
            "name": "fedzo",
            "options": {
                "rounds": 2,
                "local_steps": 1,
                "quorum": 1.0,
                "privacy": {"clip": {"delta": 1.0}, "noise": 0.1},
            },
        },
    )
    lost = client.send(protocol.join(study.id, "lost")).token
    assert client.send(protocol.decline(study.id, 0, lost, "local", "MemoryError")).outcome == "declined"
    client.send(protocol.leave(study.id, lost))
    study.resume()
    place = study.host("judge", weight=2.0)
    assert place.refresh().hosted is not None
    clinic = Participant(study, lambda params: float((params["x"] ** 2).sum()), client="clinic", weight=3.0)
    clinic.run(1)
    while study.open_phase().step == 0:
        place.tell([completed(trial, 0.5) for trial in place.ask(8).trials])
    with pytest.raises(errors.NotFound):
        study.past_round(9)
    assert study.past_round(0).state == "AGGREGATED"
    study.open_phase(after_step=0, wait_seconds=0.5)
    client.send(protocol.updates(study.id, 0, limit=5))
    (packed,) = [each for each in server.exchanged if each.path.endswith("/contributions")]
    again = Contribution.from_bytes(packed.sent).to_json()
    assert client.send(protocol.contribute(study.id, 0, clinic._token, again)).outcome == "duplicate"
    clinic.leave()
    study.complete()
