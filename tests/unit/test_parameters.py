"""Query parameters: what strangers may ask, checked."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conmon.record import Attempt, Record, Tls
from monitor.api.access import Asker
from monitor.api.answer import Answer, Later, Stream
from monitor.api.parameters import (
    ParameterError,
    cursor,
    duration_ns,
    moment_ns,
    parse_filters,
    parse_query,
)
from monitor.api.routes import Routes
from monitor.history.query import HistoryQuery, _span

ROOT = Asker(0, sees_all=True)
NOW = 1_800_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("500us", 500_000), ("200ms", 200_000_000), ("5", 5 * 10**9), ("1.5s", 1_500_000_000),
     ("5m", 300 * 10**9), ("2h", 7200 * 10**9), ("7d", 604_800 * 10**9)],
)  # fmt: skip
def test_durations(text, nanoseconds):
    assert duration_ns("since", text) == nanoseconds


@pytest.mark.parametrize("text", ["", "x", "5 m", "-5s", "5y", "1e9", "٣s", "9999999999d", "."])
def test_what_is_no_duration(text):
    with pytest.raises(ParameterError):
        duration_ns("since", text)


def test_moments():
    assert moment_ns("since", "1m", NOW) == NOW - 60 * 10**9
    assert moment_ns("since", "2027-01-15T08:00:00Z", NOW) == NOW
    assert moment_ns("since", "2027-01-15T09:00:00.000001+01:00", NOW) == NOW + 1000
    with pytest.raises(ParameterError, match="since must be"):
        moment_ns("since", "noon", NOW)


@pytest.mark.parametrize(
    "query",
    ["pid=x", "pid=-1", "pid=4294967296", "uid=1.0", "failed=maybe", "slow=fast", "color=red",
     "pid=1&pid=2", "comm=" + "a" * 600, "&".join(f"a{n}=1" for n in range(99)), "a", "comm=%ff"],
)  # fmt: skip
def test_what_is_refused(query):
    with pytest.raises(ParameterError):
        parse_filters(parse_query(query))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zzz",
        "1_0",
        "+1",
        "-1",
        " 1",
        "1.0",
        "٣",
        "4611686018427387904",
        "9223372036854775807",
        "9223372036854775808",
        "1" * 20,
    ],
)
def test_what_is_no_cursor(text):
    reply = Routes(Nothing()).reply("GET", f"/v1/records?{urlencode({'before': text})}", ROOT)
    assert reply.status == 400
    assert b"before must be what an earlier answer gave as next" in reply.body


@pytest.mark.parametrize("text", ["0", "10", "4611686018427387903"])
def test_a_cursor_is_handed_on(text):
    assert cursor({"before": text}, "before") == text
    assert _span(HistoryQuery(before=text))[1] == int(text)
    assert cursor({}, "before") is None


def test_filters_choose_records():
    record = Record(pid=1, comm="a b", unit="x.service", container="abc", uid=2, host="h",
                    exe="/opt/a b/victoria-metrics-prod",
                    state="failed", tls_us=5000)  # fmt: skip
    good = ["", "pid=1", "comm=a+b", "unit=x", "unit=x.service", "container=ab", "uid=2",
            "host=H.", "failed=1", "slow=5ms", "failed=0", "exe=/opt/*", "exe=victoria-*-prod",
            "exe=/opt/a b/victoria-metrics-prod", "comm=victoria-metrics-prod"]  # fmt: skip
    bad = [
        "pid=2",
        "comm=a",
        "unit=y",
        "container=b",
        "uid=0",
        "host=g",
        "slow=6ms",
        "exe=/opt",
        "exe=victoria",
        "exe=/opt/*/a",
        "comm=victoria-metric",
        "comm=victoria-metrics-prod-2",
        "comm=victoria-metrics-*",
        "exe=x*&comm=a b",
    ]
    for query in good:
        assert parse_filters(parse_query(query)).match(record), query
    for query in [*bad, "unused=1"]:
        assert not parse_filters(parse_query(query)).match(record), query
    assert not parse_filters({"exe": "*"}).match(record._replace(exe=None))
    with pytest.raises(ParameterError, match="more than 16"):
        parse_filters({"exe": "*a" * 17})
    unused = record._replace(state="closed", tls=Tls(source="wire", result="unused"))
    assert parse_filters({"unused": "1"}).match(unused)
    assert not parse_filters({"failed": "1"}).match(unused)
    assert not parse_filters({})._replace(uid_only=3).match(record)
    typed = record._replace(host="Api.Example.")
    for host in ("api.example", "API.example", "Api.Example."):
        assert parse_filters({"host": host}).match(typed)
    assert not parse_filters({"host": "example"}).match(typed)
    assert not parse_filters({"host": "none"}).match(record._replace(host=None))


def test_slow_finds_who_waited_in_vain():
    """3 s, of which 20 ms were the connect: the rest brought no answer."""
    slow, slower = parse_filters({"slow": "2.9s"}), parse_filters({"slow": "2.99s"})
    vain = Record(
        state="failed", error="ETIMEDOUT", peer="192.0.2.1", sockconn_us=20_000,
        duration_us=3_000_000,
    )  # fmt: skip
    assert slow.match(vain) and not slower.match(vain)
    assert not slow.match(vain._replace(state="closed", error=None))
    silent = Attempt("192.0.2.1", 443, 2_900_000, 0, "timeout", "ETIMEDOUT")
    unconnected = Record(
        state="failed", duration_us=3_000_000, attempts=(silent, silent._replace(us=None))
    )
    assert slow.match(unconnected) and not slower.match(unconnected)
    assert not slow.match(unconnected._replace(attempts=(silent._replace(us=None),)))


class Nothing:
    def __getattr__(self, name):
        return lambda *given, **named: NOW if name == "now_ns" else None


@given(st.text(max_size=80), st.text(max_size=80), st.booleans())
def test_any_target_gets_an_answer(path, query, sees_all):
    routes = Routes(Nothing())
    for target in (path, f"/v1/records?{query}", f"/v1/stream?{query}", f"/v1/take/{path}",
                   f"/v1/records/{path}?{query}"):  # fmt: skip
        reply = routes.reply("GET", target, Asker(1, sees_all))
        assert isinstance(reply, (Answer, Later, Stream))
    reply = routes.reply("POST", f"/v1/deep/{path}?{query}", Asker(1, sees_all))
    assert isinstance(reply, (Answer, Later))


@pytest.mark.parametrize(
    "target",
    ["0", "2147483648", "1?for=2h", "1?for=0", "1?most=x", "1?most=-1", "1?no=1", "x", ""],
)
def test_deep_takes_a_process_a_time_and_a_bound(target):
    reply = Routes(Nothing()).reply("POST", f"/v1/deep/{target}", Asker(0, sees_all=True))
    assert reply.status in (400, 404)
    for method in ("GET", "HEAD"):
        refusal = Routes(Nothing()).reply(method, "/v1/deep/1", ROOT)
        assert refusal.status == 405
        assert refusal.headers == (("Allow", "POST"),)


@pytest.mark.parametrize("time", ["0", "0ms", "3601", "2h"])
def test_deep_says_between_what_the_time_must_be(time):
    reply = Routes(Nothing()).reply("POST", f"/v1/deep/1?for={time}", Asker(0, sees_all=True))
    assert b'"for must be more than 0 and at most 3600 s"' in reply.body


def test_the_metrics_port_has_metrics_alone():
    routes = Routes(Nothing())
    asker = Asker(None, sees_all=True, metrics_only=True)
    assert routes.reply("GET", "/v1/records", asker).status == 404
    assert routes.reply("GET", "/metrics", asker).status == 200
    assert routes.reply("GET", "/metrics", Asker(1, sees_all=False)).status == 403
    assert routes.reply("POST", "/metrics", asker).status == 405


class Remembers:
    """A source that has one record in memory, another on the disk."""

    def record(self, identifier, uid_only, *, history):
        return {"00000000-1": b"memory", "00000000-2": b"disk" if history else None}.get(identifier)

    def take(self, cookie, uid_only, *, history):
        return self.record(f"00000000-{cookie}", uid_only, history=history)


@pytest.mark.parametrize("target", ["/v1/records/00000000-%d", "/v1/take/%d"])
def test_what_is_in_memory_waits_for_no_disk(target):
    routes = Routes(Remembers())
    quick = routes.reply("GET", target % 1, ROOT)
    assert not quick.slow
    assert quick.find().body == b'{"v":1,"record":memory}\n'
    for number, status in ((2, 200), (3, 404)):
        first = routes.reply("HEAD", target % number, ROOT)
        assert not first.slow
        then = first.find()
        assert then.slow
        assert then.find().status == status


def test_other_methods_are_told_which_there_are():
    refusal = Routes(Nothing()).reply("DELETE", "/v1/doctor", ROOT)
    assert refusal.status == 405
    assert refusal.headers == (("Allow", "GET, HEAD"),)
