"""The store on SQLite: the contract of all stores, and what only it can break."""

import sqlite3
import threading
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from blackbox_server.store import SqlStore, migrations, sql
from blackbox_server.store.tables import metadata
from blackbox_server.store.verbs import SqlTx
from blackbox_server.store.verbs.trials import PUT_TRIAL
from contracts.store import S, StoreContract, head, insert, leased, queued, tell
from sqlalchemy import create_engine

from blackbox.errors import InvalidInput, NonFiniteValue, StoreUnavailable
from blackbox.study import rows
from blackbox.study.rows import CANCELLED, EventRow, LateRow, SnapshotRow, StepRow, StudyRow, TrialRow


@pytest.fixture
def path(tmp_path):
    return tmp_path / "blackbox.db"


@pytest.fixture
def store(path):
    opened = SqlStore(path)
    yield opened
    opened.close()


@pytest.fixture
def study(store):
    store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    return store


class TestSqlStore(StoreContract):
    @pytest.fixture
    def store(self, path):
        opened = SqlStore(path)
        yield opened
        opened.close()


def statements(store):
    """What the writing connection is told from now on."""
    heard = []
    store.write(lambda tx: tx.connection.set_trace_callback(heard.append))
    return heard


# Durability and groups ------------------------------------------------------------------------------------------------


def test_the_writing_connection_is_durable_and_says_so_itself(store):
    assert store.pragmas() == {
        "journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 4000, "foreign_keys": 1, "busy_timeout": 0,
    }  # fmt: skip


def test_a_connection_that_would_not_be_durable_is_refused(path, monkeypatch):
    monkeypatch.setattr(sql, "_pragmas", lambda connection: {"journal_mode": "delete", "synchronous": 2})
    with pytest.raises(StoreUnavailable, match="would not be durable"):
        SqlStore(path)
    monkeypatch.undo()
    SqlStore(path).close()  # and it let go of the lock


def test_what_was_written_is_there_after_reopening(path):
    store = SqlStore(path)
    store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    store.close()
    store = SqlStore(path)
    assert store.read(lambda tx: tx.head(S)) == head()
    store.close()
    assert not Path(f"{path}-wal").exists()


def failing(tx):
    insert(tx, queued(2), leased(3))
    raise ZeroDivisionError


def test_works_of_a_group_share_a_commit(study):
    heard = statements(study)
    group = study.begin()
    for n in range(1, 21):
        assert group.run(lambda tx, n=n: insert(tx, queued(n))) == (None, None)
    group.commit()
    assert heard.count("COMMIT") == 2  # of the work that set the trace, and of all the others
    assert len(study.read(lambda tx: tx.open_trials(S))) == 20


def test_a_work_that_fails_inside_a_group_does_not_hurt_its_neighbours(study):
    group = study.begin()
    assert group.run(lambda tx: insert(tx, queued(1))) == (None, None)
    for _ in range(2):
        value, failure = group.run(failing)
        assert value is None
        assert type(failure) is ZeroDivisionError
    assert group.run(lambda tx: insert(tx, queued(2))) == (None, None)
    group.commit()
    assert study.read(lambda tx: tx.open_trials(S)) == [queued(1), queued(2)]


def test_a_group_that_begins_with_failures_keeps_what_comes_after(study):
    group = study.begin()
    for _ in range(3):
        assert type(group.run(failing)[1]) is ZeroDivisionError
    group.run(lambda tx: insert(tx, queued(1)))
    group.commit()
    with pytest.raises(ZeroDivisionError):
        study.write(failing)
    assert study.read(lambda tx: tx.open_trials(S)) == [queued(1)]


def test_readers_see_only_what_was_committed_and_wait_for_nobody(study):
    group = study.begin()
    group.run(lambda tx: insert(tx, queued(1)))
    assert study.read(lambda tx: tx.trial(S, 1)) is None
    group.commit()
    assert study.read(lambda tx: tx.trial(S, 1)) == queued(1)


def test_a_group_may_be_committed_by_another_thread(study):
    group = study.begin()
    group.run(lambda tx: insert(tx, queued(1)))
    thread = threading.Thread(target=group.commit)
    thread.start()
    study.write(lambda tx: insert(tx, queued(2)))  # waits for it
    thread.join()
    assert study.read(lambda tx: tx.open_trials(S)) == [queued(1), queued(2)]


def test_one_writes_at_a_time(study):
    group = study.begin()
    assert study.try_begin(wait=False) is None
    group.commit()
    study.try_begin(wait=False).commit()


def test_a_work_that_writes_by_the_store_is_told_so_and_does_not_wait_for_itself(study):
    with pytest.raises(RuntimeError, match="would wait for itself"):
        study.write(lambda tx: study.write(lambda tx: None))


def test_a_read_sees_one_moment_however_long_it_takes(study):
    def work(tx):
        before = tx.trial(S, 1)
        study.write(lambda tx: insert(tx, queued(1)))
        return before, tx.trial(S, 1)

    assert study.read(work) == (None, None)
    assert study.read(lambda tx: tx.trial(S, 1)) == queued(1)


def test_a_read_that_writes_is_refused(study):
    with pytest.raises(RuntimeError, match=r"store\.read tried to write"):
        study.read(lambda tx: insert(tx, queued(1)))
    assert study.read(lambda tx: tx.trial(S, 1)) is None


def test_closing_waits_for_what_is_open_and_refuses_what_comes_later(path):
    store = SqlStore(path)
    store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    group = store.begin()
    closing = threading.Thread(target=store.close)
    closing.start()
    group.run(lambda tx: insert(tx, queued(1)))
    group.commit()
    closing.join(10)
    for call in (store.write, store.read, lambda work: store.begin(), lambda work: store.try_begin()):
        with pytest.raises(StoreUnavailable, match="closed"):
            call(lambda tx: None)
    store.close()
    store = SqlStore(path)
    assert store.read(lambda tx: tx.open_trials(S)) == [queued(1)]
    store.close()


# The database fails ---------------------------------------------------------------------------------------------------


def test_a_full_disk_fails_the_group_and_the_next_work_finds_the_store_well(study):
    def fill_the_disk(tx):
        tx.connection.execute("PRAGMA max_page_count = 1")  # SQLite raises it to what is in use
        tx.put_blob(S, "d", 0, bytes(1_000_000))

    group = study.begin()
    assert group.run(lambda tx: insert(tx, queued(1))) == (None, None)
    with pytest.raises(StoreUnavailable, match="full"):
        group.run(fill_the_disk)
    assert study.read(lambda tx: (tx.trial(S, 1), tx.blob(S, "d"))) == (None, None)
    study.write(lambda tx: insert(tx, queued(1)))
    assert study.pragmas()["synchronous"] == 2
    assert study.read(lambda tx: tx.trial(S, 1)) == queued(1)


def test_a_commit_that_fails_acknowledges_nothing_and_the_store_reopens(path, monkeypatch):
    class Failing(sqlite3.Connection):
        broken = False

        def execute(self, statement, *arguments):
            if statement == "COMMIT" and Failing.broken:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sql.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Failing))
    store = SqlStore(path)
    store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    connections = [store.write(lambda tx: id(tx.connection))]
    Failing.broken = True
    group = store.begin()
    group.run(lambda tx: insert(tx, queued(1)))
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        group.commit()
    Failing.broken = False
    connections.append(store.write(lambda tx: id(tx.connection)))
    assert store.read(lambda tx: tx.trial(S, 1)) is None
    store.write(lambda tx: insert(tx, queued(1)))
    store.close()


def test_a_database_held_by_another_program_is_waited_for_a_while(path, monkeypatch):
    monkeypatch.setattr(sql, "BUSY_SECONDS", 0.05)
    store = SqlStore(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert store.try_begin() is None
    for call in (store.begin, lambda: store.try_begin(again=False), lambda: store.write(lambda tx: None)):
        with pytest.raises(StoreUnavailable, match="locked"):
            call()
    monkeypatch.setattr(sql, "BUSY_SECONDS", 10.0)
    threading.Timer(0.02, lambda: other.execute("ROLLBACK")).start()
    store.write(lambda tx: None)
    other.close()
    store.close()


def test_a_row_that_breaks_a_check_fails_its_own_work_only(study):
    for bad in (
        lambda tx: insert(tx, replace(leased(1), until=None)),
        lambda tx: insert(tx, replace(leased(1), attempt=0)),
        lambda tx: insert(tx, replace(queued(1), state="COMPLETED")),
        lambda tx: insert(tx, replace(queued(1), state="DONE")),
        lambda tx: tx.put_study(StudyRow(S, queued=-1)),
        lambda tx: tx.put_study(StudyRow(S, leased=-1)),
        lambda tx: tx.put_study(StudyRow(S, leased=2, trials=1)),
        lambda tx: tx.put_study(StudyRow(S, state="DONE")),
    ):
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            study.write(bad)


def test_nan_is_refused_because_sqlite_would_make_it_null(study):
    nan = float("nan")
    study.write(lambda tx: insert(tx, leased(1)))
    for bad in (
        lambda tx: tell(tx, 1, 1, nan),
        lambda tx: insert(tx, leased(2, until=nan)),
        lambda tx: tx.put_study(StudyRow(S, best_value=nan)),
        lambda tx: tx.put_study(StudyRow(S, cost=nan)),
        lambda tx: tx.insert_late(LateRow(S, 1, 1, None, 1.0, nan, None)),
    ):
        with pytest.raises(NonFiniteValue, match="NaN"):
            study.write(bad)


# Opening --------------------------------------------------------------------------------------------------------------


def test_a_second_server_is_refused_with_the_process_id_of_the_first(path, store):
    import os

    with pytest.raises(StoreUnavailable, match=f"process id {os.getpid()}"):
        SqlStore(f"{path.parent}/../{path.parent.name}/{path.name}")


def test_a_file_is_named_by_path_or_url_and_nothing_else_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("a.db", "a.db"),
        ("sqlite:///b.db", "b.db"),
        (f"sqlite:///{tmp_path}/c.db", "c.db"),
        (tmp_path / "d.db", "d.db"),
    ):
        store = SqlStore(given)
        assert store.path == tmp_path / expected
        store.close()
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600
    for given in (":memory:", "sqlite://", ""):
        with pytest.raises(InvalidInput, match="MemoryStore"):
            SqlStore(given)
    with pytest.raises(InvalidInput, match="SQLite only") as caught:
        SqlStore("postgresql://user:hunter2@host/db")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidInput, match="no folder"):
        SqlStore(tmp_path / "nowhere" / "x.db")
    with pytest.raises(InvalidInput, match="synchronous"):
        SqlStore(tmp_path / "x.db", synchronous="SOMETIMES")


def test_a_database_of_a_newer_version_is_refused(path):
    SqlStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreUnavailable, match="newer blackbox-zoo"):
        SqlStore(path)


def test_a_file_of_something_else_is_not_touched(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="recipes"):
        SqlStore(path)
    assert path.read_bytes() == before
    path.write_bytes(b"Dear diary, " * 500)
    with pytest.raises(InvalidInput, match="not a database"):
        SqlStore(path)


# The schema -----------------------------------------------------------------------------------------------------------


def test_tables_and_migrations_agree(path):
    SqlStore(path).close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_tables_and_migrations_agree_to_the_letter(path):
    """Alembic compares neither CHECK constraints nor the conditions of indices."""
    SqlStore(path).close()
    engine = create_engine(f"sqlite:///{path}.other")
    metadata.create_all(engine)
    engine.dispose()

    def schema(file):
        connection = sqlite3.connect(file)
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        connection.close()
        return {name: sorted(part.strip().rstrip(",") for part in text.splitlines()) for name, text in found}

    migrated = schema(path)
    del migrated["alembic_version"]
    assert migrated == schema(f"{path}.other")


def test_a_database_from_before_the_rounds_opens_and_works(path):
    store = SqlStore(path)
    store.write(lambda tx: (tx.insert_study(head(), StudyRow(S)), insert(tx, queued(1), leased(2)), tell(tx, 2, 1)))
    store.close()
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    old = path.with_name("old.db")
    engine = create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    with sqlite3.connect(old) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        connection.execute(f"ATTACH '{path}' AS new")
        for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            if name != "alembic_version":
                there = connection.execute(f"SELECT name FROM pragma_table_info('{name}', 'main')").fetchall()
                columns = ", ".join(f'"{column}"' for (column,) in there)
                connection.execute(f"INSERT INTO main.{name} ({columns}) SELECT {columns} FROM new.{name}")
    connection.close()
    store = SqlStore(old)
    assert store.read(lambda tx: (tx.head(S), tx.trial(S, 1))) == (head(), queued(1))
    assert [trial.number for trial in store.read(lambda tx: tx.told(S, 0, 9))] == [2]
    store.write(lambda tx: tx.put_member(rows.MemberRow(S, "a", 1.0)))
    store.write(lambda tx: tx.insert_contribution(rows.ContributionRow(S, 2, "a", 0, "local", 1.0, b"x")))
    assert len(store.read(lambda tx: tx.waiting_contributions(S))) == 1
    store.close()
    with sqlite3.connect(old) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (migrations.HEAD,)
    connection.close()


def test_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_each_table_has_the_fields_of_its_row_type_in_their_order():
    for name, row in {
        "heads": rows.StudyHead, "studies": StudyRow, "trials": TrialRow, "points": rows.PointRow, "steps": StepRow,
        "events": EventRow, "late": LateRow, "snapshots": SnapshotRow, "keys": rows.KeyRow, "replies": rows.ReplyRow,
        "members": rows.MemberRow, "contributions": rows.ContributionRow, "updates": rows.UpdateRow,
        "interim": rows.InterimRow,
    }.items():  # fmt: skip
        assert [column.name for column in metadata.tables[name].columns] == [field.name for field in fields(row)], name


# The cost of the hot verbs --------------------------------------------------------------------------------------------

HOT = {
    "study": lambda tx: tx.study(S),
    "put_study": lambda tx: tx.put_study(tx.study(S)),
    "insert_trials": lambda tx: insert(tx, leased(10**6, 10**6, study=S), queued(10**6 + 1, 10**6, study=S)),
    "trial": lambda tx: tx.trial(S, 1),
    "put_trial": lambda tx: tx.put_trial(replace(tx.trial(S, 1), until=7.0)),
    "points": lambda tx: tx.points(S, [1, 2, 3]),
    "point": lambda tx: tx.points(S, [2]),
    "queued": lambda tx: tx.queued(S, 10),
    "lapsed": lambda tx: tx.lapsed(S, 110.0, 10),
    "told": lambda tx: tx.told(S, 0, 1),
    "lanes_at": lambda tx: tx.lanes_at(S, 0),
    "open_trials": lambda tx: tx.open_trials(S),
    "leased_under": lambda tx: tx.leased_under(S, "key 1"),
    "leased_by": lambda tx: tx.leased_by(S, "w"),
    "supersede": lambda tx: tx.supersede(S, 10**5, 10**5),
    "insert_steps": lambda tx: tx.insert_steps([StepRow(S, 10**6, 1, "need", None, 10**6, 1.0, 3)]),
    "steps_logged": lambda tx: tx.steps_logged(S, 10**6, 10),
    "events": lambda tx: tx.events(S, 10**6, 10),
    "late": lambda tx: tx.late(S, 10**6, 10),
    "snapshot": lambda tx: tx.snapshot(S, 0, 10**6),
    "put_blob": lambda tx: tx.put_blob(S, "new", 10**6, bytes(100_000)),
}


def hot_costs(study):
    """Instructions of SQLite's machine per hot verb; independent of clocks. What the verbs did is undone."""
    costs = {}

    def measure(tx, verb):
        steps = [0]

        def count():
            steps[0] += 1

        tx.connection.set_progress_handler(count, 1)
        HOT[verb](tx)
        tx.connection.set_progress_handler(None, 1)
        costs[verb] = steps[0]
        raise ZeroDivisionError

    for verb in HOT:
        with pytest.raises(ZeroDivisionError):
            study.write(lambda tx, verb=verb: measure(tx, verb))
    return costs


def test_hot_verbs_cost_the_same_in_a_study_of_five_thousand_trials(study):
    study.write(lambda tx: insert(tx, leased(1, 0, 0), queued(2, 0, 1), queued(3, 0, -3)))
    small = hot_costs(study)

    def fill(tx):
        closed = [replace(leased(n, n // 8, n % 8), state="COMPLETED", seq=n, value=1.0) for n in range(4, 4500)]
        closed += [replace(queued(n, n // 8, n % 8), state=CANCELLED) for n in range(4500, 5000)]
        insert(tx, *closed)
        for n in range(4, 1000):
            tx.insert_steps([StepRow(S, n, n, "need", None, n, 1.0, 3)])
            tx.insert_event(EventRow(S, n, "study.paused", 1.0, "{}"))
            tx.insert_late(LateRow(S, n, n, None, 1.0, 1.0, None))
            tx.put_blob(S, f"d{n}", n, b"x")

    study.write(fill)
    # Lanes of the first step: 4 of the trials that filled the study are in it.
    large = hot_costs(study)
    grown = {verb: (small[verb], large[verb]) for verb in HOT if large[verb] > small[verb] + 40}
    assert not grown


def test_hot_verbs_search_indices_and_sort_nothing(study):
    heard = []

    class Recording(sqlite3.Connection):
        def execute(self, statement, *arguments):
            heard.append(statement)
            return super().execute(statement, *arguments)

        def executemany(self, statement, *arguments):
            heard.append(statement)
            return super().executemany(statement, *arguments)

    study.write(lambda tx: insert(tx, leased(1), queued(2), queued(3)))
    connection = sqlite3.connect(study.path, isolation_level=None, factory=Recording)
    for verb in HOT:
        connection.execute("BEGIN")
        heard.clear()
        HOT[verb](SqlTx(connection))
        for statement in [text for text in heard if text.split()[0] in ("SELECT", "UPDATE", "DELETE")]:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * count_marks(statement))
            for detail in (row[3] for row in plan):
                assert not detail.startswith("SCAN") or "json_each" in detail, (verb, detail)
                assert "TEMP B-TREE" not in detail, (verb, detail)
                # A search by the study alone reads all its rows; that may be done only with what is open.
                if detail.endswith("(study=?)"):
                    assert any(name in detail for name in ("trials_queued", "trials_enqueued", "trials_leased")), verb
        connection.execute("ROLLBACK")
    connection.close()


def count_marks(statement):
    numbered = [
        int(mark[1:].split()[0].rstrip("),"))
        for mark in statement.split(" ")
        if mark[:1] == "?" and mark[1:2].isdigit()
    ]
    return max(numbered, default=statement.count("?"))


def test_changing_a_trial_rewrites_only_the_indices_of_what_changes(study):
    def pages(tx):
        written = tx.connection.execute(f"EXPLAIN {PUT_TRIAL}", [1] * PUT_TRIAL.count("?"))
        roots = {row[3] for row in written if row[1] == "OpenWrite"}
        names = tx.connection.execute("SELECT name, rootpage FROM sqlite_master WHERE tbl_name = 'trials'")
        return {name for name, root in names if root in roots}

    assert study.read(pages) == {
        "trials", "trials_enqueued", "trials_queued", "trials_leased", "trials_asked", "trials_told",
        "trials_withdrawn",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["commit", "run"])
def test_an_interrupt_stays_an_interrupt_and_the_store_goes_on(path, monkeypatch, where):
    store = SqlStore(path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    group = store.begin()
    if where == "run":
        monkeypatch.setattr(sql, "_attempt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            group.run(lambda tx: None)
    else:
        group._connection = SimpleNamespace(execute=interrupted)
        with pytest.raises(KeyboardInterrupt):
            group.commit()
    monkeypatch.undo()
    assert store.write(lambda tx: 1) == 1
    store.close()
