"""What /metrics counts: active names have series of their own, and labels hold nothing hidden."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conmon import Record, Tcp
from monitor.api.metrics import Gauges, render
from monitor.meter import MAX_COMMS, OTHER, Meter

GAUGES = Gauges(
    version="1", kernel="6", open=0, lost={}, maps={}, history_records=None, history_bytes=None,
    history_dropped=0, started_s=0.0, cpu_s=0.0, resident_bytes=1, pss_bytes=None, clients=0,
    clients_refused=0, clients_cut_off=0,
)  # fmt: skip


def ended(comm, state="closed", **more):
    return Record(comm=comm, state=state, **more)


def connections(meter):
    text = render(meter, GAUGES).decode()
    for family in text_string_to_metric_families(text):
        if family.name == "conmond_connections":
            return {
                (sample.labels["comm"], sample.labels["state"]): sample.value
                for sample in family.samples
            }
    return {}


def test_what_is_active_has_its_own_series_and_the_longest_inactive_gives_way():
    meter = Meter()
    for number in range(MAX_COMMS + 10):
        meter.add(ended(f"job {number}", state="failed" if number % 2 else "closed"))
        meter.add(ended("always"))
    for _ in range(50):
        meter.add(ended("the-service"))
    series = connections(meter)
    assert series["the-service", "closed"] == 50
    assert series["always", "closed"] == MAX_COMMS + 10
    assert ("job 0", "closed") not in series
    assert (f"job {MAX_COMMS + 9}", "failed") in series
    assert series[OTHER, "closed"] + series[OTHER, "failed"] == 12
    assert sum(series.values()) == 2 * (MAX_COMMS + 10) + 50
    assert len({comm for comm, _ in series}) <= MAX_COMMS + 1


@given(st.lists(st.text(max_size=20) | st.just(OTHER) | st.none(), max_size=250))
def test_labels_are_printable_and_nothing_is_counted_twice_or_not_at_all(names):
    meter = Meter()
    for comm in names:
        meter.add(ended(comm))
        meter.add(ended(comm, state="failed", error=comm))
    text = render(meter, GAUGES).decode()
    assert not re.search(r"[^\n -~\u00a1-\U0010ffff]", text)
    assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", text)
    assert sum(connections(meter).values()) == 2 * len(names)


def test_no_figure_stops_the_counting():
    meter = Meter()
    for us in (-1, -(2**63), 0, 2**64):
        meter.add(ended("x", dns_us=us, sockconn_us=us, tls_us=us, txn_resp_us=us,
                        tcp=Tcp(bytes_sent=2**64, bytes_received=None)))  # fmt: skip
    assert meter.phases["tls_us"].sum_us == 2**64
    assert sum(meter.phases["dns_us"].buckets) == 2
    assert render(meter, GAUGES)
