"""The worker against the application, and against a scripted study where that has to fail or to be slow.

Tests that take `study_of` run against both.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from blackbox_client import Client, Infeasible, Result, RetryPolicy, StudyHandle, Worker, errors, recipes
from blackbox_client.errors import ObjectiveUnusable
from blackbox_client.protocol import plain
from blackbox_client.worker import Evaluation, evaluate

from tests.client.conftest import RealServer

QUICK = RetryPolicy(base_seconds=0.001, max_seconds=0.005, give_up_seconds=2.0)
PATH = "/v1/studies/st_1"


class ScriptedStudy:
    """Hands out x = 0, 1, 2, ... `n` times and is COMPLETED when all are told."""

    def __init__(self, server: Any, n: int, heartbeat_seconds: float = 300.0) -> None:
        self.server = server
        self.n = n
        self.heartbeat_seconds = heartbeat_seconds
        self.given = 0
        self.told: dict[int, dict[str, Any]] = {}
        self.asks_inside_tells = 0
        self.outcomes: dict[int, dict[str, Any]] = {}  # other than applied
        self.directives: dict[str, str] = {}
        self.lock = threading.Lock()
        self.client: Any = None
        server.on("POST", f"{PATH}/ask", lambda request: self.answer(self.ask(request.json)))
        server.on("POST", f"{PATH}/tell", lambda request: self.answer(self.tell(request.json)))
        server.on("POST", f"{PATH}/heartbeat", lambda request: self.answer(self.heartbeat(request.json)))

    def answer(self, body: Any) -> Any:
        from_conftest: Any = self.server.answer_class
        return from_conftest(body)

    def progress(self) -> dict[str, Any]:
        done = [item for item in self.told.values() if item.get("status") != "released"]
        return {"state": "COMPLETED" if len(done) >= self.n else "ACTIVE"}

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            first, self.given = self.given, min(self.n, self.given + body["count"])
            trials = [
                {
                    "id": f"t_{i}",
                    "params": {"x": float(i)},
                    "payload": {"row": i},
                    "lease": {"token": f"{i}.1.aa", "attempt": 1, "heartbeat_seconds": self.heartbeat_seconds},
                }
                for i in range(first, self.given)
            ]
            pace = {} if trials else {"reason": "all_members_in_flight", "retry_after_seconds": 0.002}
            return {"trials": trials, "granted": len(trials), "study": self.progress(), **pace}

    def tell(self, body: dict[str, Any]) -> dict[str, Any]:
        results = []
        for item in body["results"]:
            number = int(item["trial"][2:])
            with self.lock:
                outcome = "duplicate" if number in self.told else "applied"
                self.told[number] = item
            outcome = "released" if item.get("status") == "released" else outcome
            results.append({"trial": item["trial"], "outcome": outcome, **self.outcomes.pop(number, {})})
        answer = {"applied": len(results), "results": results, "study": self.progress()}
        if "ask" in body:
            self.asks_inside_tells += 1
            answer["ask"] = self.ask(body["ask"])
        return answer

    def heartbeat(self, body: dict[str, Any]) -> dict[str, Any]:
        leases = [{"token": token, "directive": self.directives.get(token, "continue")} for token in body["leases"]]
        return {"leases": leases}

    def values(self) -> dict[int, Any]:
        return {number: item.get("value", item.get("status")) for number, item in sorted(self.told.items())}

    @property
    def handle(self) -> StudyHandle:
        return StudyHandle(self.client, "st_1")

    def costs(self) -> list[dict[str, Any]]:
        return [item["cost"] for _, item in sorted(self.told.items())]

    def sent(self, verb: str) -> list[dict[str, Any]]:
        return [request.json for request in self.server.requests("POST", f"{PATH}/{verb}")]


class RealStudy:
    """A study of the application that hands out x = 0, 1, 2, ... `n` times and then completes."""

    def __init__(self, server: RealServer, client: Client, n: int, heartbeat_seconds: float = 300.0) -> None:
        self.server = server
        self.handle = client.create_study(
            name=f"study {len(server.exchanged)}",
            space={"x": {"type": "float", "low": 0, "high": 1000}},
            algorithm="random_search",
            start="skip",
            budget=n,
            lease={"default_seconds": 3 * heartbeat_seconds},
        )
        self.handle.enqueue([{"params": {"x": float(i)}} for i in range(n)])

    def values(self) -> dict[int, Any]:
        told = [trial for trial in self.handle.trials() if trial.told_at is not None]
        return {int(trial.params["x"]): trial.value for trial in told}

    def costs(self) -> list[dict[str, Any]]:
        return [trial.extra["cost"] for trial in self.handle.trials(state="COMPLETED")]

    def sent(self, verb: str) -> list[dict[str, Any]]:
        return [request.json for request in self.server.requests("POST", f"/v1/studies/{self.handle.id}/{verb}")]


@pytest.fixture(params=["script", "application"])
def study_of(
    request: pytest.FixtureRequest, server: Any, answer: Any, real: RealServer
) -> Iterator[Callable[..., ScriptedStudy | RealStudy]]:
    """Makes studies of n evaluations, of either server."""
    if request.param == "application":
        with real.client() as connected:
            yield lambda n, **more: RealStudy(real, connected, n, **more)
        return
    server.answer_class = answer
    with Client(server.url, retry=QUICK) as connected:

        def make(n: int, **more: Any) -> ScriptedStudy:
            made = ScriptedStudy(server, n, **more)
            made.client = connected
            return made

        yield make


@pytest.fixture
def script(server: Any, answer: Any) -> Callable[..., ScriptedStudy]:
    server.answer_class = answer
    return lambda n, **more: ScriptedStudy(server, n, **more)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retry=QUICK) as connected:
        yield connected


def square(params: dict[str, Any]) -> float:
    return float(params["x"] ** 2)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- the loop


def test_a_worker_evaluates_until_the_study_ends_and_asks_within_its_tells(study_of: Any) -> None:
    study = study_of(5)
    summary = Worker(study.handle, square, name="w").run()
    assert study.values() == {i: float(i * i) for i in range(5)}
    assert (summary.evaluated, summary.applied, summary.ended, summary.study.state) == (5, 5, "study", "COMPLETED")
    assert len(study.sent("ask")) == 1
    assert [(told["worker"], told["ask"]["count"]) for told in study.sent("tell")] == [("w", 1)] * 5
    assert all(cost["seconds"] >= 0 for cost in study.costs())


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_several_lanes_share_the_trials_and_each_is_told_once(study_of: Any, executor: Any) -> None:
    study = study_of(6)
    summary = Worker(study.handle, square, concurrency=2, wait_seconds=0, executor=executor).run()
    assert study.values() == {i: float(i * i) for i in range(6)}
    assert (summary.evaluated, summary.applied, summary.duplicates) == (6, 6, 0)


def test_a_worker_follows_the_number_of_lanes_that_a_function_says(script: Any, client: Client) -> None:
    study = script(60)
    lock, together = threading.Lock(), 0
    seen: list[int] = []

    def lanes() -> int:
        return (1, 4, 2, 2)[len(study.told) // 20]

    def objective(params: dict[str, Any]) -> float:
        nonlocal together
        with lock:
            together += 1
            seen.append(together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return params["x"] ** 2

    summary = Worker(client.study("st_1"), objective, concurrency=lanes).run()
    assert (summary.applied, summary.released) == (60, 0)
    assert max(seen[:20]) == 1
    assert max(seen[20:40]) in (3, 4)
    assert max(seen[-10:]) <= 2


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_worker_leaves_after_as_many_trials_as_it_was_told_to(study_of: Any, concurrency: int) -> None:
    study = study_of(9)
    summary = Worker(study.handle, square, concurrency=concurrency, max_trials=3).run()
    assert (summary.evaluated, summary.ended, summary.released) == (3, "max_trials", 0)
    assert study.values() == {0: 0.0, 1: 1.0, 2: 4.0}


def test_an_empty_answer_is_waited_out_as_long_as_the_server_says(
    script: Any, client: Client, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study = script(1)
    empty = {"trials": [], "reason": "paused", "retry_after_seconds": 0.01, "study": {"state": "PAUSED"}}
    server.on("POST", f"{PATH}/ask", empty, empty, lambda request: study.answer(study.ask(request.json)))
    assert Worker(client.study("st_1"), square).run().applied == 1
    assert [r.message for r in caplog.records if "paused" in r.message] == [
        "study st_1 is paused: this worker waits until it is resumed; its health says why"
    ]


def test_a_study_that_has_ended_is_left_without_evaluating(client: Client, server: Any) -> None:
    server.on("POST", f"{PATH}/ask", {"trials": [], "reason": "study_failed", "study": {"state": "FAILED"}})
    summary = Worker(client.study("st_1"), square).run()
    assert (summary.evaluated, summary.ended, summary.study.state) == (0, "study", "FAILED")


@pytest.mark.parametrize("concurrency", [1, 2])
def test_an_unknown_study_is_an_error_and_not_a_loop(real: RealServer, concurrency: int) -> None:
    with pytest.raises(errors.NotFound):
        Worker(real.client().study("st_9"), square, concurrency=concurrency).run()


def test_resume_is_asked_once_at_the_start(script: Any, client: Client, server: Any) -> None:
    script(2)
    Worker(client.study("st_1"), square, name="w", resume=True, lease_seconds=900).run()
    (first,) = server.requests("POST", f"{PATH}/ask")
    assert first.json == {"count": 1, "worker": "w", "lease_seconds": 900, "wait_seconds": 20.0, "resume": True}


# ---- what objectives return and raise


def test_an_exception_is_told_as_a_failure_to_be_tried_again(script: Any, client: Client) -> None:
    study = script(1)

    def broken(params: dict[str, Any]) -> float:
        raise MemoryError("out of memory")

    summary = Worker(client.study("st_1"), broken).run()
    error = {"type": "MemoryError", "message": "out of memory", "retryable": True}
    assert study.told[0] == {"trial": "t_0", "lease": "0.1.aa", "status": "failed", "error": error}
    assert (summary.failed, summary.evaluated) == (1, 1)


def test_infeasible_is_told_with_its_reason() -> None:
    def objective(params: dict[str, Any]) -> float:
        raise Infeasible("layers * width exceeds memory")

    result = evaluate(objective, ({},))
    assert (result.status, result.reason) == ("infeasible", "layers * width exceeds memory")


def test_nan_is_a_failure_unless_the_user_calls_it_infeasible() -> None:
    for returned in (float("nan"), np.float32("inf"), Result(1.0, info={"b": float("nan")})):
        result = evaluate(lambda _, value=returned: value, ({},))
        assert result.status == "failed"
        assert result.error is not None
        assert 'non_finite="infeasible"' in result.error["message"]
        assert result.error["retryable"] is False
        assert evaluate(lambda _, value=returned: value, ({},), "infeasible").status == "infeasible"


@pytest.mark.parametrize(
    "returned", [None, "0.5", True, np.bool_(True), np.array([1.0, 2.0]), {1: 2.0}, Result(info={"f": object()})]
)
def test_what_is_no_value_is_a_failure_that_says_so(returned: Any) -> None:
    result = evaluate(lambda _: returned, ({},))
    assert result.status == "failed"
    assert result.error is not None
    assert "returned" in result.error["message"]


def test_numpy_scalars_and_whole_results_are_taken() -> None:
    assert evaluate(lambda _: np.float64(0.5), ({},)).value == 0.5
    assert evaluate(lambda _: Result(0.5, stderr=0.1, cost={"usd": 1}), ({},)).cost == {"usd": 1}


def test_a_mapping_with_a_value_may_tell_what_the_point_did() -> None:
    returned = {"value": np.float32(0.5), "behaviour": np.array([1.0, 2.0]), "sums": {"count": 3}}
    result = evaluate(lambda _: returned, ({},))
    assert (result.value, result.sums) == (0.5, {"count": 3})
    assert plain(result.item())["behaviour"] == [1.0, 2.0]
    assert evaluate(lambda _: {"value": 1.0, "behaviour": [float("nan")]}, ({},)).status == "failed"


@pytest.mark.parametrize("returned", [{"loss": 2.0}, {"value": 1.0, "loss": 2.0}, {}])
def test_a_mapping_that_says_more_or_no_value_is_a_failure_that_names_what_came(returned: Any) -> None:
    result = evaluate(lambda _: returned, ({},))
    assert (result.status, (result.error or {})["retryable"]) == ("failed", False)
    assert all(repr(name) in result.error["message"] for name in returned)
    assert '"value"' in result.error["message"]


def test_what_the_method_says_beside_the_point_reaches_the_objective(script: Any, client: Client) -> None:
    study = script(3)

    def objective(params: dict[str, Any], evaluation: Evaluation) -> float:
        return float(evaluation.trial.payload["row"])

    Worker(client.study("st_1"), objective, with_trial=True).run()
    assert study.values() == {0: 0.0, 1: 1.0, 2: 2.0}


def test_failures_in_a_row_slow_the_worker_down(script: Any, client: Client) -> None:
    study = script(6)

    def broken(params: dict[str, Any]) -> float:
        raise RuntimeError

    Worker(client.study("st_1"), broken).run()
    assert len(study.told) == 6
    assert study.asks_inside_tells == 2  # from the third failure on it pauses before it asks


def test_a_rejected_result_is_followed_by_a_failure_so_that_the_trial_does_not_dangle(
    script: Any, client: Client
) -> None:
    study = script(2)
    problem = {"code": "unknown-objective", "detail": "no objective named acc", "status": 422}
    study.outcomes[0] = {"outcome": "rejected", "problem": problem}
    summary = Worker(client.study("st_1"), square).run()
    assert study.told[0]["error"]["type"] == "RejectedResult"
    assert "no objective named acc" in study.told[0]["error"]["message"]
    assert summary.rejected == 1


def test_duplicates_and_late_results_are_counted_and_harmless(script: Any, client: Client) -> None:
    study = script(3)
    study.outcomes = {0: {"outcome": "duplicate"}, 1: {"outcome": "late_recorded"}}
    summary = Worker(client.study("st_1"), square).run()
    assert (summary.duplicates, summary.late, summary.applied) == (1, 1, 1)


# ---- the network


def test_a_tell_survives_an_outage_and_is_counted_once(script: Any, client: Client, server: Any, answer: Any) -> None:
    study = script(2)

    def lost(request: Any) -> Any:
        study.tell(request.json)
        return answer(cut=0)

    def told(request: Any) -> Any:
        return answer(study.tell(request.json))

    server.on("POST", f"{PATH}/tell", answer(None, 503), answer(cut=0), told, told, told)
    assert Worker(client.study("st_1"), square).run().applied == 2
    study = script(1)
    server.on("POST", f"{PATH}/tell", lost, told)
    assert Worker(client.study("st_1"), square).run().duplicates == 1
    tells = server.requests("POST", f"{PATH}/tell")[-2:]
    assert tells[0].headers["idempotency-key"] == tells[1].headers["idempotency-key"]


def test_results_that_cannot_be_told_are_raised_and_not_lost(script: Any, server: Any, answer: Any) -> None:
    script(2)
    server.on("POST", f"{PATH}/tell", answer(None, 503))
    impatient = RetryPolicy(base_seconds=0.001, give_up_seconds=0.02)
    with Client(server.url, retry=impatient) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("blackbox_client.worker.worker._LAST_WORDS_SECONDS", 0.01)
        with pytest.raises(errors.ResultsUndelivered, match="t_0") as caught:
            Worker(client.study("st_1"), square).run()
    assert [result.value for result in caught.value.results] == [0.0]
    assert isinstance(caught.value.__cause__, errors.ServiceUnavailable)


def test_one_result_that_the_server_refuses_does_not_take_its_batch_with_it(
    script: Any, client: Client, server: Any, answer: Any
) -> None:
    study = script(2)
    together = threading.Barrier(2)

    def objective(params: dict[str, Any]) -> float:
        together.wait(5)
        return square(params)

    def picky(request: Any) -> Any:
        if any(item["trial"] == "t_1" and "value" in item for item in request.json["results"]):
            return answer({"detail": "info is over 16 kB"}, 422)
        return answer(study.tell(request.json))

    server.on("POST", f"{PATH}/tell", picky)
    with pytest.raises(errors.ResultsUndelivered, match="t_1") as caught:
        Worker(client.study("st_1"), objective, concurrency=2).run()
    assert [result.trial for result in caught.value.results] == ["t_1"]
    assert study.told[0]["value"] == 0.0


# ---- leases


def test_leases_are_renewed_while_evaluating(study_of: Any) -> None:
    study = study_of(1, heartbeat_seconds=0.01)

    def slow(params: dict[str, Any], evaluation: Evaluation) -> float:
        wait_until(lambda: len(study.sent("heartbeat")) >= 3)
        lease = evaluation.trial.lease
        assert lease is not None
        assert study.sent("heartbeat")[0]["leases"] == [lease.token]
        return 0.0

    assert Worker(study.handle, slow, name="w", with_trial=True).run().applied == 1


def test_a_renewal_asks_for_as_long_as_the_lease_was(script: Any, client: Client) -> None:
    study = script(1, heartbeat_seconds=0.005)

    def slow(params: dict[str, Any]) -> float:
        wait_until(lambda: len(study.server.requests("POST", f"{PATH}/heartbeat")) >= 1)
        return 0.0

    assert Worker(client.study("st_1"), slow, name="w", lease_seconds=900).run().applied == 1
    beat = study.server.requests("POST", f"{PATH}/heartbeat")[0]
    assert beat.json == {"leases": ["0.1.aa"], "extend_seconds": 900}


def test_renewal_goes_on_after_a_heartbeat_was_refused(script: Any, client: Client, server: Any, answer: Any) -> None:
    study = script(1, heartbeat_seconds=0.005)
    server.on("POST", f"{PATH}/heartbeat", answer(None, 422), lambda request: answer(study.heartbeat(request.json)))

    def slow(params: dict[str, Any]) -> float:
        wait_until(lambda: len(server.requests("POST", f"{PATH}/heartbeat")) >= 3)
        return 0.0

    assert Worker(client.study("st_1"), slow).run().applied == 1


def test_an_abandoned_trial_is_not_renewed_and_its_result_told_harmlessly(script: Any, client: Client) -> None:
    study = script(1, heartbeat_seconds=0.005)
    study.directives["0.1.aa"] = "abandon"
    seen = []

    def objective(params: dict[str, Any], evaluation: Any) -> float:
        wait_until(lambda: evaluation.should_stop)
        time.sleep(0.02)
        seen.append(len(study.server.requests("POST", f"{PATH}/heartbeat")))
        return 0.5

    Worker(client.study("st_1"), objective, with_trial=True).run()
    assert seen == [1]
    assert study.told[0]["value"] == 0.5


def troubled(params: dict[str, Any]) -> float:
    if params["x"] == 0.0:
        os._exit(7)
    if params["x"] == 1.0:
        time.sleep(60)
    return square(params)


class Unreadable(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, status: int, *, judge: str) -> None:
        super().__init__(f"{judge} answered {status}")


def stubborn(params: dict[str, Any]) -> Any:
    if params["x"] == 0.0:
        time.sleep(60)
    if params["x"] == 1.0:
        raise Unreadable(503, judge="the judge")
    if params["x"] == 2.0:
        sys.exit("config.toml is missing")
    if params["x"] == 3.0:
        sys.exit(3)
    return Result(4.0, info={"error": Unreadable(503, judge="it")}) if params["x"] == 4.0 else square(params)


@pytest.mark.slow
def test_what_hangs_is_killed_and_what_raises_is_told_by_its_own_name(script: Any, client: Client) -> None:
    study = script(6)
    summary = Worker(client.study("st_1"), stubborn, timeout_seconds=1.0).run()
    errors = {trial: study.told.pop(trial)["error"] for trial in range(5)}
    assert (errors[0]["type"], errors[0]["retryable"]) == ("timeout", False)
    assert "no value after 1 s" in errors[0]["message"]
    assert (errors[1]["type"], errors[1]["message"]) == ("Unreadable", "the judge answered 503")
    assert (errors[2]["type"], errors[2]["message"]) == ("SystemExit", "config.toml is missing")
    assert (errors[3]["type"], errors[3]["message"]) == ("SystemExit", "exit code 3")
    assert errors[4]["type"] == "UnusableResult"
    assert study.values() == {5: 25.0}, "and the worker goes on"
    assert (summary.evaluated, summary.failed) == (6, 5)


class Unimportable:
    """An objective whose module cannot be imported where it arrives."""

    def __call__(self, params: dict[str, Any]) -> float:
        return 0.0

    def __reduce__(self) -> Any:
        return importlib.import_module, ("a_module_that_nobody_has",)


def test_an_objective_that_cannot_be_imported_ends_the_worker_with_its_error(script: Any, client: Client) -> None:
    study = script(3)
    with pytest.raises(ObjectiveUnusable, match="ModuleNotFoundError: No module named 'a_module_that_nobody_has'"):
        Worker(client.study("st_1"), Unimportable(), executor="process").run()
    assert {each["status"] for each in study.told.values()} == {"released"}


def test_exit_of_an_objective_is_a_failure_of_its_trial_not_the_end_of_the_worker(script: Any, client: Client) -> None:
    study = script(2)

    def objective(params: dict[str, Any]) -> float:
        return sys.exit("no config") if params["x"] == 0.0 else 1.0  # type: ignore[func-returns-value]

    assert Worker(client.study("st_1"), objective).run().applied == 2
    assert study.told[0]["error"]["type"] == "SystemExit"


@pytest.mark.parametrize("bad", [{"timeout_seconds": 0}, {"timeout_seconds": 1, "executor": "thread"}])
def test_a_timeout_needs_something_that_can_be_killed(bad: dict[str, Any], client: Client) -> None:
    with pytest.raises(ValueError, match="timeout_seconds"):
        Worker(client.study("st_1"), square, **bad)


@pytest.mark.parametrize("executor", [None, "thread"])
def test_an_evaluation_that_hangs_does_not_hold_a_signal(script: Any, client: Client, executor: Any) -> None:
    study = script(1)
    begun = threading.Event()

    def hangs(params: dict[str, Any]) -> float:
        begun.set()
        time.sleep(60)
        return 0.0

    def signals() -> None:
        wait_until(begun.is_set)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signals).start()
    summary = Worker(client.study("st_1"), hangs, executor=executor, grace_seconds=0.05).run()
    assert (summary.evaluated, summary.released, summary.ended) == (0, 1, "stopped")
    assert study.told[0]["status"] == "released"


@pytest.mark.slow
def test_a_process_that_dies_or_is_abandoned_costs_one_evaluation_and_its_lane_goes_on(
    script: Any, client: Client
) -> None:
    study = script(5, heartbeat_seconds=0.05)
    study.directives["1.1.aa"] = "abandon"
    study.told[1] = {"value": "somebody else's"}
    summary = Worker(client.study("st_1"), troubled, executor="process", concurrency=2).run()
    error = study.told.pop(0)["error"]
    assert (error["type"], error["retryable"]) == ("ProcessDied", True)
    assert "exit code 7" in error["message"]
    assert study.values() == {1: "somebody else's", 2: 4.0, 3: 9.0, 4: 16.0}
    assert (summary.failed, summary.abandoned, summary.evaluated) == (1, 1, 4)


def test_an_evaluation_whose_trial_was_cancelled_is_told_to_stop(real: RealServer) -> None:
    with real.client() as client:
        study = RealStudy(real, client, 2)

        def objective(params: dict[str, Any], evaluation: Evaluation) -> Result | float:
            step = 0
            while params["x"] == 0.0 and not evaluation.should_stop:
                step += 1
                if step == 3:
                    study.handle.cancel_trial(evaluation.trial)
                evaluation.report(step, 1 / step)
            return Result(1 / step, status="stopped", fidelity=step) if step else 0.5

        summary = Worker(study.handle, objective, with_trial=True, max_trials=2).run()
        first, second = study.handle.trials()
        assert (first.state, second.state, second.value) == ("CANCELLED", "COMPLETED", 0.5)
        assert (summary.late, summary.applied) == (1, 1)
        assert [interim.value for interim in study.handle.trial(first).interim] == [1.0, 0.5]


def test_interim_reports_tell_the_objective_to_stop(script: Any, client: Client, server: Any) -> None:
    study = script(1)
    server.on("POST", f"{PATH}/trials/t_0/reports", {"directive": "continue"}, {"directive": "abandon"})

    def objective(params: dict[str, Any], evaluation: Any) -> Result:
        step = 0
        while not evaluation.should_stop:
            step += 1
            evaluation.report(step, 1 / step)
        return Result(1 / step, status="stopped", fidelity=step)

    Worker(client.study("st_1"), objective, with_trial=True).run()
    item = study.told[0]
    assert (item["status"], item["value"], item["fidelity"]) == ("stopped", 0.5, 2)
    first = server.requests("POST", f"{PATH}/trials/t_0/reports")[0]
    assert first.json == {"lease": "0.1.aa", "step": 1, "value": 1.0}


# ---- leaving


@pytest.mark.parametrize("concurrency", [1, 2])
def test_stop_from_another_thread_finishes_what_runs(study_of: Any, concurrency: int) -> None:
    study = study_of(9)
    running, free = threading.Semaphore(0), threading.Event()

    def objective(params: dict[str, Any]) -> float:
        running.release()
        assert free.wait(5)
        return square(params)

    worker = Worker(study.handle, objective, concurrency=concurrency)

    def stop() -> None:
        for _ in range(concurrency):
            running.acquire(timeout=5)
        worker.stop()
        free.set()

    threading.Thread(target=stop).start()
    summary = worker.run()
    assert (summary.ended, summary.evaluated, summary.applied) == ("stopped", concurrency, concurrency)
    assert len(study.values()) == concurrency


def test_stopping_at_once_releases_what_runs_in_threads(study_of: Any) -> None:
    study = study_of(9)
    never = threading.Event()

    def objective(params: dict[str, Any]) -> float:
        worker.stop(now=True)
        never.wait(60)
        return 0.0

    worker = Worker(study.handle, objective, concurrency=2, wait_seconds=0)
    summary = worker.run()
    never.set()
    (given_back,) = study.sent("tell")
    assert {item["status"] for item in given_back["results"]} == {"released"}
    assert (summary.evaluated, summary.released) == (0, len(given_back["results"]))


def test_a_trial_that_arrives_after_the_stop_is_released(script: Any, client: Client, server: Any) -> None:
    for concurrency in (1, 2):
        study = script(9)
        worker = Worker(client.study("st_1"), square, concurrency=concurrency)

        def stop_meanwhile(request: Any, study: Any = study, worker: Any = worker) -> Any:
            worker.stop()
            return study.answer(study.ask(request.json))

        server.on("POST", f"{PATH}/ask", stop_meanwhile)
        summary = worker.run()
        assert set(study.values().values()) == {"released"}
        assert (summary.evaluated, summary.released) == (0, concurrency)


def test_the_first_signal_finishes_what_runs(script: Any, client: Client) -> None:
    study = script(9)

    def objective(params: dict[str, Any]) -> float:
        signal.raise_signal(signal.SIGTERM)
        return square(params)

    before = signal.getsignal(signal.SIGTERM)
    summary = Worker(client.study("st_1"), objective).run()
    assert summary.ended == "stopped"
    assert summary.evaluated <= 2  # the signal may be noted just after the next trial was asked for
    assert study.told[0]["value"] == 0.0
    assert all(item.get("status") == "released" for number, item in study.told.items() if number >= summary.evaluated)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_interrupts_the_objective_and_releases_its_trial(script: Any, client: Client) -> None:
    study = script(9)

    def objective(params: dict[str, Any]) -> float:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    summary = Worker(client.study("st_1"), objective).run()
    assert (summary.evaluated, summary.released, study.values()) == (0, 1, {0: "released"})


def test_the_second_signal_does_not_wait_for_threads(script: Any, client: Client) -> None:
    script(9)
    running, never = threading.Semaphore(0), threading.Event()

    def objective(params: dict[str, Any]) -> float:
        running.release()
        never.wait(60)
        return 0.0

    def signals() -> None:
        assert all(running.acquire(timeout=5) for _ in range(2))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(worker._stopping.is_set)  # two pending signals of one kind would be one
        os.kill(os.getpid(), signal.SIGTERM)

    worker = Worker(client.study("st_1"), objective, concurrency=2)
    threading.Thread(target=signals).start()
    summary = worker.run()
    never.set()
    assert (summary.evaluated, summary.released) == (0, 2)


# ---- seed-encoded trials


def test_a_trial_that_cannot_be_rebuilt_is_released_for_another_worker(
    script: Any, client: Client, server: Any
) -> None:
    op = {"op": "cauchy", "stream": "0", "step": 1, "lane": 7, "scale": 0.5}
    trial = {
        "id": "t_1",
        "encoding": "seed/1",
        "dim": 3,
        "dtype": "f32",
        "rng": recipes.RNG,
        "key": "00" * 16,
        "base": None,
        "ops": [op],
        "lease": {"token": "1.1.aa"},
    }
    for concurrency in (1, 2):
        study = script(9)
        server.on("POST", f"{PATH}/ask", {"trials": [trial]}, {"trials": [], "retry_after_seconds": 0.01})
        with pytest.raises(recipes.UnknownOp, match="cauchy"):
            Worker(client.study("st_1"), square, concurrency=concurrency, encoding="seed").run()
        assert study.values() == {1: "released"}


def test_a_seed_encoded_vector_reaches_the_objective_under_its_name(script: Any, client: Client, server: Any) -> None:
    op = {"op": "normal", "stream": "0", "step": 1, "lane": 7, "scale": 0.5}
    trial = {
        "id": "t_0",
        "encoding": "seed/1",
        "dim": 3,
        "dtype": "f32",
        "rng": recipes.RNG,
        "key": "00" * 16,
        "base": None,
        "ops": [op],
        "lease": {"token": "0.1.aa"},
    }
    study = script(1)
    study.given = 1
    server.on("POST", f"{PATH}/ask", {"trials": [trial]})
    server.on("GET", PATH, {"id": "st_1", "space": {"theta": {"type": "vector", "dim": 3}}})
    Worker(client.study("st_1"), lambda params: params["theta"].sum(), encoding="seed").run()
    assert study.told[0]["value"] == float(recipes.rebuild(trial).sum())


# ---- options


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"executor": "ray"}, {"non_finite": "x"}, {"with_trial": True, "executor": "process"}],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_leased(client: Client, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Worker(client.study("st_1"), square, **options)
