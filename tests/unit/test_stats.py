"""Statistics: counts exact whatever is folded, quantiles within the stated error."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from conmon import Record, Tcp
from monitor.stats import RELATIVE_ERROR, OpenConns, Stats, StatsQuery
from monitor.stats.values import QUANTILES, Values

SECOND = 10**9
NOW = 1_800_000_000 * SECOND


def record(pid, **changes):
    return Record(pid=pid, comm=f"c{pid}", uid=pid % 2, state="closed", sockconn_us=100 + pid,
                  tcp=Tcp(bytes_sent=3, bytes_received=5))._replace(**changes)  # fmt: skip


def counted(answer, key="opened"):
    return sum(row[key] for row in (*answer.rows, *([answer.other] if answer.other else [])))


@given(st.lists(st.integers(0, 2**32 + 5), min_size=1, max_size=400), st.integers(1, 5))
def test_quantiles_are_within_the_error(durations, parts):
    bags = [Values() for _ in range(parts)]
    for number, us in enumerate(durations):
        bags[number % parts].add(us)
    whole = Values()
    for bag in bags:
        bag.compact()
        whole.merge(bag)
    ordered = sorted(min(us, 2**32 - 1) for us in durations)
    found = whole.quantiles()
    assert found["count"] == len(durations)
    assert found["max"] == ordered[-1]
    for name, quantile in QUANTILES.items():
        true = ordered[int(quantile * (len(ordered) - 1))]
        assert abs(found[name] - true) <= RELATIVE_ERROR * true + 0.5001


@given(st.lists(st.integers(), max_size=100))
def test_no_figure_stops_the_counting(figures):
    stats = Stats(started_ns=NOW)
    for us in figures:
        figure = dict.fromkeys(("dns_us", "sockconn_us", "tls_us", "txn_resp_us"), us)
        tcp = Tcp(bytes_sent=us, bytes_received=us)
        stats.add(record(1, tcp=tcp, **figure), 1, NOW)
        stats.add(record(2, tcp=tcp, **figure), None, NOW + us)
    answer = stats.processes(StatsQuery(by="comm"), [], NOW)
    assert counted(answer) == 2 * len(figures)
    for row in answer.rows:
        assert row["dns_us"]["count"] == sum(us >= 0 for us in figures)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=200))
def test_totals_are_exact_under_folding(events):
    stats = Stats(started_ns=NOW, max_processes=5, max_hosts=4)
    now = NOW
    for pid, host in events:
        now += SECOND
        stats.add(record(pid, host=f"h{host}"), 1, now)
    assert stats.process_count <= 5
    assert stats.host_count <= 4
    for by in ("process", "host", "uid"):
        answer = stats.processes(StatsQuery(by=by), [], now)
        assert counted(answer) == len(events)
        assert counted(answer, "bytes_received") == 5 * len(events)
        windowed = stats.processes(StatsQuery(by=by, since_ns=NOW), [], now)
        assert counted(windowed) == len(events)
    mine = stats.processes(StatsQuery(uid_only=1), [], now)
    assert counted(mine) == sum(pid % 2 for pid, _ in events)


def test_windows_hold_what_ended_in_them():
    stats = Stats(started_ns=NOW)
    for minute in range(120):
        stats.add(record(1), 1, NOW + minute * 60 * SECOND)
    now = NOW + 119 * 60 * SECOND + SECOND
    for minutes, least, most in ((1, 1, 2), (5, 5, 6), (60, 60, 65)):
        answer = stats.processes(StatsQuery(since_ns=now - minutes * 60 * SECOND), [], now)
        assert least <= answer.rows[0]["opened"] <= most
        begun = [NOW + m * 60 * SECOND >= answer.since_ns for m in range(120)]
        assert answer.rows[0]["opened"] == sum(begun)
    whole = stats.processes(StatsQuery(), [], now)
    assert (whole.rows[0]["opened"], whole.since_ns) == (120, NOW)


def test_an_hour_is_a_window_though_the_question_takes_a_moment():
    stats = Stats(started_ns=NOW)
    for minute in range(9 * 60):
        stats.add(record(1), 1, NOW + minute * 60 * SECOND)
    now = NOW + 9 * 3600 * SECOND
    for minutes in (60, 64):
        asked = StatsQuery(since_ns=now - minutes * 60 * SECOND)
        answer = stats.processes(asked, [], now + 50_000)
        assert minutes <= answer.rows[0]["opened"] <= minutes + 5
        assert answer.since_ns > now - 70 * 60 * SECOND


def test_a_process_that_becomes_another_s_is_counted_for_both():
    stats = Stats(started_ns=NOW)
    who = {"pid": 7, "host": None}
    stats.add(record(**who, uid=65534, comm="sh", unit="a.service"), 1, NOW)
    for second in (11, 12):
        stats.add(record(**who, uid=0, comm="app", unit="b.service"), 1, NOW + second * SECOND)
    now = NOW + 13 * SECOND

    def opened(**asked):
        return [row["opened"] for row in stats.processes(StatsQuery(**asked), [], now).rows]

    assert opened(uid_only=65534) == opened(uid=65534) == opened(comm="sh") == [1]
    assert opened(uid=0) == opened(comm="app") == opened(unit="b") == [2]
    (row,) = stats.processes(StatsQuery(pid=7), [], now).rows
    assert (row["opened"], row["comm"], row["uid"]) == (3, "app", 0)
    assert stats.process_count == 1


def test_spellings_of_a_host_are_one_host():
    stats = Stats(started_ns=NOW)
    for host in ("Api.Example", "api.example.", "api.example"):
        stats.add(record(1, host=host), 1, NOW)
    (row,) = stats.processes(StatsQuery(by="host", host="api.example"), [], NOW).rows
    assert (row["host"], row["opened"]) == ("api.example", 3)


def test_a_busy_crawler_does_not_give_way_to_the_idle():
    stats = Stats(started_ns=NOW, max_processes=50, max_hosts=200)
    for number in range(1000):
        now = NOW + number * SECOND
        stats.add(record(1, host=f"h{number}"), 1, now)
        stats.add(record(1000 + number), 1, now)
    answer = stats.processes(StatsQuery(pid=1), [], now)
    assert answer.rows[0]["opened"] == 1000
    windowed = stats.processes(StatsQuery(pid=1, since_ns=now - 200 * SECOND), [], now)
    assert 200 <= windowed.rows[0]["opened"] <= 220


def test_what_is_not_told_apart_is_told_of_one_user():
    stats = Stats(started_ns=NOW, max_processes=5)
    for pid in range(100):
        stats.add(record(pid), 1, NOW)
    for asked in (StatsQuery(uid=1), StatsQuery(uid_only=1), StatsQuery(uid=1, uid_only=1)):
        assert counted(stats.processes(asked, [], NOW)) == 50
    assert stats.processes(StatsQuery(uid=0, uid_only=1), [], NOW).other is None
    filtered = stats.processes(StatsQuery(uid=1, comm="c1"), [], NOW)
    assert filtered.other is None
    assert filtered.untold == stats.processes(StatsQuery(uid=1), [], NOW).other["opened"]
    assert stats.processes(StatsQuery(uid=1), [], NOW).untold == 0


def test_open_connections_and_failures_are_counted():
    stats = Stats(started_ns=NOW)
    stats.add(record(7, state="failed", error="ECONNREFUSED", sockconn_us=None), 1, NOW)
    stats.add(record(7), 1, NOW)
    conn = OpenConns(7, 1, "c7", None, None, None, 1, None, [NOW], 10, 0)
    (row,) = stats.processes(StatsQuery(), [conn, replace(conn, pid=8)], NOW).rows[:1]
    assert (row["opened"], row["open"], row["failed"], row["bytes_sent"]) == (3, 1, 1, 16)
    assert row["failures"] == {"ECONNREFUSED": 1}
    assert row["sockconn_us"] == {"count": 1, "p50": 107, "p95": 107, "p99": 107, "max": 107}
    assert row["tls_us"]["p50"] is None


def test_a_reused_pid_is_another_process():
    stats = Stats(started_ns=NOW)
    stats.add(record(7), 1, NOW)
    stats.add(record(7), 2, NOW)
    assert stats.processes(StatsQuery(), [], NOW).total == 2
    assert stats.processes(StatsQuery(by="comm"), [], NOW).rows[0]["processes"] == 2


def test_a_million_short_lived_processes_stay_within_bounds():
    stats = Stats(started_ns=NOW, max_processes=50, max_hosts=50)
    for number in range(20_000):
        stats.add(record(number, host=f"h{number}"), 1, NOW + number * SECOND // 50)
    answer = stats.processes(StatsQuery(sort="sockconn_us", limit=9), [], NOW + 400 * SECOND)
    assert len(answer.rows) == 9
    assert answer.total == 50
    whole = stats.processes(StatsQuery(), [], NOW + 400 * SECOND)
    assert counted(whole) == 20_000
    assert stats.folded == 20_000 - 50


def test_no_window_knows_more_processes_than_there_may_be():
    stats = Stats(started_ns=NOW, max_processes=50, max_hosts=40)
    for number in range(100_000):
        stats.add(record(number, host=f"h{number}"), 1, NOW + number * SECOND // 20)
    now = NOW + 5000 * SECOND
    for piece in (*stats._fine, *stats._coarse, stats._current):
        assert len(piece.tallies) <= 40
    for seconds in (5, 60, 300, 3500):
        answer = stats.processes(StatsQuery(since_ns=now - seconds * SECOND), [], now)
        assert answer.total <= 40
        begun = sum(NOW + n * SECOND // 20 >= answer.since_ns for n in range(100_000))
        assert counted(answer) == begun
        mine = stats.processes(StatsQuery(since_ns=answer.since_ns, uid_only=1), [], now)
        assert counted(mine) == begun // 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(0, 90)), max_size=150))
def test_windows_are_exact_under_folding(events):
    stats = Stats(started_ns=NOW, max_processes=4, max_hosts=3)
    now, ended = NOW, []
    for pid, host, seconds in events:
        now += seconds * SECOND
        stats.add(record(pid, host=f"h{host}"), 1, now)
        ended.append(now)
    for seconds in (10, 100, 1000, 3000):
        query = StatsQuery(since_ns=now - seconds * SECOND, by="host")
        answer = stats.processes(query, [], now)
        assert answer.total <= 4
        assert counted(answer) == sum(moment >= answer.since_ns for moment in ended)


def test_what_was_gathered_stays_as_it_is_while_records_come_in():
    def run(stats, numbers):
        for number in numbers:
            stats.add(record(number % 23, host="h"), 1, NOW + number * SECOND)

    for seconds in (30, 300, 2900):
        stats = Stats(started_ns=NOW, max_processes=20, max_hosts=20)
        run(stats, range(3000))
        query = StatsQuery(since_ns=NOW + (3000 - seconds) * SECOND)
        wanted = stats.processes(query, [], NOW + 3000 * SECOND)
        gathered = stats.collect(query, [], NOW + 3000 * SECOND)
        run(stats, range(3000, 9000))  # slices end, grow coarse and are let go, leaves give way
        assert gathered.answer() == wanted
        assert counted(wanted) >= seconds


def test_a_crawler_is_one_process_with_many_hosts():
    stats = Stats(started_ns=NOW)
    for number in range(500):
        stats.add(record(1, host=f"h{number}"), 1, NOW)
    assert stats.processes(StatsQuery(), [], NOW).rows[0]["opened"] == 500
    by_host = stats.processes(StatsQuery(by="host"), [], NOW)
    assert counted(by_host) == 500
    assert by_host.other["opened"] > 0


def test_quantiles_of_many_values_are_near():
    values = Values()
    durations = [random.Random(number).randint(1, 10**6) for number in range(5000)]
    for us in durations:
        values.add(us)
    p99 = sorted(durations)[int(0.99 * 4999)]
    assert abs(values.quantiles()["p99"] - p99) <= 0.0101 * p99
