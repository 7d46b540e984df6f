"""`blackbox db` beside a server that is writing, and on what it leaves."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from blackbox_server.store import SqlStore

from tests.end_to_end.service import Service, blackbox

SPACE = {"x": {"type": "float", "low": -5, "high": 5}}


def test_a_backup_taken_under_writes_has_everything_acknowledged_before_it(server: Service, tmp_path: Path) -> None:
    study = server.client().create_study(name="busy", space=SPACE, algorithm="random_search")
    stop, told = threading.Event(), [0]

    def work() -> None:
        client = server.client().study(study.id)
        while not stop.is_set():
            (trial,) = client.ask().trials
            client.tell(trial, trial.params["x"] ** 2)
            told[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(3):
            before = told[0]
            copied = blackbox(tmp_path, "db", "backup", f"copy{i}.db", "--database", str(server.database))
            assert copied.code == 0, copied.out + copied.err
            assert "sound" in copied.out
            checked = blackbox(tmp_path, "db", "check", "--database", str(server.database))
            assert checked.code == 0, checked.out + checked.err
            store = SqlStore(tmp_path / f"copy{i}.db")
            try:
                row = store.read(lambda tx: tx.study(study.id))
            finally:
                store.close()
            assert row is not None
            assert before <= row.used <= told[0] + 1
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(60)
    assert told[0] > 0
    refused = blackbox(tmp_path, "db", "upgrade", "--database", str(server.database))
    assert refused.code == 2
    assert "in use by the server" in refused.err


def test_a_wrong_counter_is_named_with_what_to_do(tmp_path: Path) -> None:
    with Service(tmp_path) as server:
        study = server.start().client().create_study(name="wrong", space=SPACE)
        server.terminate()
    with closing(sqlite3.connect(server.database)) as connection, connection:
        connection.execute("UPDATE studies SET seq = seq + 1")
    checked = blackbox(tmp_path, "db", "check", variables={"BLACKBOX_DATABASE": str(server.database)})
    assert checked.code == 1
    assert f"{study.id} 'wrong': 1 trials, 0 steps: seq is 2, its rows say 1" in checked.out
    assert "backup" in checked.err
    again = blackbox(tmp_path, "db", "upgrade", "--database", str(server.database))
    assert (again.code, again.out.split(":")[0]) == (0, "nothing to do")
