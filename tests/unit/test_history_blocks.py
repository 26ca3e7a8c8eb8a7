"""The history by blocks: every question finds what looking through all records finds."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conmon import Record
from conmon.names import fits_exe
from monitor.history import History, HistoryQuery, blocks
from monitor.history.query import fetch
from monitor.history.schema import MIGRATIONS, VERSION, drop_index, migrate, old_indexes
from tests.unit.test_history import KEEP, add, ids, record

ROWS = 10_500  # two blocks, and what is in none
EVER = time.monotonic() + 10**6
VERSION_1 = Path(__file__).parents[1] / "data" / "history" / "version1.db.gz"


def rows():
    """Rows of table ``record``, with steps of the clock and long stretches without a value."""
    choose = random.Random(7)
    made = []
    now = 1_000_000
    for number in range(1, ROWS + 1):
        now += choose.choice((0, 1, 90))
        if number in (3_000, 5_000, 10_000):
            now += 100_000 * (1 if number == 5_000 else -1)
        made.append(
            (number, now, f"id-{number}", choose.choice((None, 7, number % 500)),
             choose.choice((None, 0, 1000, 1000 + number // 3000)),
             choose.choice((None, "curl", f"c{number // 2500}")),
             choose.choice((None, "ssh.service", "ssh", f"u{number % 3}")),
             choose.choice((None, "ab", "abc", f"d{number % 300}")),
             "all" if number < 5_000 else choose.choice((None, f"h{number % 900}", "x")),
             int(choose.random() < 0.1),
             (1 << 33) + number if number == 4_242 else choose.choice((-1, 0, number % 977)),
             choose.choice((None, "/bin/curl", f"/opt/{number // 2500}/curl", f"/x/{number % 90}")))
        )  # fmt: skip
    return made


MADE = rows()


def fill(database, columns=12):
    marks = ",".join("?" * columns)
    database.executemany(f"INSERT INTO record VALUES ({marks})", [row[:columns] for row in MADE])
    packer = [zlib.compressobj(1, zlib.DEFLATED, -15) for _ in MADE]
    bodies = (
        (row[0], one.compress(json.dumps({"n": row[0], "exe": row[11]}).encode()) + one.flush())
        for row, one in zip(MADE, packer, strict=True)
    )
    database.executemany("INSERT INTO body VALUES (?, ?)", bodies)
    database.commit()


@pytest.fixture(scope="module")
def databases():
    """One whose records are in blocks, and one whose records are in none."""
    made = []
    for settled in (True, False):
        database = sqlite3.connect(":memory:")
        migrate(database)
        fill(database)
        while settled and blocks.settle(database, ROWS + 1):
            pass
        made.append(database)
    assert made[0].execute("SELECT number, records FROM block").fetchall() == [(0, 4095), (1, 4096)]
    yield made
    for database in made:
        database.close()


def fits(row, query):
    number, ended, _, pid, uid, comm, unit, container, host, failed, slowest, exe = row
    before = None if query.before is None else int(query.before)
    return (
        (query.since_ns is None or ended >= query.since_ns // 1000)
        and (query.until_ns is None or ended < query.until_ns // 1000)
        and (before is None or (number > before if query.order == "oldest" else number < before))
        and (not query.failed or failed)
        and (query.slow_us is None or slowest >= query.slow_us)
        and query.pid in (None, pid)
        and query.comm in (None, comm)
        and (query.unit is None or unit in (query.unit, f"{query.unit}.service"))
        and (query.container is None or (container or "").startswith(query.container))
        and query.uid in (None, uid)
        and query.uid_only in (None, uid)
        and query.host in (None, host)
        and all(fits_exe(pattern, exe) for pattern in query.exe)
    )


def numbers(page):
    return [json.loads(body)["n"] for body in page.bodies]


def expected(query, gone=frozenset()):
    found = [row[0] for row in MADE if row[0] not in gone and fits(row, query)]
    return found if query.order == "oldest" else found[::-1]


def moment(ended):
    return st.none() | st.sampled_from([row[1] * 1000 for row in ended])


QUERIES = st.builds(
    HistoryQuery,
    limit=st.sampled_from((1, 40, 20_000)),
    order=st.sampled_from(("newest", "oldest")),
    before=st.none() | st.integers(0, ROWS + 5).map(str),
    since_ns=moment(MADE[::97]),
    until_ns=moment(MADE[::89]),
    failed=st.booleans(),
    slow_us=st.none() | st.sampled_from((0, 1, 500, 976, 977, 1 << 33)),
    pid=st.none() | st.sampled_from((7, 123, 499, 500)),
    comm=st.none() | st.sampled_from(("curl", "c0", "c4", "nobody")),
    unit=st.none() | st.sampled_from(("ssh", "ssh.service", "u1")),
    container=st.none() | st.sampled_from(("a", "abc", "d2", "e")),
    uid=st.none() | st.sampled_from((0, 1000, 1002)),
    host=st.none() | st.sampled_from(("all", "x", "h8", "h899")),
    exe=st.sampled_from(((), (), ("curl",), ("/opt/*",), ("/x/[1-3]*", "?8"), ("none",))),
    uid_only=st.none() | st.sampled_from((0, 1000, 1002)),
)


@settings(deadline=None, max_examples=150)
@given(query=QUERIES)
def test_a_question_finds_what_looking_through_all_finds(databases, query):
    wanted = expected(query)
    for database in databases:
        page = fetch(database, query, b"", EVER)
        assert numbers(page) == wanted[: query.limit]
        more = len(wanted) > query.limit
        assert page.next == (str(wanted[query.limit - 1]) if more else None)


def test_records_that_were_deleted_are_not_found_and_leave_no_block(databases):
    database = sqlite3.connect(":memory:")
    databases[0].backup(database)
    gone = set()
    for before_us in (1_000_000, 1_010_000, 1_030_000):
        while True:
            doomed = blocks.doomed(database, before_us, ROWS + 1, 1_000)
            if not doomed:
                break
            blocks.forget(database, doomed)
            gone |= {number for (number,) in doomed}
            assert blocks.count_records(database) == ROWS - len(gone)
        assert gone == {row[0] for row in MADE if row[1] < before_us}
        for query in (HistoryQuery(limit=99), HistoryQuery(order="oldest", comm="curl")):
            page = fetch(database, query, b"", EVER)
            assert numbers(page) == expected(query, gone)[: query.limit]
    left = [(number,) for number in range(1, blocks.BLOCK) if number not in gone]
    blocks.forget(database, left)
    for table, column in (("block", "number"), ("posting", "block"), ("slowest", "block")):
        assert database.execute(f"SELECT min({column}) FROM {table}").fetchone() == (1,)
    blocks.forget(database, [(number,) for number in range(5_000, ROWS + 1)])
    assert blocks.next_number(database) == 2 * blocks.BLOCK  # no number within a block again
    database.close()


def test_a_posting_that_is_damaged_is_an_error(databases):
    database = sqlite3.connect(":memory:")
    databases[0].backup(database)
    for damage in (b"\xff\xff", b"\1"):
        database.execute("UPDATE posting SET places = ?", (damage,))
        with pytest.raises(sqlite3.DatabaseError, match="malformed"):
            fetch(database, HistoryQuery(comm="curl", order="oldest"), b"", EVER)
    database.execute("UPDATE slowest SET us = x'00'")
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        fetch(database, HistoryQuery(slow_us=976, order="oldest"), b"", EVER)
    database.close()


def test_a_question_is_given_up_in_time(databases):
    for query in (HistoryQuery(), HistoryQuery(host="none"), HistoryQuery(slow_us=977)):
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            fetch(databases[0], query, b"", 0.0)


# -- files of version 1 ------------------------------------------------------------------------


def test_a_file_of_version_1_is_taken_over_with_nothing_lost(tmp_path):
    said = []
    (tmp_path / "h.db").write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    history = History.open(tmp_path / "h.db", **KEEP | {"max_age_s": 10**9}, say=said.append)
    add(history, [record(101)])
    assert ids(history.query(HistoryQuery(limit=999))) == [
        f"aaaaaaaa-{n:x}" for n in range(101, -1, -1)
    ]
    assert Record.from_json(history.get("aaaaaaaa-5", None)).container == "abcdef"
    hard = HistoryQuery(unit="ssh", container="abc", failed=True)
    assert ids(history.query(hard)) == ["aaaaaaaa-3c", "aaaaaaaa-0"]
    end = time.monotonic() + 5
    while history._old_indexes and time.monotonic() < end:
        time.sleep(0.01)
    history.close()
    with sqlite3.connect(tmp_path / "h.db") as database:
        assert old_indexes(database) == []
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert not said


def version_1(path):
    database = sqlite3.connect(path)
    database.executescript(f"BEGIN;{MIGRATIONS[0]}PRAGMA user_version=1;COMMIT;")
    database.execute("INSERT INTO meta VALUES ('dictionary', ?)", (zlib.compress(b""),))
    fill(database, 11)
    database.close()


def test_a_migration_that_is_interrupted_goes_on_where_it_was(tmp_path):
    version_1(tmp_path / "h.db")
    queries = [
        HistoryQuery(limit=5_000, uid=1000),
        HistoryQuery(limit=60, comm="c1", failed=True, order="oldest"),
        HistoryQuery(limit=60, slow_us=900, until_ns=1_300_000_000),
        HistoryQuery(limit=60, since_ns=1_200_000_000, order="oldest"),
        HistoryQuery(limit=60, exe=("/opt/*",)),
    ]
    steps = 0
    while True:
        database = sqlite3.connect(tmp_path / "h.db")  # as after each death of the daemon
        migrate(database)
        for query in queries:
            page = fetch(database, query, b"", EVER)
            assert numbers(page) == expected(query)[: query.limit]
        assert blocks.count_records(database) == ROWS
        following = blocks.next_number(database)
        assert following == ROWS + 1
        if not blocks.settle(database, following):
            left = old_indexes(database)
            if not left:
                break
            drop_index(database, left[0])
        database.execute("INSERT INTO block VALUES (99, 0, 0, 0, 0)")  # not committed: a step
        database.close()  # that did not come to its end
        steps += 1
    assert steps == 2 + 9
    database.close()


def test_a_large_file_of_version_1_is_settled_while_it_is_used(tmp_path):
    version_1(tmp_path / "h.db")
    history = History.open(tmp_path / "h.db", max_age_s=10**10, max_bytes=10**9, say=print)
    added = 0
    end = time.monotonic() + 20
    while (history._settling or history._old_indexes) and time.monotonic() < end:
        add(history, [record(number) for number in range(7)])
        added += 7
        history.flush(5)
    assert len(history.query(HistoryQuery(limit=50_000)).bodies) == ROWS + added
    assert history.status().records == ROWS + added
    history.close()
    with sqlite3.connect(tmp_path / "h.db") as database:
        assert old_indexes(database) == []
        assert database.execute("SELECT count(*) FROM block").fetchone()[0] >= 2
    database.close()
