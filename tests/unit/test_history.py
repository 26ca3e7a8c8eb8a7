"""The history: what is added comes back, in pages, and a bad file stops nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from conmon.record import Record, Tls
from monitor.cli.output import json_line
from monitor.errors import SourceError
from monitor.history import History, HistoryQuery, store
from monitor.history.schema import VERSION

KEEP = {"max_age_s": 86_400, "max_bytes": 10**9}


def record(number, **changes):
    made = Record(id=f"aaaaaaaa-{number:x}", state="closed", uid=number % 3, pid=number)
    return made._replace(comm=f"c{number % 5}", host=f"h{number % 7}.example")._replace(**changes)


@pytest.fixture
def said():
    return []


@pytest.fixture
def history(tmp_path, said):
    history = History.open(tmp_path / "state" / "history.db", **KEEP, say=said.append)
    yield history
    history.close()
    assert not said


def add(history, records):
    for one in records:
        history.add(one, json_line(one))


def ids(page):
    return [Record.from_json(body).id for body in page.bodies]


def test_every_record_comes_back_newest_first_page_by_page(history):
    records = [record(number) for number in range(23)]
    add(history, records)
    got, before = [], None
    while True:
        page = history.query(HistoryQuery(limit=5, before=before))
        got += ids(page)
        before = page.next
        if before is None:
            break
    assert got == [one.id for one in reversed(records)]
    assert ids(history.query(HistoryQuery(order="oldest", limit=2))) == [r.id for r in records[:2]]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"pid": 11}, {11}),
        ({"comm": "c3", "uid": 0}, {3, 18}),
        ({"host": "h6.example"}, {6, 13, 20}),
        ({"host": "typed.example"}, {7, 8}),
        ({"uid_only": 1, "uid": 2}, set()),
        ({"failed": True}, {4, 12}),
        ({"unused": True}, {10}),
        ({"unused": True, "failed": True}, set()),
        ({"slow_us": 5000}, {9, 12}),
        ({"unit": "ssh"}, {2}),
        ({"container": "abc"}, {5}),
        ({"until_ns": 1}, set()),
        ({"comm": "c' OR 1 --"}, set()),
        ({"exe": ("c*",), "comm": "c2"}, {2}),
        ({"exe": ("/opt/a b/*",)}, {2, 3}),
        ({"exe": ("nothing",)}, set()),
    ],
)
def test_filters(history, query, wanted):
    records = [record(number) for number in range(23)]
    records[4] = record(4, state="failed")
    records[9] = record(9, tls_us=5000)
    records[2] = record(2, unit="ssh.service", exe="/opt/a b/c2")
    records[3] = record(3, exe="/opt/a b/d")
    records[10] = record(10, tls=Tls(source="wire", result="unused"))
    records[12] = record(12, state="failed", error="ENODATA", sockconn_us=7, duration_us=5100)
    records[5] = record(5, container="abcdef")
    records[7], records[8] = record(7, host="Typed.example"), record(8, host="typed.EXAMPLE.")
    add(history, records)
    assert set(ids(history.query(HistoryQuery(**query)))) == {f"aaaaaaaa-{n:x}" for n in wanted}


def test_one_record_only_for_its_owner(history):
    add(history, [record(4)])
    body = history.get("aaaaaaaa-4", None)
    assert Record.from_json(body) == record(4)
    assert history.get("aaaaaaaa-4", 1) == body
    assert history.get("aaaaaaaa-4", 2) is None
    assert history.get("aaaaaaaa-5", None) is None


def test_the_newest_record_of_a_socket(history):
    add(history, [record(4), record(4, id="aaaaaaaa-4.1f", host="again"), record(0x4F)])
    assert Record.from_json(history.get("aaaaaaaa-4", None)).host == "h4.example"
    assert Record.from_json(history.get("aaaaaaaa-4.1f", None)).host == "again"
    assert Record.from_json(history.get("aaaaaaaa-4", None, newest=True)).host == "again"
    assert history.get("aaaaaaaa-4", 2, newest=True) is None
    assert Record.from_json(history.get("aaaaaaaa-4f", None, newest=True)).id == "aaaaaaaa-4f"
    assert history.get("aaaaaaaa-5", None, newest=True) is None


@pytest.mark.parametrize("before", ["x", "-1", "9" * 20])
def test_a_wrong_cursor_is_an_error(history, before):
    with pytest.raises(SourceError, match="before must be"):
        history.query(HistoryQuery(before=before))


def test_names_of_strangers_are_kept(history):
    odd = record(1, comm="\ud800\x1b[31m", host="a\x00b")
    add(history, [odd])
    assert Record.from_json(history.get(odd.id, None)) == odd


def test_the_file_is_for_its_owner_alone(history):
    add(history, [record(1)])
    history.flush()
    assert os.stat(history.path).st_mode & 0o777 == 0o600
    assert os.stat(history.path.parent).st_mode & 0o777 == 0o700


def test_what_was_written_is_there_after_a_restart(tmp_path, said):
    for _ in range(2):
        history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
        add(history, [record(1)])
        history.close()
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    assert counted(history) == 2
    history.close()
    assert not said


def test_old_records_go(tmp_path, said):
    history = History.open(tmp_path / "h.db", max_age_s=-60, max_bytes=10**9, say=said.append)
    add(history, [record(1)])
    history.flush()
    history.close()
    database = sqlite3.connect(tmp_path / "h.db")
    assert database.execute("SELECT count(*) FROM body").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize(
    "content", [b"not a database" * 999, b"SQLite format 3\0" + b"\xff" * 9000]
)
def test_a_broken_file_is_set_aside(tmp_path, said, content):
    (tmp_path / "h.db").write_bytes(content)
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    add(history, [record(1)])
    assert len(history.query(HistoryQuery()).bodies) == 1
    history.close()
    assert len(said) == 1
    (aside,) = tmp_path.glob("h.db.broken-*")
    assert aside.read_bytes() == content


def test_a_file_of_a_later_version_is_set_aside(tmp_path, said):
    with sqlite3.connect(tmp_path / "h.db") as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    history.close()
    assert history.error is None
    assert "schema" in said[0]


def test_a_second_daemon_keeps_none_there(history, said):
    other = History.open(history.path, **KEEP, say=said.append)
    other.add(record(1), b"{}")
    assert other.dropped == 1
    assert not other.status().enabled
    other.close()
    assert "another conmond" in said.pop()


def test_a_full_disk_is_said_and_counted(tmp_path):
    script = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
from tests.unit.test_history import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
history = History.open({str(tmp_path / "h.db")!r}, **KEEP, say=said.append)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
for turn in range(9):
    add(history, [record(n, comm=f"{{n * 7919}}") for n in range(500)])
    history.flush(5)
status = history.status()
assert status.dropped and status.error, status
assert len(said) == 1, said
history.close()
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def change(path, statement):
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()


@pytest.fixture
def written(tmp_path, said):
    """The file of a history that holds eleven records."""
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    add(history, [record(number) for number in range(11)])
    history.close()
    return tmp_path / "h.db"


def test_one_record_dated_wrongly_takes_no_others_with_it(written, said):
    change(written, "UPDATE record SET ended_us = 1 WHERE seq = 7")  # the clock was not set yet
    history = History.open(written, **KEEP, say=said.append)
    assert counted(history) == 11
    assert history._forget_some()
    assert history.status().records == 10
    assert len(history.query(HistoryQuery()).bodies) == 10
    history.close()


def counted(history):
    """How many there are, once the writer has counted those of before."""
    end = time.monotonic() + 5
    while history.status().records is None and time.monotonic() < end:
        time.sleep(0.001)
    return history.status().records


@pytest.mark.parametrize("data", ["0011", "ffff", ""])
def test_a_damaged_record_is_left_out_and_counted(written, said, data):
    change(written, f"UPDATE body SET data = x'{data}' WHERE seq = 7")
    history = History.open(written, **KEEP, say=said.append)
    page = history.query(HistoryQuery())
    assert (len(page.bodies), page.damaged) == (10, 1)
    history.close()


def test_few_files_that_were_set_aside_are_kept(tmp_path, said):
    for number in range(6):
        (tmp_path / f"h.db.broken-{number}").write_text("")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"h.db.broken-{number}{suffix}").write_text("")
        for path in tmp_path.glob(f"h.db.broken-{number}*"):
            os.utime(path, (number, number))
    (tmp_path / "h.db").write_bytes(b"no database at all" * 100)
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    history.close()
    kept = sorted(path.name for path in tmp_path.glob("h.db.broken-?"))
    assert kept == ["h.db.broken-4", "h.db.broken-5"]
    assert len(list(tmp_path.glob("h.db.broken-*"))) <= 9


def test_a_file_that_shrank_gives_room_back(tmp_path, said):
    history = History.open(tmp_path / "h.db", max_age_s=10**9, max_bytes=10**9, say=said.append)
    for number in range(4000):
        add(history, [record(number)])
        if number % 1000 == 999:
            history.flush(5)
    history.close()
    large = os.stat(tmp_path / "h.db").st_size
    history = History.open(tmp_path / "h.db", max_age_s=-60, max_bytes=10**9, say=said.append)
    assert counted(history) is not None
    while history._forget_some():
        pass
    history.close()
    assert os.stat(tmp_path / "h.db").st_size < large / 2
    assert not said


@pytest.mark.parametrize(
    "damage",
    ["UPDATE meta SET value = x'00'", "UPDATE meta SET value = 7", "DROP TABLE record"],
)
def test_a_file_that_lacks_what_it_needs_is_set_aside(written, said, damage):
    change(written, damage)
    history = History.open(written, **KEEP, say=said.append)
    add(history, [record(1)])
    assert len(history.query(HistoryQuery()).bodies) == 1
    history.close()
    assert len(said) == 1
    assert list(written.parent.glob("h.db.broken-*"))


def test_a_foreign_database_is_set_aside(tmp_path, said):
    change(tmp_path / "h.db", "CREATE TABLE record (x)")
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    assert history.status().enabled
    history.close()
    assert len(said) == 1


def test_how_it_does_is_said_while_a_slow_question_runs(history):
    add(history, [record(1)])
    history.flush(5)
    for reader in history._readers:
        reader.lock.acquire()  # as a question holds it
    status = history.status()
    for reader in history._readers:
        reader.lock.release()
    assert status.records == 1
    assert status.oldest_ns is not None


def test_a_question_does_not_wait_for_another(history):
    add(history, [record(1)])
    history.flush(5)
    first, second = history._readers
    with first.lock:  # as a slow one holds it
        assert len(history.query(HistoryQuery()).bodies) == 1
    assert second.database is None  # a megabyte that is seldom needed
    assert len(history.query(HistoryQuery()).bodies) == 1


# -- what cannot be opened, locked, renamed or read ---------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    """What failed is tried again at once."""
    monkeypatch.setattr(store, "_RETRY_S", 0.0)
    monkeypatch.setattr(store, "_RETRY_SOON_S", 0.0)
    monkeypatch.setattr(store, "_BATCH_S", 0.01)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_disk_that_is_full_at_the_start_is_tried_again(tmp_path, said, soon, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(store.History, "_connect", raising(full))
        history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
        assert not history.status().enabled
        add(history, [record(1)])
        assert (history.dropped, history.status().error) == (1, "No space left on device")
        history.flush(9)  # waits for nothing
        assert history.get("aaaaaaaa-1", None) is None
        with pytest.raises(SourceError, match="No space left"):
            history.query(HistoryQuery())
    until(lambda: history.status().enabled)
    add(history, [record(2)])
    assert ids(history.query(HistoryQuery())) == ["aaaaaaaa-2"]
    assert history.status().error is None
    history.close()
    assert len(said) == 2, said


def raising(exc):
    def failing(*_args, **_words):
        raise exc

    return failing


def test_a_history_is_kept_once_the_other_daemon_is_gone(tmp_path, said, soon):
    first = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    second = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    add(first, [record(1)])
    assert not second.status().enabled
    first.close()
    until(lambda: second.status().enabled)
    add(second, [record(2)])
    assert ids(second.query(HistoryQuery())) == ["aaaaaaaa-2", "aaaaaaaa-1"]
    second.close()
    assert "another conmond" in said[0]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_broken_file_that_cannot_be_set_aside_is_said(written, said, soon, monkeypatch, code):
    history = History.open(written, **KEEP, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", raising(OSError(code, os.strerror(code))))
        patch.setattr(
            history, "_insert", raising(sqlite3.DatabaseError("database disk image is malformed"))
        )
        add(history, [record(1)])
        until(lambda: history.status().error == os.strerror(code))
        assert history.dropped == 1
        assert history._thread.is_alive()
    add(history, [record(2)])
    until(lambda: history.status().enabled)
    add(history, [record(3)])
    assert "aaaaaaaa-3" in ids(history.query(HistoryQuery()))
    assert history.status().error is None
    history.close()


def test_whatever_happens_the_writer_goes_on(history, said, soon, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(history, "_insert", raising(RuntimeError("of a kind nobody thought of")))
        add(history, [record(1)])
        until(lambda: history.status().error == "of a kind nobody thought of")
    assert history.dropped == 1
    add(history, [record(2)])
    assert ids(history.query(HistoryQuery())) == ["aaaaaaaa-2"]
    assert len(said) == 2, said
    said.clear()


def test_a_writer_that_is_dead_is_said_and_not_waited_for(tmp_path, said):
    history = History.open(tmp_path / "h.db", **KEEP, say=said.append)
    thread = history._thread
    history._thread = threading.Thread(target=print)  # never started
    status = history.status()
    assert (status.enabled, status.error) == (False, "its thread has ended")
    add(history, [record(1)])
    assert history.dropped == 1
    started = time.monotonic()
    history.flush(5)
    assert time.monotonic() - started < 1
    history._thread = thread
    history.close()


def test_damage_that_a_question_comes_across_gets_the_file_set_aside(written, said, soon):
    history = History.open(written, **KEEP, say=said.append)
    assert counted(history) == 11
    change(written, "DROP TABLE body")
    with pytest.raises(SourceError, match="no such table"):
        history.get("aaaaaaaa-1", None)
    until(lambda: list(written.parent.glob("h.db.broken-*")) and history.status().enabled)
    add(history, [record(1)])
    assert ids(history.query(HistoryQuery())) == ["aaaaaaaa-1"]
    history.close()
    assert len(said) == 1, said


def test_one_damaged_record_does_not_get_the_file_set_aside(written, said, soon):
    change(written, "UPDATE body SET data = x'ffff' WHERE seq = 7")
    history = History.open(written, **KEEP, say=said.append)
    with pytest.raises(SourceError, match="malformed"):
        history.get("aaaaaaaa-6", None)
    add(history, [record(50)])
    assert len(history.query(HistoryQuery()).bodies) == 11
    history.close()
    assert not said


# -- what others do to the file meanwhile ------------------------------------------------------


def delete(path):
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


def delete_folder(path):
    shutil.rmtree(path.parent)


def replace_with_nothing(path):
    path.with_name("empty").touch()
    path.with_name("empty").rename(path)


def replace_with_another(path):
    other = History.open(path.with_name("other") / "h.db", **KEEP, say=print)
    other.close()
    delete(path)
    (path.with_name("other") / "h.db").rename(path)


def delete_log(path):
    path.with_name(path.name + "-wal").unlink()


@pytest.mark.parametrize(
    "meddle", [delete, delete_folder, replace_with_nothing, replace_with_another, delete_log]
)
def test_a_file_that_others_take_away_is_noticed_counted_and_begun_anew(tmp_path, said, meddle):
    history = History.open(tmp_path / "state" / "h.db", **KEEP, say=said.append)
    add(history, [record(1), record(2)])
    assert len(history.query(HistoryQuery()).bodies) == 2
    meddle(history.path)
    add(history, [record(3)])
    history.flush(20)
    page = history.query(HistoryQuery())
    assert ids(page)[0] == "aaaaaaaa-3"
    assert history.status().enabled
    assert history.dropped == 2
    [sentence] = said
    assert "begun anew" in sentence and ("deleted" in sentence or "replaced" in sentence)
    history.close()
    again = History.open(history.path, **KEEP, say=said.append)
    assert ids(again.query(HistoryQuery()))[0] == "aaaaaaaa-3"
    again.close()
    assert len(said) == 1


def test_it_is_noticed_though_nothing_is_written(tmp_path, said, soon):
    history = History.open(tmp_path / "state" / "h.db", **KEEP, say=said.append)
    delete(history.path)
    end = time.monotonic() + 5
    while not said and time.monotonic() < end:
        time.sleep(0.01)
    assert "deleted" in said[0]
    history.close()
    assert history.path.exists()


def test_a_file_made_read_only_is_set_aside_and_another_begun(tmp_path, said, monkeypatch):
    history = History.open(tmp_path / "state" / "h.db", **KEEP, say=said.append)
    add(history, [record(1)])
    history.flush()
    inode = os.stat(history.path).st_ino
    real = os.access
    monkeypatch.setattr(  # root may write what is read-only by its mode
        os, "access", lambda path, mode: os.stat(path).st_ino != inode and real(path, mode)
    )
    add(history, [record(2)])
    history.flush(20)
    assert ids(history.query(HistoryQuery())) == ["aaaaaaaa-2"]
    assert history.dropped == 0
    assert "read-only" in said[0] and len(said) == 1
    assert [os.stat(path).st_ino for path in history.path.parent.glob("*.broken-*")] == [inode]
    history.close()


def test_a_file_that_cannot_even_be_moved_is_written_again_when_it_can(
    tmp_path, said, soon, monkeypatch
):
    history = History.open(tmp_path / "state" / "h.db", **KEEP, say=said.append)
    real = os.open

    def refuse(*given):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *given: False)
        patch.setattr(os, "rename", refuse)
        patch.setattr(os, "open", lambda path, *rest: (
            refuse() if os.fspath(path) == str(history.path) else real(path, *rest)
        ))  # fmt: skip
        add(history, [record(1)])
        history.flush(20)
        assert "Read-only" in history.status().error
        add(history, [record(2)])
        history.flush(20)
        assert history.dropped == 2
    end = time.monotonic() + 5
    while not history.status().enabled and time.monotonic() < end:
        time.sleep(0.01)
    add(history, [record(3)])
    history.flush(20)
    assert ids(history.query(HistoryQuery())) == ["aaaaaaaa-3"]
    assert history.dropped == 2
    history.close()
    assert "Read-only" in said[0]
