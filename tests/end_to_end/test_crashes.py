"""Processes die at the worst moments: nothing that was acknowledged is lost, nothing counts twice, and work goes on."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from blackbox_client import BlackboxClientError, Client, RetryPolicy, completed, injected
from blackbox_client.client import StudyHandle
from blackbox_server.store import SqlStore

from blackbox.study.editing import Study
from blackbox.study.effects import perform
from tests.end_to_end.service import PATIENCE, Command, Service, blackbox, until
from tests.engine.studies import Driver

N_TRIALS = 1000
N_KILLS = 10
N_CLIENTS = 4
ONCE = RetryPolicy(give_up_seconds=0.0)
LINE = {"x": {"type": "float", "low": -5.0, "high": 5.0}}

JOB = """
import pathlib, time

def evaluate(params):
    return params["x"] ** 2

def never_ends(params):
    pathlib.Path("started").touch()
    time.sleep(600)
"""


def sphere(params: dict[str, Any]) -> float:
    return float(sum(x * x for x in params["x"]))


def line(client: Client, **more: Any) -> StudyHandle:
    """A study of one number whose first step stays open for long."""
    given = {"name": "line", "algorithm": {"name": "cma_es", "options": {"popsize": 50}}, **more}
    return client.create_study(space=LINE, start="skip", **given)


@contextmanager
def driver(service: Service, study: str) -> Iterator[Driver]:
    """The study as it is on disk. The server must be gone."""
    with closing(SqlStore(service.database)) as store:
        yield Driver(store, perform(store, Study.open(study)), time.time())


class Acknowledged:
    """What the clients were told that the server has: trial -> its values, in the order of the answers."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.outcomes: dict[str, int] = {}
        self.n = 0
        self._lock = threading.Lock()

    def add(self, trial: str, value: float, outcome: str) -> None:
        with self._lock:
            self.values.setdefault(trial, []).append(value)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            self.n += 1


def work(study: StudyHandle, objective: Callable[[dict[str, Any]], float], name: str, said: Acknowledged) -> None:
    """Ask and tell until the study has ended, and keep what was acknowledged."""
    answer = study.ask(worker=name, wait_seconds=5)
    while not answer.study.ended:
        for trial in answer.trials:
            value = objective(dict(trial.params))
            (outcome,) = study.tell(completed(trial, value), worker=name).outcomes
            said.add(trial.id, value, outcome.outcome)
        answer = study.ask(worker=name, wait_seconds=5)


@pytest.mark.slow
def test_ten_kills_of_the_server_lose_nothing_and_count_nothing_twice(
    server: Service, record_property: Callable[[str, object], None]
) -> None:
    study = server.client().create_study(
        name="crash",
        space={"x": {"type": "vector", "dim": 5, "init": 1.0}},
        algorithm={"name": "cma_es", "options": {"popsize": 10}},
        budget=N_TRIALS,
        lease={"default_seconds": 60},
    )
    said, moment = Acknowledged(), random.Random()
    kills = sorted(moment.sample(range(10, N_TRIALS - 50), N_KILLS))
    began, away = time.monotonic(), 0.0
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        clients = [server.client().study(study.id) for _ in range(N_CLIENTS)]
        running = [threads.submit(work, each, sphere, f"client-{i}", said) for i, each in enumerate(clients)]
        for n_told in kills:
            until(lambda n=n_told: said.n >= n or any(thread.done() for thread in running), f"{n_told} results")
            time.sleep(moment.uniform(0.0, 0.02))
            died = time.monotonic()
            server.kill9()
            server.start()
            away += time.monotonic() - died
        for thread in running:
            thread.result(timeout=PATIENCE)
    seconds = time.monotonic() - began
    exported = [row for row in study.history() if row["type"].startswith("trial.")]
    assert study.refresh().state == "COMPLETED"
    server.terminate()

    assert set(said.outcomes) <= {"applied", "duplicate", "late_recorded"}
    assert all(len(set(values)) == 1 for values in said.values.values())
    acknowledged = {trial: values[0] for trial, values in said.values.items()}
    assert len(exported) == len(acknowledged) >= N_TRIALS
    assert {row["data"]["trial"]: row["data"]["value"] for row in exported} == acknowledged
    with driver(server, study.id) as on_disk:
        found = on_disk.store.pragmas()
        assert (found["synchronous"], found["journal_mode"]) == (2, "wal")
        row = on_disk.row()
        assert row.used == N_TRIALS
        told = on_disk.store.read(lambda tx: tx.told(study.id, 0, row.seq))
        assert {f"t_{trial.number}": trial.value for trial in told} == acknowledged
        assert len({trial.number for trial in told}) == len(told)
        on_disk.check_log()
        steps = on_disk.replayed_equal()
        assert steps == row.step > N_TRIALS // 10 // 2
    record_property(
        "crash_run", f"{seconds:.1f} s, {away:.1f} s of them without a server, {said.outcomes}, {steps} steps"
    )
    print(f"\n{N_TRIALS} trials, {N_KILLS} kills: {seconds:.1f} s ({away:.1f} s away), {said.outcomes}, {steps} steps")


@pytest.mark.slow
def test_a_dead_workers_trial_goes_to_another_once_its_lease_has_lapsed(server: Service, tmp_path: Path) -> None:
    (tmp_path / "crash_job.py").write_text(JOB)
    study = line(server.client(), budget=6, lease={"default_seconds": 1.0})
    worker = ("worker", study.id, "--url", server.url, "--name")
    with Command(tmp_path, *worker, "doomed", "crash_job:never_ends") as doomed:
        until((tmp_path / "started").exists, "the first evaluation", doomed)
        (trial,) = study.trials(state="LEASED")
        time.sleep(1.5)  # longer than the lease: the living worker renews it
        others = study.ask(6, "other").trials
        doomed.kill9()
    assert len(others) == 5
    assert study.tell([completed(other, 30.0) for other in others], worker="other").applied == 5
    heir = blackbox(tmp_path, *worker, "heir", "crash_job:evaluate")
    assert heir.ended() == 0, heir.err
    assert study.refresh().state == "COMPLETED"
    found = study.trial(trial.id).raw
    assert (found["state"], found["worker"], found["attempt"], found["lost"]) == ("COMPLETED", "heir", 2, 1)
    assert found["value"] == pytest.approx(trial.params["x"] ** 2)


def test_a_result_told_again_is_a_duplicate_and_another_value_is_kept_beside_it(server: Service) -> None:
    study = line(server.client())
    trial = study.ask().trials[0]
    outcomes = [study.tell(completed(trial, value)).outcomes[0].outcome for value in (1.0, 1.0, 2.0, 1.0)]
    assert outcomes == ["applied", "duplicate", "late_recorded", "duplicate"]
    assert study.trial(trial).value == 1.0
    assert study.refresh().budget.used == 1
    assert [event.type for event in study.events() if event.type.startswith("trial.")] == [
        "trial.completed",
        "trial.late",
    ]


def test_an_ask_repeated_with_its_key_gives_the_same_trials_also_after_a_crash(server: Service) -> None:
    study = line(server.client())
    first = study.ask(3, "w", idempotency_key="one")
    again = study.ask(3, "w", idempotency_key="one")
    server.kill9()
    server.start()
    after = study.ask(3, "w", idempotency_key="one")
    other = study.ask(3, "w", idempotency_key="two")
    assert first.granted == 3
    assert [(t.id, t.params, t.lease.token) for t in again.trials] == [
        (t.id, t.params, t.lease.token) for t in first.trials
    ]
    assert [(t.id, t.lease.token) for t in after.trials] == [(t.id, t.lease.token) for t in first.trials]
    assert not {t.id for t in other.trials} & {t.id for t in first.trials}
    assert study.refresh().budget.leased == 6


class Cutter:
    """Stands between a client and a server; cuts the connection instead of passing on the next answer, when told to."""

    def __init__(self, port: int) -> None:
        self.n_cut = 0
        self._upstream = port
        self._cutting = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next_answer(self) -> None:
        self._cutting.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._upstream), timeout=PATIENCE)
                threading.Thread(target=self._pass_on, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(far, near, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                if answers and self._cutting.is_set():
                    self._cutting.clear()
                    self.n_cut += 1
                    break
                sink.sendall(part)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_a_tell_whose_answer_was_lost_is_told_again_and_counts_once(server: Service) -> None:
    with closing(Cutter(server.port)) as cutter:
        study = line(server.client(url=cutter.url))
        first, second = study.ask(2).trials
        cutter.cut_next_answer()
        (outcome,) = study.tell(first, 0.5).outcomes
        assert (outcome.outcome, cutter.n_cut) == ("duplicate", 1)

        # A point of our own has no lease to be recognised by; its tell is known by its Idempotency-Key.
        cutter.cut_next_answer()
        (outcome,) = study.tell([injected({"x": 0.5}, 0.25)]).outcomes
        assert (outcome.outcome, cutter.n_cut) == ("injected", 2)
        cutter.cut_next_answer()
        answer = study.tell(completed(second, 0.75), ask=2)
        assert (answer.outcomes[0].outcome, answer.ask.granted, cutter.n_cut) == ("duplicate", 2, 3)
    study = server.client().study(study.id)
    assert [event.data["value"] for event in study.events() if "value" in event.data] == [0.5, 0.25, 0.75]
    assert study.refresh().budget.leased == 2


def test_a_second_server_on_the_same_file_is_refused_and_told_who_has_it(server: Service, tmp_path: Path) -> None:
    second = blackbox(tmp_path, "serve", "--port", "0", "--database", str(server.database), "--insecure-local")
    assert second.ended() == 2
    assert f"process id {server.process.pid}" in second.err
    assert "Traceback" not in second.err
    assert second.out == ""
    assert server.client().service().name == "blackbox"


def test_sigterm_answers_what_is_running_lets_go_what_waits_and_loses_nothing(server: Service) -> None:
    study = line(server.client(), parallelism=8)
    crowd = [server.client(retry=ONCE).study(study.id) for _ in range(2)]
    said, stop = Acknowledged(), threading.Event()

    def busy(each: StudyHandle) -> None:
        while not stop.is_set():
            try:
                for trial in each.ask(4).trials:
                    said.add(trial.id, 1.0, each.tell(trial, 1.0).outcome.outcome)
            except BlackboxClientError:
                return  # nobody listens any more

    with ThreadPoolExecutor(3) as threads:
        for each in crowd:
            threads.submit(busy, each)
        full = line(server.client(), name="full", parallelism=1)
        assert full.ask().granted == 1
        waiting = threads.submit(server.client(retry=ONCE).study(full.id).ask, wait_seconds=30)
        until(lambda: said.n >= 50, "50 results")
        began = time.monotonic()
        try:
            code = server.terminate()
        finally:
            stop.set()
        answer = waiting.result(timeout=PATIENCE)
    assert code in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 5.0
    assert (answer.trials, answer.reason) == ((), "parallelism_cap")
    assert "Traceback" not in server.process.err
    assert not Path(f"{server.database}-wal").exists()  # closed in order: everything is in the one file
    with driver(server, study.id) as on_disk:
        on_disk.check_log()
        on_disk.replayed_equal()
        told = on_disk.store.read(lambda tx: tx.told(study.id, 0, on_disk.row().seq))
        assert {f"t_{trial.number}" for trial in told} >= set(said.values)
