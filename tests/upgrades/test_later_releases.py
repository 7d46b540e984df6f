"""A release may change an algorithm: what this one has left behind still opens, and says what has become of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blackbox_server.routes.shapes import forget_descriptions
from typer.testing import CliRunner

from blackbox import federation
from blackbox.algorithm import ALGORITHMS, lookup, registry
from blackbox.cli.commands import app
from blackbox.federation.method import FEDERATED
from blackbox.options import Field, known_options
from blackbox.study.effects import perform
from blackbox.study.kinds import open_study
from tests.server.conftest import assert_problem
from tests.upgrades.releases import before_bounds, renamed, revised, stricter, without_option
from tests.upgrades.test_upgrades import Left, close, left_by
from tests.upgrades.write import FOLDER, Rounds, evaluate, numerics, objective, post, says

LOST_STATES = "DELETE FROM snapshots"


@pytest.fixture(autouse=True)
def _described_anew() -> Iterator[None]:
    """Every test has a release of its own."""
    forget_descriptions()
    yield
    forget_descriptions()


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    with left_by("v0_1_0", tmp_path) as opened:
        yield opened


@pytest.fixture
def stateless(tmp_path: Path) -> Iterator[Left]:
    """The same without a stored state: as most studies are, whose newest snapshot is some steps old."""
    with left_by("v0_1_0", tmp_path) as opened:
        with closing(sqlite3.connect(tmp_path / "blackbox.db")) as connection, connection:
            connection.execute(LOST_STATES)
        yield opened


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a changed class into the registry, under the name of the one it was made from."""

    def put(cls: Any) -> Any:
        monkeypatch.setitem(ALGORITHMS.classes, cls.name, cls)
        forget_descriptions()
        return cls

    registry()
    return put


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Takes an algorithm out of the registry."""

    def take(name: str) -> None:
        table: dict[str, Any] = (ALGORITHMS if name in registry() else FEDERATED).classes
        monkeypatch.delitem(table, name)
        forget_descriptions()

    federation.registry()
    return take


def notes(left: Left, name: str) -> list[str]:
    """What the service says about a study; its brief says the same."""
    warnings: list[str] = left.get(name).json()["warnings"]
    brief = left.get(name, "/brief").text
    for warning in warnings:
        assert f"release: {warning}" in brief
    return warnings


def everything_is_read(left: Left, name: str) -> None:
    """A study is shown, listed, exported, and its trials and its best one are what they were."""
    expected = left.studies[name]
    seen = left.get(name).json()
    assert (seen["state"], seen["step"], seen["best"]) == (
        expected["state"], expected["step"], expected["best"]
    )  # fmt: skip
    assert len(left.get(name, "/trials", limit=1000).json()["trials"]) == expected["made"]
    exported = [json.loads(line) for line in left.get(name, "/export").text.splitlines()]
    assert len([event for event in exported if event["type"] == "step.closed"]) == expected["step"]
    assert left.get(name, "/events", limit=1000).json()["events"]
    if expected["best"] is not None:
        assert left.get(name, "/best").json()["items"][0]["value"] == expected["best"]["value"]


# Options by other names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "popsize"),
    [("members", "members", 5), ("recipes", "population", 8), ("finished", "population", 6), ("region", "count", 5)],
)
def test_options_stay_as_they_were_stored_and_are_read_by_todays_names(
    left: Left, name: str, old: str, popsize: int
) -> None:
    shown = left.get(name).json()
    stored = shown["algorithm"]["options"]
    assert old in stored
    assert "popsize" not in stored
    opened = perform(left.server.store, open_study(left.id(name)))
    assert opened.stored.options.popsize == popsize
    assert [note for note in notes(left, name) if "revision" not in note] == []
    again = {"name": shown["algorithm"]["resolved"], "options": {old: stored[old]}}
    body = {"name": "again", "space": shown["space"], "algorithm": again}
    problem = assert_problem(left.server.http.post("/v1/studies", json=body), 422, "invalid-options")
    assert f"{old} is called popsize since 0.2" in problem["detail"]
    assert [fault["pointer"].rpartition("/")[2] for fault in problem["errors"]] == [old]


# What changes no results ----------------------------------------------------------------------------------------------


def test_a_renamed_field_of_a_state_costs_a_replay_and_nothing_else(left: Left, release: Any) -> None:
    release(renamed(before_bounds(lookup("cma_es")), "pc", "path"))
    expected = left.studies["group"]
    found = says(left.server, {"id": expected["id"]})
    close(found.pop("recommended"), expected["recommended"])
    assert found == {key: value for key, value in expected.items() if key != "recommended"}
    assert notes(left, "group") == []
    # The digests of this database are of the names of a state's fields, too; those recorded since are not.
    assert [step for step, _ in left.replayed("group")] == list(range(expected["step"]))
    evaluate(left.server, expected["id"], 12)
    steps = left.replayed("group")
    assert len(steps) > expected["step"]
    assert all(equal for step, equal in steps if step >= expected["step"])
    fork = post(left.server, expected["id"], "fork", {"name": "next"})["id"]
    evaluate(left.server, fork, 12)


def test_a_renamed_field_changes_no_digest(left: Left, release: Any) -> None:
    study = left.server.create("new", algorithm={"name": "cma_es"})
    evaluate(left.server, study, 30)
    release(renamed(lookup("cma_es"), "pc", "path"))
    left.studies["new"] = {"id": study}
    steps = left.replayed("new")
    assert len(steps) >= 4
    assert all(equal for _, equal in steps)


def test_a_readable_snapshot_follows_soon_after_one_that_cannot_be_read(left: Left, release: Any) -> None:
    release(renamed(before_bounds(lookup("cma_es")), "pc", "path"))
    evaluate(left.server, left.id("group"), 12)
    store, study = left.server.store, left.id("group")
    newest = store.read(lambda tx: tx.snapshot(study, 0, 10**6))
    assert newest.step > left.studies["group"]["step"]
    assert b"path" in newest.state


def test_an_option_that_is_gone_is_ignored_and_named(left: Left, release: Any) -> None:
    release(without_option(lookup("cbo"), "truncation"))
    assert notes(left, "members") == ['this release\'s cbo has no option "truncation": it is ignored']
    everything_is_read(left, "members")
    evaluate(left.server, left.id("members"), 20, lambda params: -objective(params))
    if left.same_bits:
        assert all(equal for _, equal in left.replayed("members"))
    fork = post(left.server, left.id("members"), "fork", {"name": "next"})["id"]
    evaluate(left.server, fork, 5)


def test_a_revision_that_computes_the_same_for_a_study_goes_on_with_it(stateless: Left, release: Any) -> None:
    release(revised(before_bounds(lookup("cma_es"))))
    if not stateless.same_bits:
        pytest.skip("equal digests are promised on the machine that wrote them")
    assert notes(stateless, "group") == ["it was computed by revision 1 of cma_es, this release has revision 2"]
    evaluate(stateless.server, stateless.id("group"), 12)
    assert all(equal for _, equal in stateless.replayed("group"))


# What does ------------------------------------------------------------------------------------------------------------


def wider(state: Any) -> Any:
    """A change of what cma_es computes."""
    return replace(state, sigma=1.5 * state.sigma)


def test_another_revision_goes_on_from_a_stored_state(left: Left, release: Any) -> None:
    release(revised(before_bounds(lookup("cma_es")), wider))
    expected = left.studies["group"]
    evaluate(left.server, expected["id"], 12)
    assert left.get("group").json()["step"] > expected["step"]
    left.server.app.state.service.forget(expected["id"])
    evaluate(left.server, expected["id"], 6)
    fork = post(left.server, expected["id"], "fork", {"name": "next"})
    assert fork["algorithm"]["reason"] is None
    assert fork["step"] >= expected["step"]


def test_without_a_stored_state_another_revision_reads_everything_and_asks_nothing(
    stateless: Left, release: Any
) -> None:
    release(revised(before_bounds(lookup("cma_es")), wider))
    everything_is_read(stateless, "group")
    (note,) = notes(stateless, "group")
    assert note == "it was computed by revision 1 of cma_es, this release has revision 2"
    study = stateless.id("group")
    problem = assert_problem(stateless.server.http.post(f"/v1/studies/{study}/ask", json={}), 409, "algorithm-changed")
    assert note in problem["detail"]
    assert "after step 0" in problem["detail"]
    assert "fork" in problem["hint"]
    at = f"/v1/studies/{study}/best"
    assert_problem(stateless.server.http.get(at, params={"view": "proposed"}), 409, "algorithm-changed")
    (told,) = stateless.server.http.get(at, params={"view": "recommended"}).json()["items"]
    assert told["value"] == stateless.studies["group"]["best"]["value"], "the best point told needs no algorithm"
    brief = stateless.get("group", "/brief").text
    assert "it cannot go on" in brief
    assert f"/v1/studies/{study}/fork" in brief.rpartition("next:")[2]
    assert stateless.replayed("group") == [(0, False)], "a replay ends where the releases part"


def test_what_is_told_to_a_study_that_cannot_go_on_waits_for_its_release(
    stateless: Left, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = before_bounds(lookup("cma_es"))
    release(revised(original, wider))
    server, study = stateless.server, stateless.id("group")
    step, used = stateless.studies["group"]["step"], stateless.studies["group"]["used"]
    held = stateless.get("group", "/trials", state="LEASED").json()["trials"]
    answer = server.tell(study, {"trial": held[0]["id"], "value": 0.25}, worker="holder", ask={"count": 1})
    assert answer["results"][0] == {"trial": held[0]["id"], "outcome": "applied", "best_so_far": True}
    assert answer["ask"]["reason"] == "algorithm_changed"
    assert answer["ask"]["problem"]["code"] == "algorithm-changed"
    for trial in held[1:]:
        assert server.outcome(study, trial=trial["id"], value=2.0)["outcome"] == "applied"
    for i in range(8):
        told = server.tell(study, {"params": {"rate": 0.3, "depth": 2, "kind": "a"}, "value": 1.0, "key": f"k{i}"})
        assert told["results"][0]["outcome"] == "injected"
    now = stateless.get("group").json()
    assert (now["step"], now["budget"]["used"]) == (step, used + len(held))
    assert now["best"]["value"] == 0.25
    assert post(server, study, f"trials/{held[1]['id']}/invalidate")["invalidated"] == 1
    release(original)
    server.app.state.service.forget(study)
    evaluate(server, study, 12)
    assert stateless.get("group").json()["step"] > step
    if stateless.same_bits:
        assert all(equal for _, equal in stateless.replayed("group"))


def test_a_fork_continues_with_the_algorithm_of_today(stateless: Left, release: Any) -> None:
    cls = without_option(lookup("cbo"), "alpha")
    release(revised(cls, lambda state: replace(state, alpha=2.0 * state.alpha)))
    study, expected = stateless.id("members"), stateless.studies["members"]
    assert_problem(stateless.server.http.post(f"/v1/studies/{study}/ask", json={}), 409, "algorithm-changed")
    fork = post(stateless.server, study, "fork", {"name": "next"})
    assert "revision 1 of cbo" in fork["algorithm"]["reason"]
    assert 'the option "alpha" was dropped' in fork["algorithm"]["reason"]
    assert "alpha" not in fork["algorithm"]["options"]
    assert fork["algorithm"]["options"]["popsize"] == 5  # people wrote "members"
    assert fork["best"]["value"] == expected["best"]["value"]
    assert fork["warnings"] == []
    evaluate(stateless.server, fork["id"], 12, lambda params: -objective(params))


def test_nested_options_that_are_gone_are_named_by_their_place() -> None:
    options = {"rounds": 3, "privacy": {"clip": {"delta": 1.0}, "budget": 2.0}, "speed": None}
    known, dropped = known_options(federation.lookup("fedzo").Options, options)
    assert known == {"rounds": 3, "privacy": {"clip": {"delta": 1.0}}}
    assert set(dropped) == {"privacy.budget", "speed"}
    assert "speed" in options


def test_options_that_a_release_refuses_are_named(left: Left, release: Any) -> None:
    release(stricter(lookup("cbo"), "popsize", (int, Field(ge=10))))
    (note,) = notes(left, "members")
    assert note.startswith("this release's cbo does not take the stored options: popsize: ")
    everything_is_read(left, "members")
    study = left.id("members")
    problem = assert_problem(left.server.http.post(f"/v1/studies/{study}/ask", json={}), 409, "algorithm-changed")
    assert note in problem["detail"]
    assert_problem(left.server.http.post(f"/v1/studies/{study}/fork", json={}), 422, "invalid-options")
    fork = post(left.server, study, "fork", {"name": "next", "algorithm": "cma_es"})
    evaluate(left.server, fork["id"], 3)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("group", "cma_es"), ("members", "cbo"), ("sequential", "nelder_mead"), ("recipes", "openai_es"),
     ("finished", "deep_ga"), ("region", "zo_frank_wolfe"), ("rewritten", "sep_cma_es"), ("federated", "fedzo"),
     ("forgetful", "fzoos"), ("guest", "fedzo")],
)  # fmt: skip
def test_a_study_whose_algorithm_is_gone_is_read_told_and_forked(
    left: Left, without: Any, name: str, algorithm: str
) -> None:
    without(algorithm)
    assert notes(left, name) == [f'this release has no algorithm "{algorithm}"']
    everything_is_read(left, name)
    server, study = left.server, left.id(name)
    with pytest.raises(Exception, match=f'no algorithm "{algorithm}"'):
        left.replayed(name)
    links = left.get(name).json()["links"]
    for trial in left.get(name, "/trials", state="LEASED").json()["trials"] if "ask" in links else ():
        assert server.outcome(study, trial=trial["id"], value=1.0)["outcome"] == "applied"
    if left.studies[name]["state"] == "ACTIVE":
        path = f"/v1/studies/{study}"
        asked = (
            server.http.post(f"{path}/ask", json={}) if "ask" in links else server.http.get(f"{path}/rounds/current")
        )
        assert_problem(asked, 409, "algorithm-changed")
    if "fork" in links:
        missing = server.http.post(f"/v1/studies/{study}/fork", json={"name": "same"})
        assert_problem(missing, 422, "unknown-algorithm")
        fork = post(
            server, study, "fork", {"name": "other", "algorithm": "auto" if name == "region" else "random_search"}
        )
        assert ("results are left out" in (fork["algorithm"]["reason"] or "")) == (name == "recipes")
        assert fork["best"] is not None
        if left.studies[name]["state"] != "COMPLETED":
            evaluate(server, fork["id"], 2)


def test_rounds_of_another_revision_go_on_from_their_stored_state(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = federation.lookup("fzoos")
    monkeypatch.setattr(cls, "revision", 2)
    d = Rounds(left.server, left.id("forgetful"), "ab")
    assert d.contribute("ab") == ["applied", "applied"]


def test_rounds_that_forgot_their_past_and_cannot_read_their_state_say_so(stateless: Left) -> None:
    path = f"/v1/studies/{stateless.id('forgetful')}/rounds/current"
    problem = assert_problem(stateless.server.http.get(path), 409, "algorithm-changed")
    assert "were not kept" in problem["detail"]
    everything_is_read(stateless, "forgetful")


def test_the_command_line_says_how_far_a_replay_agrees(release: Any, tmp_path: Path) -> None:
    database = shutil.copy(FOLDER / "v0_1_0.sqlite", tmp_path / "blackbox.db")
    told = json.loads((FOLDER / "v0_1_0.json").read_text())
    arguments = ["replay", told["studies"]["members"]["id"], "--database", str(database)]
    same = CliRunner().invoke(app, arguments)
    if told["numerics"] == numerics():
        assert (same.exit_code, same.stdout.split(" in ")[0]) == (0, "17 steps replayed")
    release(revised(lookup("cbo"), lambda state: replace(state, alpha=2.0 * state.alpha)))
    other = CliRunner().invoke(app, arguments)
    assert other.exit_code == 1
    assert "it was computed by revision 1 of cbo, this release has revision 2" in other.output
    assert "the first 0 of 17 steps are equal, step 0 differs" in other.output
