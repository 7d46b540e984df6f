"""The command line, end to end: what it prints, how it ends, and that its errors say what to do."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from blackbox_client import Client
from blackbox_client.client import StudyHandle

from tests.end_to_end.service import Command, Service, blackbox, until

JOB = """
import os, pathlib, time

def evaluate(params):
    return (params["x"] - 1.0) ** 2

def together(params):
    "Whoever is first waits for the other process, however long that takes to start."
    pathlib.Path(f"worker-{os.getpid()}").touch()
    until = time.monotonic() + 60.0
    while len(list(pathlib.Path().glob("worker-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return evaluate(params)

def slowly(params):
    pathlib.Path(f"started-{params['x']}").touch()
    time.sleep(1.0)
    return evaluate(params)

def broken(params):
    raise ValueError("no such luck")

def hangs(params):
    pathlib.Path(f"started-{params['x']}").touch()
    time.sleep(1000.0)

not_a_function = 3
"""
SPACE = {"x": {"type": "float", "low": -5.0, "high": 5.0}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cli_job.py").write_text(JOB)
    return tmp_path


def line(server: Service, budget: int, name: str = "line") -> StudyHandle:
    return server.client().create_study(start="skip", name=name, space=SPACE, budget=budget, algorithm="cma_es")


def polite(command: Command, *words: str) -> None:
    """It failed with exit code 2, said why, and showed no traceback."""
    assert command.ended() == 2, command.err
    for word in words:
        assert word in command.err
    assert "Traceback" not in command.err
    assert command.out == ""


@pytest.mark.slow
def test_workers_evaluate_a_study_to_its_end_and_its_log_replays(server: Service, folder: Path) -> None:
    study = line(server, 60)
    address = ("--url", server.url)
    job = ("worker", study.id, "cli_job:together", *address)
    with Command(folder, *job, "--concurrency", "2", script=True) as two:
        until(lambda: study.refresh().budget.leased, "the first lease", two)
        one = blackbox(folder, *job, "--name", "one")
        assert (one.ended(), two.ended()) == (0, 0), one.err + two.err
    assert "ended: study" in one.out
    assert "ended: study" in two.out
    applied = [int(re.findall(r"(\d+) applied", command.out)[0]) for command in (one, two)]
    assert all(applied)
    budget = study.refresh().budget
    assert (sum(applied), budget.used) == (60 - budget.late, 60)
    assert study.refresh().state == "COMPLETED"
    assert study.best().value < 0.1

    listed = blackbox(folder, "studies", *address)
    assert listed.ended() == 0
    (row,) = [text for text in listed.out.splitlines() if study.id in text]
    assert all(word in row for word in ("line", "COMPLETED", "cma_es", "60"))
    brief = blackbox(folder, "studies", *address, "--brief", study.id)
    assert "60 of 60" in brief.out
    assert brief.out.rstrip().splitlines()[-1].startswith("next: curl")

    polite(blackbox(folder, "replay", study.id, "--database", str(server.database)), f"id {server.process.pid}")
    server.terminate()
    replayed = blackbox(folder, "replay", study.id, "--database", str(server.database))
    assert replayed.ended() == 0, replayed.err
    assert "every digest is equal" in replayed.out
    polite(blackbox(folder, "replay", "st_none", "--database", str(server.database)), "no study st_none")
    polite(blackbox(folder, "replay", study.id, "--database", "absent.db"), "no file absent.db")
    polite(blackbox(folder, "studies", *address), "no answer")


def test_a_worker_finds_a_study_by_its_name_with_a_key_from_a_file(folder: Path) -> None:
    (folder / "wrong").write_text("no key")
    wrong = {"BLACKBOX_FIRST_KEY_FILE": str(folder / "wrong")}
    polite(blackbox(folder, "serve", "--port", "0", variables=wrong), "holds no key", "remove it")
    variables = {"BLACKBOX_FIRST_KEY_FILE": str(folder / "first")}
    with Command(folder, "serve", "--port", "0", "--database", "named.db", variables=variables) as serving:
        until(lambda: "http://" in serving.out, "the address", serving)
        url, first = serving.out.split()[-1], (folder / "first").read_text().strip()
        with Client(url, first) as client:
            study = client.create_study(start="skip", name="line", space=SPACE, budget=5, algorithm="cma_es")
            key = client.create_key(["study:evaluate", "study:read"])
            (folder / "key").write_text(key.secret)
            address = {"BLACKBOX_URL": url, "BLACKBOX_KEY_FILE": str(folder / "key")}
            polite(blackbox(folder, "worker", "lime", "cli_job:evaluate", variables=address), "no study named 'lime'")
            worker = blackbox(folder, "worker", "line", "cli_job:evaluate", variables=address)
            assert worker.ended() == 0, worker.err
            assert study.refresh().state == "COMPLETED"
        assert first not in serving.out + serving.err


def test_sigterm_lets_a_worker_finish_what_it_has_and_leave(server: Service, folder: Path) -> None:
    study = line(server, 100)
    with Command(folder, "worker", study.id, "cli_job:slowly", "--url", server.url) as worker:
        until(lambda: list(folder.glob("started-*")), "the first evaluation", worker)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.err
        assert "1 evaluated, 1 applied" in worker.out
    progress = study.refresh()
    assert (progress.state, progress.budget.used, progress.budget.leased) == ("ACTIVE", 1, 0)


@pytest.mark.slow
def test_a_second_sigterm_gives_back_what_a_worker_has(server: Service, folder: Path) -> None:
    study = line(server, 100)
    with Command(folder, "worker", study.id, "cli_job:slowly", "--url", server.url, "--concurrency", "2") as worker:
        until(lambda: len(list(folder.glob("started-*"))) == 2, "two evaluations", worker)
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.err
    until(lambda: study.refresh().budget.leased == 0, "the released leases")
    assert study.refresh().trials.queued + study.refresh().budget.used == 2


@pytest.mark.slow
def test_an_evaluation_that_hangs_holds_no_sigterm(server: Service, folder: Path) -> None:
    study = line(server, 100)
    job = ("worker", study.id, "cli_job:hangs", "--url", server.url, "--grace-seconds", "0.2")
    with Command(folder, *job) as worker:
        until(lambda: list(folder.glob("started-*")), "the first evaluation", worker)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.err
        assert "0 evaluated" in worker.out
    assert study.refresh().budget.leased == 0, "its lease is released"


@pytest.mark.slow
def test_an_evaluation_that_takes_too_long_is_killed_and_told_as_failed_for_good(server: Service, folder: Path) -> None:
    study = line(server, 1)
    worker = blackbox(folder, "worker", study.id, "cli_job:hangs", "--url", server.url, "--timeout-seconds", "0.5")
    assert worker.ended() == 0, worker.err
    assert "1 evaluated, 1 applied, 0 late, 1 failed" in worker.out
    (trial,) = study.trials()
    assert (trial.state, trial.extra["error"]["type"], trial.attempt) == ("FAILED", "timeout", 1)


def test_a_module_that_cannot_be_imported_is_said_once(folder: Path) -> None:
    (folder / "bad_job.py").write_text("import os\n\nlimit = int(os.environ['A_LIMIT_NOBODY_SET'])\n")
    worker = blackbox(folder, "worker", "st_1", "bad_job:evaluate", "--url", "http://127.0.0.1:9")
    polite(worker, "importing bad_job:evaluate failed: KeyError: 'A_LIMIT_NOBODY_SET'", "bad_job.py, line 3")


def test_a_worker_says_what_is_wrong_with_its_arguments(server: Service, folder: Path) -> None:
    study = line(server, 10)
    address = ("--url", server.url)
    polite(blackbox(folder, "worker", study.id, "evaluate", *address), "module:function")
    polite(blackbox(folder, "worker", study.id, "nowhere:evaluate", *address), "cannot import nowhere")
    polite(blackbox(folder, "worker", study.id, "cli_job:absent", *address), "no function 'absent'")
    polite(blackbox(folder, "worker", study.id, "cli_job:not_a_function", *address), "no function 'not_a_function'")
    polite(blackbox(folder, "worker", "st_none", "cli_job:evaluate", *address), "st_none")
    polite(blackbox(folder, "worker", study.id, "cli_job:evaluate", "--url", "ftp://here"), "http://host:port")


def test_algorithms_lists_the_methods_and_their_options(tmp_path: Path) -> None:
    listed = blackbox(tmp_path, "algorithms")
    assert listed.ended() == 0
    assert all(name in listed.out for name in ("cma_es", "openai_es", "cbo", "nelder_mead", "random_search", "pycma"))
    one = blackbox(tmp_path, "algorithms", "cma_es")
    assert one.ended() == 0
    assert all(word in one.out for word in ("popsize", "sigma", "Hansen"))
    polite(blackbox(tmp_path, "algorithms", "cmaes"), "cma_es")


def test_minimize_solves_a_function_at_hand(folder: Path) -> None:
    space = json.dumps(SPACE)
    solved = blackbox(folder, "minimize", "cli_job:evaluate", "--space", space, "--budget", "150", "--target", "1e-4")
    assert solved.ended() == 0, solved.err
    assert "target" in solved.out
    (folder / "space.json").write_text(space)
    command = ("minimize", "cli_job:evaluate", "--space", "space.json", "--algorithm", "nelder_mead", "--budget", "40")
    first, second = (blackbox(folder, *command, "--seed", "7") for _ in range(2))
    assert first.out == second.out != ""
    polite(blackbox(folder, "minimize", "cli_job:evaluate", "--space", "x in [0, 1]"), "--space is not JSON")
    polite(blackbox(folder, "minimize", "cli_job:evaluate", "--space", '{"x": {"type": "flaot"}}'), "float")
    polite(blackbox(folder, "minimize", "cli_job:evaluate", "--space", space, "--algorithm", "cmaes"), "cma_es")
    polite(blackbox(folder, "minimize", "cli_job:evaluate", "--space", space, "--timeout", "1"), "--workers 1")
    old = blackbox(folder, "minimize", "cli_job:evaluate", "--space", space, "--method", "cma_es")
    assert old.ended() == 2
    assert "--algorithm" in old.err


def test_minimize_shows_what_it_has_found_when_it_is_stopped_and_goes_on_from_its_file(folder: Path) -> None:
    (folder / "slow_job.py").write_text(
        "import os, signal\n"
        "n = 0\n"
        "def evaluate(p):\n"
        "    global n\n"
        "    n += 1\n"
        "    if n == 20:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return p['x'] ** 2\n"
    )
    space = json.dumps({"x": {"type": "float", "low": -5, "high": 5}})
    command = ("minimize", "slow_job:evaluate", "--space", space, "--budget", "30", "--store", "run.db")
    stopped = blackbox(folder, *command)
    assert stopped.ended() == 130
    assert "after 19 evaluations" in stopped.out
    assert "after 30 evaluations" in blackbox(folder, *command).out


def test_help_names_every_command(tmp_path: Path) -> None:
    told = blackbox(tmp_path, "--help")
    assert told.ended() == 0
    names = ("demo", "serve", "worker", "minimize", "studies", "algorithms", "replay")
    assert all(f" {name} " in told.out for name in names)


def test_serve_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    polite(blackbox(tmp_path, "serve", "--host", "0.0.0.0", "--insecure-local"), "loopback")
    polite(blackbox(tmp_path, "serve", variables={"BLACKBOX_PROT": "80"}), "BLACKBOX_PROT", "PORT")
    polite(blackbox(tmp_path, "serve", "--database", "absent/blackbox.db"), "absent")
    (tmp_path / "text.db").write_text("not a database at all, but long enough to be taken for one\n" * 20)
    polite(blackbox(tmp_path, "serve", "--database", "text.db"), "text.db")


def test_who_only_evaluates_takes_part_from_the_command_line_and_leaves_at_sigterm(
    server: Service, folder: Path
) -> None:
    study = server.client().create_study(
        start="skip",
        name="hosted rounds",
        space=SPACE,
        algorithm={"name": "fedzo", "options": {"rounds": 2, "local_steps": 2, "count": 2, "quorum": 1.0}},
        rounds={"min_joined": 2},
    )
    job = ("participant", study.id, "cli_job:evaluate", "--url", server.url, "--hosted")
    with Command(folder, *job, "--client", "leaves") as leaver:
        until(lambda: "1 joined" in study.brief(), "a hosted participant", leaver)
        leaver.signal(signal.SIGTERM)
        assert leaver.ended() == 0, leaver.err
    assert "ended: stopped" in leaver.out
    assert "0 joined" in study.brief()
    with Command(folder, *job, "--client", "a") as a:
        b = blackbox(folder, *job, "--client", "b", "--weight", "3")
        assert (a.ended(), b.ended()) == (0, 0), a.err + b.err
    assert "b is hosted in st_" in b.out
    assert "12 evaluated, 12 applied, 0 late, 0 failed" in b.out  # rounds, local steps, two directions and the point
    assert study.refresh().state == "COMPLETED"


def test_participants_take_part_from_the_command_line_and_leave_at_sigterm(server: Service, folder: Path) -> None:
    study = server.client().create_study(
        start="skip",
        name="rounds",
        space=SPACE,
        algorithm={"name": "fedzo", "options": {"rounds": 3, "local_steps": 2, "count": 2, "quorum": 1.0}},
        rounds={"min_joined": 2},
    )
    job = ("participant", study.id, "cli_job:evaluate", "--url", server.url)
    with Command(folder, *job, "--client", "leaves") as leaver:
        until(lambda: "1 joined" in study.brief(), "a participant", leaver)
        leaver.signal(signal.SIGTERM)
        assert leaver.ended() == 0, leaver.err
    assert "ended: signal" in leaver.out
    assert "0 joined" in study.brief()
    with Command(folder, *job, "--client", "a", "--folder", "private-a") as a:
        b = blackbox(folder, *job, "--client", "b", "--weight", "3")
        assert (a.ended(), b.ended()) == (0, 0), a.err + b.err
    assert "3 contributions counted, 0 late" in a.out
    assert "ended: COMPLETED" in b.out
    assert (folder / "private-a" / "secret").exists()
    assert study.refresh().state == "COMPLETED"
    polite(blackbox(folder, *job, "--client", "not a name"), "client")
    polite(blackbox(folder, *job, "--client", "h", "--hosted", "--folder", "x"), "--folder")
    plain = line(server, 10)
    polite(blackbox(folder, "participant", plain.id, *job[2:], "--client", "a"), "works on trials")
