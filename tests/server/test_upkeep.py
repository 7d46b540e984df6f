"""What operators do to a database: `blackbox_server.store.upkeep`."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from blackbox_server.store import SqlStore, migrations, upkeep
from sqlalchemy import create_engine

from blackbox.errors import InvalidInput, StoreUnavailable

LEFT = Path(__file__).parents[1] / "upgrades" / "v0_1_0.sqlite"
"""A database with a study of every kind."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    copied = Path(shutil.copy(LEFT, tmp_path / "blackbox.db"))
    upkeep.upgrade(copied)
    return copied


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(sql).rowcount, sql


def faults(path: Path) -> dict[str, tuple[str, ...]]:
    """What is wrong, by the last part of the study's name."""
    return {study.name.rpartition("/")[2]: study.faults for study in upkeep.check(path).studies if study.faults}


# check ----------------------------------------------------------------------------------------------------------------


def test_a_database_as_it_should_be_is_sound(path: Path) -> None:
    health = upkeep.check(path)
    assert health.sound
    assert health.schema == migrations.HEAD
    assert len(health.studies) == 13
    assert sum(study.n_trials for study in health.studies) > 200


OF = "(SELECT id FROM heads WHERE name = '{}')"


@pytest.mark.parametrize(
    ("study", "sql", "words"),
    [
        ("group", "UPDATE studies SET queued = queued + 1 WHERE id = {}", "queued is 2, its rows say 1"),
        ("group", "UPDATE studies SET leased = 0 WHERE id = {}", "leased is 0, its rows say 3"),
        ("members", "UPDATE studies SET waiting = 7 WHERE id = {}", "waiting is 7, its rows say 0"),
        ("federated", "UPDATE studies SET waiting = 0 WHERE id = {}", "waiting is 0, its rows say 1"),
        ("region", "UPDATE studies SET used = 44 WHERE id = {}", "used is 44, its rows say 40"),
        ("group", "UPDATE studies SET used = 90 WHERE id = {}", "used is 90, its rows say 25 to 28"),
        ("region", "UPDATE studies SET seq = seq + 1 WHERE id = {}", "seq is 50, its rows say 49"),
        ("region", "UPDATE trials SET seq = 99 WHERE study = {} AND seq = 5", "with 49 numbers up to 99"),
        ("members", "UPDATE studies SET step = 16 WHERE id = {}", "step is 16, its rows say 17"),
        ("members", "UPDATE steps SET step = 40 WHERE study = {} AND step = 16", "are numbered 0 to 40"),
        ("members", "UPDATE steps SET upto_seq = 1 WHERE study = {} AND step = 9", "1 step records begin before"),
        ("members", "UPDATE studies SET best_trial = 3 WHERE id = {}", "the best trial is t_3 with"),
        ("region", "UPDATE studies SET best_value = 9.5 WHERE id = {}", "with 9.5, its rows say t_"),
        ("region", "UPDATE trials SET value = 1e-9 WHERE study = {} AND number = 7", "its rows say t_7 with 1e-09"),
        ("host", "UPDATE studies SET best_trial = 1, best_value = 2.0 WHERE id = {}", "and none has a value"),
        ("recipes", "DELETE FROM points WHERE study = {} AND number = 4", "1 trials without a point"),
        ("chosen", "DELETE FROM trials WHERE study = {} AND number = 2", "trials is 9, its rows say 8"),
        ("chosen", "UPDATE snapshots SET epoch = 4 WHERE study = {}", "1 snapshots of steps to come"),
        ("federated", "UPDATE contributions SET step = 9 WHERE study = {} AND step = 1", "counted by steps to come"),
        ("chosen", "UPDATE heads SET resolved = '[]' WHERE id = {}", "its spec cannot be read"),
    ],
)
def test_a_row_that_contradicts_others_is_found(path: Path, study: str, sql: str, words: str) -> None:
    change(path, sql.format(OF.format(study)))
    found = faults(path)
    assert list(found) == [study]
    assert any(words in fault for fault in found[study]), found


def test_rows_of_no_study_are_found(path: Path) -> None:
    change(path, "DELETE FROM studies WHERE id = " + OF.format("chosen"))
    change(path, "UPDATE blobs SET study = 'st_nobody' WHERE digest = (SELECT digest FROM blobs LIMIT 1)")
    health = upkeep.check(path)
    assert any("blobs belong to no study" in fault for fault in health.faults)
    assert any("has a spec and no row of its own" in fault for fault in health.faults)
    assert len(health.studies) == 12


def test_damaged_pages_are_found(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[40_000:120_000] = bytes(80_000)
    path.write_bytes(raw)
    health = upkeep.check(path)
    assert not health.sound
    assert health.faults
    assert health.studies == ()


def test_a_check_reads_beside_a_server_and_changes_nothing(path: Path) -> None:
    store = SqlStore(path)
    try:
        before = path.read_bytes()
        assert upkeep.check(path).sound
        assert path.read_bytes() == before
    finally:
        store.close()


@pytest.mark.parametrize("work", [upkeep.check, upkeep.upgrade])
def test_what_is_no_database_of_ours_is_refused(tmp_path: Path, work: object) -> None:
    assert callable(work)
    with pytest.raises(InvalidInput, match="there is no file"):
        work(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("not a database, and long enough to be read as one" * 20)
    with pytest.raises(InvalidInput, match="is not a database"):
        work(tmp_path / "text.db")


# upgrade --------------------------------------------------------------------------------------------------------------


def old_database(path: Path, schema: str) -> None:
    """An empty database as an earlier release would have made it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        connection.commit()
    engine.dispose()


def test_an_upgrade_says_what_it_did_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old_database(path, "0001")
    with pytest.raises(StoreUnavailable, match="schema 0001"):
        upkeep.check(path)
    done = upkeep.upgrade(path)
    assert [line[:6] for line in done[:2]] == ["0002: ", "0003: "]
    assert "CASE" in done[1]
    assert upkeep.upgrade(path) == []
    assert upkeep.check(path).sound


def test_an_upgrade_is_refused_while_a_server_holds_the_database(path: Path) -> None:
    store = SqlStore(path)
    try:
        with pytest.raises(StoreUnavailable, match="in use by the server"):
            upkeep.upgrade(path)
    finally:
        store.close()
    upkeep.upgrade(path)


# backup ---------------------------------------------------------------------------------------------------------------


def test_a_backup_is_one_checked_file_for_its_owner_alone(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups" / "monday.db"
    target.parent.mkdir()
    health = upkeep.backup(path, target)
    assert health.sound
    assert health.path == target
    assert [item.name for item in target.parent.iterdir()] == ["monday.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    store = SqlStore(target)
    try:
        assert len(store.read(lambda tx: tx.studies(None, "", 100))) == 13
    finally:
        store.close()


def test_a_backup_replaces_nothing_and_leaves_nothing_behind_when_it_fails(path: Path, tmp_path: Path) -> None:
    (tmp_path / "monday.db").write_text("mine")
    with pytest.raises(InvalidInput, match="replaces nothing"):
        upkeep.backup(path, tmp_path / "monday.db")
    assert (tmp_path / "monday.db").read_text() == "mine"
    with pytest.raises(InvalidInput, match="there is no folder"):
        upkeep.backup(path, tmp_path / "nowhere" / "monday.db")
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises((StoreUnavailable, InvalidInput)):
        upkeep.backup(path, tmp_path / "tuesday.db")
    assert not list(tmp_path.glob(".tuesday*"))
    assert not (tmp_path / "tuesday.db").exists()


def test_a_backup_of_a_database_with_a_fault_is_kept_and_says_so(path: Path, tmp_path: Path) -> None:
    change(path, "UPDATE studies SET queued = 5 WHERE id = " + OF.format("group"))
    health = upkeep.backup(path, tmp_path / "copy.db")
    assert not health.sound
    assert (tmp_path / "copy.db").exists()
