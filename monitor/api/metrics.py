"""What the daemon counts, as Prometheus text. The library is loaded by the first who asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from conmon.escape import printable
from monitor.meter import BUCKETS_US, Meter

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "Gauges", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LABEL: Final = 128  # longest label: a name is 15 bytes, each eight characters at most
_HISTOGRAMS: Final = {
    "dns_us": ("conmond_dns_lookup_duration_seconds", "Name lookup, as its caller waited for it"),
    "sockconn_us": ("conmond_connect_duration_seconds", "TCP connect of the attempt that won"),
    "tls_us": ("conmond_tls_handshake_duration_seconds", "TLS handshake"),
    "txn_resp_us": ("conmond_first_response_duration_seconds", "Request to first response byte"),
}


class Gauges(NamedTuple):
    """What stands at the moment of asking."""

    version: str
    kernel: str
    open: int
    lost: Mapping[str, int]
    maps: Mapping[str, tuple[int, int]]
    """Map -> entries now, entries at most."""
    history_records: int | None
    history_bytes: int | None
    history_dropped: int
    started_s: float
    cpu_s: float
    resident_bytes: int
    pss_bytes: int | None
    clients: int
    clients_refused: int
    clients_cut_off: int


def render(meter: Meter, gauges: Gauges) -> bytes:
    """Return the metrics as Prometheus text, format 0.0.4."""
    from prometheus_client import exposition

    generate: Callable[[_Registry], bytes] = exposition.generate_latest
    return generate(_Registry(meter, gauges))


class _Registry:
    def __init__(self, meter: Meter, gauges: Gauges) -> None:
        self._meter = meter
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        yield from _counted(self._meter)
        yield from _of_the_daemon(self._gauges)


def _counted(meter: Meter) -> Iterable[Metric]:
    from prometheus_client import core

    ended = core.CounterMetricFamily(
        "conmond_connections",
        "Connections that ended, by how and by process name",
        labels=("comm", "state"),
    )
    # two names may look alike once they are escaped, and a series may be told only once
    shown: Counter[tuple[str, str]] = Counter()
    for (comm, state), count in meter.ended.items():
        shown[printable(comm, _LABEL), state] += count
    for labels, count in sorted(shown.items()):
        ended.add_metric(labels, count)
    yield ended
    failures = core.CounterMetricFamily(
        "conmond_failures", "Failed connections by reason", labels=("reason",)
    )
    for reason, count in sorted(meter.failures.items()):
        failures.add_metric((printable(reason, _LABEL),), count)
    yield failures
    for phase, (name, help_text) in _HISTOGRAMS.items():
        histogram = meter.phases[phase]
        family = core.HistogramMetricFamily(name, help_text)
        total = 0
        buckets = []
        for bound_us, count in zip(BUCKETS_US, histogram.buckets, strict=False):
            total += count
            buckets.append((repr(bound_us / 1e6), total))
        buckets.append(("+Inf", total + histogram.buckets[-1]))
        family.add_metric((), buckets, sum_value=histogram.sum_us / 1e6)
        yield family
    for name, help_text, value in (
        ("conmond_sent_bytes", "Bytes that ended connections sent", meter.bytes_sent),
        ("conmond_received_bytes", "Bytes that ended connections received", meter.bytes_received),
    ):
        yield core.CounterMetricFamily(name, help_text, value=value)


def _of_the_daemon(gauges: Gauges) -> Iterable[Metric]:
    from prometheus_client import core

    gauge = core.GaugeMetricFamily
    counter = core.CounterMetricFamily
    yield gauge("conmond_open_connections", "Connections open now", value=gauges.open)
    lost = counter(
        "conmond_events_lost", "Events that the kernel side could not deliver", labels=("kind",)
    )
    for kind, count in sorted(gauges.lost.items()):
        lost.add_metric((kind,), count)
    yield lost
    entries = gauge("conmond_map_entries", "Entries in a BPF map", labels=("map",))
    room = gauge("conmond_map_max_entries", "Entries a BPF map can hold", labels=("map",))
    for name, (now, most) in sorted(gauges.maps.items()):
        entries.add_metric((name,), now)
        room.add_metric((name,), most)
    yield entries
    yield room
    if gauges.history_records is not None:
        yield gauge("conmond_history_records", "Records kept", value=gauges.history_records)
    if gauges.history_bytes is not None:
        yield gauge("conmond_history_bytes", "Size of the history", value=gauges.history_bytes)
    yield counter("conmond_history_dropped", "Records not written", value=gauges.history_dropped)
    yield gauge("conmond_clients", "Clients of the query socket", value=gauges.clients)
    yield counter("conmond_clients_refused", "Clients refused", value=gauges.clients_refused)
    yield counter("conmond_clients_cut_off", "Clients cut off", value=gauges.clients_cut_off)
    yield counter("process_cpu_seconds", "CPU time of conmond", value=gauges.cpu_s)
    yield gauge("process_resident_memory_bytes", "Resident memory", value=gauges.resident_bytes)
    if gauges.pss_bytes is not None:
        yield gauge(
            "process_proportional_memory_bytes",
            "Memory with what is shared counted in parts",
            value=gauges.pss_bytes,
        )
    yield gauge("process_start_time_seconds", "When conmond started", value=gauges.started_s)
    info = core.InfoMetricFamily("conmond_build", "What runs")
    info.add_metric((), {"version": gauges.version, "kernel": gauges.kernel})
    yield info
