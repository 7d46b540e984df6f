"""Objectives that live at the top level of a module, so that they can be sent to worker processes."""

import os
import signal
import sys
import time


def square(x):
    return float((x**2).sum())


def dies_once(x):
    """Kills its process the first time it is called (a marker file remembers)."""
    marker = os.environ["BLACKBOX_TEST_MARKER"]
    if not os.path.exists(marker):
        with open(marker, "w") as file:
            file.write("dead")
        os._exit(9)
    return square(x)


def dies_at(x):
    """Kills its process at 1."""
    if x == 1:
        os._exit(9)
    return float(x)


def pauses(seconds):
    time.sleep(seconds)
    return seconds


def raises(x):
    raise ValueError("cannot do this one")


def unpicklable(x):
    return lambda: None


def slow_first(x):
    """The first call (in the whole run) takes long, the others do not."""
    marker = os.environ["BLACKBOX_TEST_MARKER"]
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return square(x)
    time.sleep(1.0)
    return square(x)


def sees_its_trial(x, evaluation):
    trial = evaluation.trial
    known = {"number": trial.number, "step": trial.step, "eval_seed": trial.eval_seed, **(trial.payload or {})}
    return {"value": square(x), "sums": known}


class Status(Exception):
    """Pickles, but does not unpickle: as `httpx.HTTPStatusError`."""

    def __init__(self, message, *, request):
        super().__init__(message)
        self.request = request


def raises_what_does_not_unpickle(x):
    raise Status("503 Service Unavailable", request="GET /score")


class Unreadable:
    """Pickles, but does not unpickle."""

    def __reduce__(self):
        return int, ("no number",)


def returns_what_does_not_unpickle(x):
    return Unreadable()


def quits(x):
    sys.exit("config.toml is missing")


def hangs_at_one(x):
    """Hangs at 1, deaf to SIGTERM."""
    if x == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return float(x)


def hangs_below_zero(x):
    if x[0] < 0:
        time.sleep(600)
    return square(x)


def raises_below_zero(x):
    if x[0] < 0:
        raise ValueError(f"no root of {x[0]:.1f}")
    return square(x)
