"""kill -9 at random moments: what was acknowledged is there, once; what was not is there once or not at all."""

import os
import random
import signal
import subprocess
import sys
import time

from blackbox_server.store import SqlStore
from contracts.store import S, head

from blackbox.study.rows import StudyRow

# Forks a writer for each line it reads: ten interpreters that import everything anew would take most of the time.
NURSERY = """
import os, sys, threading
from blackbox.study.rows import EventRow
from blackbox_server.store import SqlStore

def write(round_number):
    store = SqlStore(sys.argv[1])
    acknowledged = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)

    def work(tx, name):
        row = tx.study("st_one")
        row.seq += 1
        row.asks += 1
        tx.insert_event(EventRow("st_one", row.seq, name, 0.0, "{}"))
        if row.seq % 7 == 0:
            tx.put_blob("st_one", name, row.seq, bytes(50_000))
        tx.put_study(row)

    def worker(i):
        for n in range(10**9):
            name = f"{round_number}.{i}.{n}"
            store.write(lambda tx: work(tx, name))
            os.write(acknowledged, f"{name}\\n".encode())  # one system call: whole lines, whatever happens next

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        write(line.strip())
        os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def test_what_was_acknowledged_survives_kill_9_exactly_once(tmp_path):
    path, acknowledged = tmp_path / "crash.db", tmp_path / "acknowledged"
    acknowledged.touch()
    store = SqlStore(path)
    store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    store.close()
    moment = random.Random(5)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(path), str(acknowledged)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for round_number in range(10):
            size = acknowledged.stat().st_size
            nursery.stdin.write(f"{round_number}\n")
            pid = int(nursery.stdout.readline())
            while acknowledged.stat().st_size == size:
                time.sleep(0.001)
            time.sleep(moment.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == signal.SIGKILL

            store = SqlStore(path)  # the lock of the dead process is gone with it
            events, row = store.read(lambda tx: (tx.events(S, 0, 10**9), tx.study(S)))
            blobs = store.read(lambda tx, events=events: [tx.blob_at(S, event.seq) for event in events])
            store.close()
            told, names = acknowledged.read_text().split(), [event.type for event in events]
            assert len(set(names)) == len(names)
            assert set(told) <= set(names)
            assert len(names) - len(told) <= 4 * (round_number + 1)  # one work of each thread may be in doubt
            # Whole works or nothing: the counters, the events and the blobs agree.
            assert row is not None
            assert (row.seq, row.asks) == (len(events), len(events))
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert [blob is not None for blob in blobs] == [event.seq % 7 == 0 for event in events]
        nursery.stdin.close()
    assert {name.split(".")[0] for name in told} == {str(i) for i in range(10)}
