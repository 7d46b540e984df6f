"""Federated rounds between real processes: participants keep their data, the server dies, participants drop out."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from blackbox_client import Client, RetryPolicy
from blackbox_client.participant import Participant
from blackbox_server.store import SqlStore

from blackbox import federation
from blackbox.space import Space
from blackbox.study.effects import perform
from blackbox.study.kinds import open_study
from tests.end_to_end.service import PATIENCE, Service, until

DIM = 20
LONG = 4 * PATIENCE
"""Bound on what many participants do together."""
SPACE = {"w": {"type": "vector", "dim": DIM, "low": 0.0, "high": 1.0}}


class Quadratic:
    """A participant's private objective: the squared distance to a centre of its own."""

    def __init__(self, client: int) -> None:
        self.centre = np.random.default_rng(client).uniform(0.2, 0.8, DIM)
        self.points: list[np.ndarray] = []
        self.values: list[float] = []

    def __call__(self, params: dict[str, Any]) -> float:
        value = float(np.square(params["w"] - self.centre).sum())
        self.points.append(np.asarray(params["w"]))
        self.values.append(value)
        return value


class Left(BaseException):
    """A participant is never heard of again."""


class Leaver(Quadratic):
    """One that works for two rounds and is never heard of again, in the middle of the third."""

    patience = 150  # 63 evaluations a round

    def __call__(self, params: dict[str, Any]) -> float:
        if len(self.values) >= self.patience:
            raise Left
        return super().__call__(params)


def create(client: Client, method: str = "scaffold", **more: Any) -> Any:
    options = {"rounds": 6, "local_steps": 3, "quorum": 0.7, **more.pop("options", {})}
    return client.create_study(
        name=f"federated {method}", space=SPACE, algorithm={"name": method, "options": options}, **more
    )


def centralised_gap(study: Any, n: int) -> float:
    """How far the recommended point is from the minimum of the mean of all objectives."""
    x = np.array(study.best(view="recommended").params["w"])
    best = np.mean([Quadratic(i).centre for i in range(n)], axis=0)
    return float(np.linalg.norm(x - best))


def all_done(threads: list[threading.Thread]) -> None:
    """Wait for threads, all together no longer than `LONG`."""
    deadline = time.monotonic() + LONG
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"participants still at work after {LONG} s"


def taking_part(service: Service, study: str, objectives: list[Quadratic]) -> list[threading.Thread]:
    """A thread and a connection for each participant."""

    def work(number: int, objective: Quadratic) -> None:
        # Longer than PATIENCE: a hundred threads on a busy machine may be slow without anything being wrong.
        retry = RetryPolicy(base_seconds=0.05, max_seconds=0.5, give_up_seconds=2 * LONG)
        with suppress(Left), Client(service.url, retry=retry) as client:
            Participant(client.study(study), objective, client=f"c{number}", weight=1.0).run()

    threads = [threading.Thread(target=work, args=(i, o), daemon=True) for i, o in enumerate(objectives)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("method", list(federation.registry()))
def test_participants_find_the_minimum_of_the_mean_of_what_they_keep(server, method):
    n = 4
    study = create(server.client(), method, rounds={"min_joined": n}, options={"quorum": 1.0})
    start = math.sqrt(DIM) * 0.1  # the centre of the box is about this far away
    all_done(taking_part(server, study.id, [Quadratic(i) for i in range(n)]))
    assert study.refresh().state == "COMPLETED"
    assert centralised_gap(study, n) < start


@pytest.mark.parametrize("method", ["fzoos", "scaffold"])
def test_no_message_of_a_participant_carries_a_point_or_a_value_that_it_evaluated(server, method):
    sent: list[bytes] = []

    class Tapped(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(bytes(request.url.raw_path) + b"\n" + request.read())
            return super().handle_request(request)

    study = create(server.client(), method, options={"rounds": 2, "quorum": 1.0})
    objective = Quadratic(1)
    with Client(server.url, transport=Tapped()) as client:
        taken = Participant(client.study(study.id), objective, client="alone").run()
    assert taken.evaluations == len(objective.values) > 10
    messages = b"\n".join(sent)
    assert len([body for body in sent if b"/contributions" in body]) == taken.contributions > 0
    for value in objective.values:
        for form in (np.float64(value).tobytes(), np.float32(value).tobytes(), repr(value).encode()):
            assert form not in messages
    for point in objective.points:
        for row in (point, point[:3], point[-3:]):
            assert row.astype("<f4").tobytes() not in messages
            assert row.astype("<f8").tobytes() not in messages
            assert json.dumps(row.tolist())[1:-1].encode() not in messages


def test_a_participant_that_is_restarted_goes_on_with_its_secret_and_state(server, tmp_path):
    study = create(server.client(), "scaffold", options={"rounds": 3, "quorum": 1.0})
    folder = tmp_path / "private"
    first = Participant(server.client().study(study.id), Quadratic(0), client="a", folder=folder)
    assert first.run(phases=1).contributions == 1
    assert (folder / "secret").stat().st_mode & 0o77 == (folder / "state").stat().st_mode & 0o77 == 0
    secret = (folder / "secret").read_bytes()
    again = Participant(server.client().study(study.id), Quadratic(0), client="a", folder=folder)
    assert again.run().contributions == 2
    assert (folder / "secret").read_bytes() == secret
    assert study.refresh().state == "COMPLETED"


def broken(params: Any) -> float:
    raise MemoryError("patient 17")


def test_a_participant_whose_evaluator_always_raises_says_so_and_moves_nothing(server):
    study = create(server.client(), "fedzo", rounds={"min_joined": 2}, options={"quorum": 1.0, "rounds": 2})
    taken: dict[str, Any] = {}

    def work(name: str, objective: Any) -> None:
        taken[name] = Participant(server.client().study(study.id), objective, client=name).run()

    threads = [threading.Thread(target=work, args=job) for job in (("good", Quadratic(0)), ("broken", broken))]
    for thread in threads:
        thread.start()
    all_done(threads)
    assert study.refresh().state == "COMPLETED"
    assert (taken["good"].contributions, taken["good"].declined) == (2, 0)
    said = taken["broken"]
    assert (said.contributions, said.sent_bytes, said.error) == (0, 0, "MemoryError: patient 17")
    assert said.declined == 2
    assert "patient" not in json.dumps([event.raw for event in study.events()])


@pytest.mark.slow
def test_a_participant_with_nothing_to_give_leaves_a_paused_study_and_goes_on_when_it_is_mended(server, tmp_path):
    study = create(server.client(), "fedzo", options={"quorum": 1.0, "rounds": 1})
    place = {"client": "a", "folder": tmp_path}
    said = Participant(server.client().study(study.id), broken, **place).run()
    assert (said.state, said.declined, said.contributions) == ("PAUSED", 1, 0)
    assert "a (MemoryError) had no value" in str(study.refresh().reason)
    study.resume()
    mended = Participant(server.client().study(study.id), Quadratic(0), **place).run()
    assert (mended.state, mended.declined, mended.contributions) == ("COMPLETED", 0, 1)


def test_a_flat_objective_contributes_and_the_participant_says_so(server):
    study = create(server.client(), "fedzo", options={"quorum": 1.0, "rounds": 1})
    said = Participant(server.client().study(study.id), lambda _: 1.0, client="a").run()
    assert (said.contributions, said.declined, said.flat) == (1, 0, 1)


class Crash(BaseException):
    """The process of a participant ends here, as far as its code can tell."""


class Crashing(httpx.HTTPTransport):
    """Crashes at the contribution of that number, before the server gets it or after it has stored it."""

    def __init__(self, number: int, when: str) -> None:
        super().__init__()
        self.number, self.when = number, when
        self.sent: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/contributions"):
            return super().handle_request(request)
        self.sent.append(request.read())
        if len(self.sent) != self.number:
            return super().handle_request(request)
        if self.when == "after":
            super().handle_request(request).read()
        raise Crash


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_participant_that_crashes_around_its_contribution_settles_it_once(server, tmp_path, when):
    """Its control variate must stay what the coordinator has added up: the run ends as one without a crash."""
    ends, sent = [], []
    for name in ("smooth", "crashed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "secret").write_bytes(bytes(32))
        study = server.client().create_study(
            name=name,
            space=SPACE,
            seed=5,
            algorithm={"name": "scaffold", "options": {"rounds": 4, "local_steps": 2, "quorum": 1.0}},
        )
        transport = Crashing(2 if name == "crashed" else 0, when)
        with Client(server.url, transport=transport) as client:
            try:
                Participant(client.study(study.id), Quadratic(0), client="a", folder=folder).run()
            except Crash:
                again = Participant(client.study(study.id), Quadratic(0), client="a", folder=folder)
                assert again.run().contributions == 3, "that of the crash, and two more"
        assert study.refresh().state == "COMPLETED"
        ends.append(study.best(view="recommended").params["w"])
        sent.append(transport.sent)
    smooth, crashed = sent
    assert crashed == [*smooth[:2], *smooth[1:]], "the same bytes once more, and no others"
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_participants_of_whom_twenty_drop_out_survive_two_deaths_of_the_server(tmp_path: Path) -> None:
    n = 100
    with Service(tmp_path) as service:
        service.start()
        study = create(service.client(), "scaffold", rounds={"min_joined": n}, options={"rounds": 8})
        objectives = [Leaver(i) if i % 5 == 0 else Quadratic(i) for i in range(n)]
        threads = taking_part(service, study.id, objectives)
        for step in (2, 5):
            until(lambda least=step: study.refresh().step >= least, f"step {step}", patience=LONG)  # type: ignore[misc]
            service.kill9()
            time.sleep(0.3)
            service.start()
        all_done(threads)
        assert study.refresh().state == "COMPLETED"
        gap = centralised_gap(study, n)
        service.kill9()
        with closing(SqlStore(service.database)) as store:
            kept = perform(store, open_study(study.id))
            replayed = list(perform(store, kept.replay()))
            assert all(record.digest == digest for record, digest in replayed)
            rows = store.read(lambda tx: tx.contributions(study.id, 0, 2**62))
    places = [(row.client, row.round, row.phase) for row in rows]
    assert len(set(places)) == len(places), "nothing was stored twice"
    used = [row for row in rows if row.step is not None and row.step >= 0]
    assert sum(record.told for record, _ in replayed) == len(used) >= 8 * 70
    undisturbed = federation.rehearse(
        federation.build("scaffold", Space.from_json(SPACE), kept.federation.options, kept.key),
        {f"c{i}": lambda points, c=Quadratic(i).centre: np.square(points - c).sum(axis=1) for i in range(n)},
        8,
    )
    best = np.mean([Quadratic(i).centre for i in range(n)], axis=0)
    alone = float(np.linalg.norm(undisturbed.state.x - best))
    # Who has left counts no more: the mean of those who stayed has its minimum elsewhere, so far from that of all.
    away = float(np.linalg.norm(np.mean([Quadratic(i).centre for i in range(n) if i % 5], axis=0) - best))
    begin = float(np.linalg.norm(undisturbed.path[0] - best))
    print(
        f"gap {gap:.4f}, undisturbed {alone:.4f}, minimum of those who stayed {away:.4f} away, "
        f"after one round {begin:.4f}, {len(rows)} contributions"
    )
    assert gap < alone + away < begin
