"""Worker processes and the code of others: what it raises, how it ends, where it lives, how long it takes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest

import blackbox
from blackbox.backends import TimedOut, WorkerLost
from blackbox.backends.processes import Processes
from blackbox.backends.raised import ObjectiveExited, RemoteError
from blackbox.errors import InvalidInput
from tests.engine import objectives_for_processes as objectives

ROOT = Path(__file__).parents[2]


def evaluated(backend, *arguments):
    """The outcome of one call."""
    backend.submit(1, *arguments)
    while not (done := backend.wait()):
        pass
    return done[0]


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_sys_exit_in_an_objective_is_one_error_with_its_words(backend):
    with pytest.raises(ObjectiveExited, match=r"called sys.exit\('config.toml is missing'\); raise an exception"):
        blackbox.minimize(objectives.quits, [(-5, 5)], "cma_es", 8, backend=backend, n_workers=2)


def test_an_exception_that_does_not_unpickle_arrives_with_its_type_its_words_and_its_traceback():
    with closing(Processes(objectives.raises_what_does_not_unpickle, 1)) as backend:
        error = evaluated(backend, 0).error
    assert isinstance(error, RemoteError)
    assert (str(error), error.type_name) == ("Status: 503 Service Unavailable", "Status")
    assert "in raises_what_does_not_unpickle" in error.__notes__[0]


@pytest.mark.slow
def test_a_value_that_does_not_unpickle_is_an_error_of_its_own():
    with closing(Processes(objectives.returns_what_does_not_unpickle, 1)) as backend:
        done = evaluated(backend, 0)
        assert type(done.error) is TypeError
        assert "cannot read what the objective returned: ValueError: invalid literal" in str(done.error)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Writes a module `job` that worker processes find."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "job.py"


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("1 / 0", ZeroDivisionError, "division by zero"),
        pytest.param(
            "import absent", InvalidInput, "cannot import job: No module named 'absent'", marks=pytest.mark.slow
        ),
        pytest.param("import sys\nsys.exit(3)", ObjectiveExited, r"sys.exit\(3\)", marks=pytest.mark.slow),
        pytest.param(
            "import os\nos._exit(3)",
            RuntimeError,
            "ended with code 3 before it had loaded the objective",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import blackbox\ndef f(x): return 0\n"
            "blackbox.minimize('job:f', [(0, 1)], budget=3, backend='processes', n_workers=2)",
            InvalidInput,
            'cannot start worker processes of its own; .* `if __name__ == "__main__":`',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_objective_that_cannot_be_imported_is_its_own_error_once(job, source, error, words):
    job.write_text(source)
    with closing(Processes("job:f", 1)) as backend, pytest.raises(error, match=words):
        evaluated(backend, 0)


def python(source, *, piped, folder):
    """The output of a program, from standard input or from a file."""
    source = textwrap.dedent(source)
    (folder / "program.py").write_text(source)
    command = [sys.executable, "-"] if piped else [sys.executable, str(folder / "program.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, input=source if piped else None, capture_output=True, text=True, env=environment, timeout=100
    )
    return ran.stdout, ran.stderr


OWN = """
import blackbox

def f(x):
    return float((x**2).sum())

print(blackbox.minimize(f, [(-5, 5)], budget=12, backend="processes", n_workers=2).nfev)
"""


@pytest.mark.slow
def test_a_function_of_standard_input_is_refused_at_once(tmp_path):
    out, err = python(OWN, piped=True, folder=tmp_path)
    assert out == ""
    assert err.count("Traceback") == 1
    assert "'f' is defined in a notebook, a console or standard input" in err
    assert 'as "my_job:function"' in err


@pytest.mark.slow
def test_a_script_without_a_guard_is_one_error_that_names_it(tmp_path):
    out, err = python(OWN, piped=False, folder=tmp_path)
    assert out == ""
    assert err.count("Traceback") == 1
    assert 'put the call under `if __name__ == "__main__":`' in err


@pytest.mark.slow
@pytest.mark.parametrize("piped", [True, False])
def test_an_objective_of_a_module_needs_neither_a_guard_nor_a_file(tmp_path, piped):
    source = """
    import blackbox
    from tests.engine.objectives_for_processes import square
    print(blackbox.minimize(square, [(-5, 5)], budget=12, backend="processes", n_workers=2).nfev)
    """
    assert python(source, piped=piped, folder=tmp_path) == ("12\n", "")


@pytest.mark.slow
def test_an_evaluation_over_its_time_is_ended_and_what_waited_behind_it_is_given_back():
    with closing(Processes(objectives.hangs_at_one, 1, timeout_seconds=0.3)) as backend:
        for _ in range(3):
            assert evaluated(backend, 0).value == 0.0  # now evaluations are known to be short: the next are queued
        for ticket in (1, 2):
            backend.submit(ticket, ticket)
        done = []
        while len(done) < 2:
            done += backend.wait()
        assert [type(each.error) for each in done] == [TimedOut, WorkerLost]
        assert "no value within 0.3 s" in str(done[0].error)
        assert evaluated(backend, 5).value == 5.0


@pytest.mark.slow
def test_an_evaluation_that_is_deaf_to_sigterm_does_not_hold_the_end():
    backend = Processes(objectives.hangs_at_one, 1)
    evaluated(backend, 0)
    process = backend._workers[0].process
    backend.submit(1, 1)
    time.sleep(0.2)
    backend.close()
    assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them_even_in_an_evaluation_that_hangs():
    source = (
        "from blackbox.backends.processes import Processes\n"
        "from tests.engine.objectives_for_processes import hangs_at_one\n"
        "backend = Processes(hangs_at_one, 1)\n"
        "backend.submit(0, 0)\n"
        "while not backend.wait(): pass\n"
        "backend.submit(1, 1)\n"
        "print(backend._workers[0].process.pid, flush=True)\n"
        "backend.wait()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(child.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    child.terminate()
    assert child.wait() == -signal.SIGTERM
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        time.sleep(0.01)
    child.stdout.close()


@pytest.mark.parametrize("backend", ["inline", "ray"])
def test_a_time_limit_is_refused_where_evaluations_cannot_be_ended(backend):
    with pytest.raises(InvalidInput, match=r'use backend="processes"'):
        blackbox.backends.make(backend, objectives.square, timeout_seconds=1.0)


INTERRUPTED = """
import os, signal
import blackbox

def interrupt(result):
    if result.nfev == 5:
        os.killpg(0, signal.SIGINT)  # as a terminal does: the workers get it too

os.setpgrp()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    name = "tests.engine.objectives_for_processes:square"
    blackbox.minimize(name, [(-5, 5)], budget=10**6, backend="processes", n_workers=2, callback=interrupt)
except KeyboardInterrupt as error:
    print(error.result.nfev >= 5, error.result.fun is not None, error.__notes__[0])
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_without_a_word_and_prints_the_best():
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.stderr == ""
    assert ran.stdout.startswith("True True ")
    assert "the best value is" in ran.stdout
