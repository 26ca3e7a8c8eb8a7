"""What the kernel side misses, or cannot hand over: made up for, or counted, and nothing else goes
with it. Entries of connections whose end nobody saw, and what their sockets say by then."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.processes import build_load
from monitor.decode import ConnEvent, ConnFlag, DnsEvent, Phase
from monitor.kernel import bpf_syscall
from monitor.kernel.kernel import Kernel
from monitor.leftovers import CONFIRM_NS, Leftovers
from tests.kernel.test_kernel_side import MANY, WAIT_S, Pair, Watched
from tests.lab.netns import Namespace, namespace

pytestmark = pytest.mark.kernel("ip", "gcc")

COOKIE_AT = 80  # offsetof(struct conn_event, cookie)
STORM_S = 2


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture
def watch(net: Namespace) -> Iterator[Callable[..., Watched]]:
    kernels = []

    def open_with(**defines: int) -> Watched:
        kernels.append(Kernel.open(defines or None))
        return Watched(kernels[-1], net.inode)

    yield open_with
    for kernel in kernels:
        kernel.close()


def put_back(watched: Watched, entry: ConnEvent, data: bytes) -> None:
    """As if nothing had seen how it ended."""
    conns = watched.kernel.loaded.maps["conn_by_sk"]
    bpf_syscall.update_element(conns, struct.pack("=Q", entry.sk), data)


# ---- runs that are skipped -----------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_the_first_program_misses_the_second_sees(watch, net, family) -> None:
    watched = watch()
    os.close(watched.kernel.attached.descriptors.pop("inet_sock_set_state"))
    pair = Pair(net, family, "127.0.0.1" if family == socket.AF_INET else "::1")
    pair.send(bytes(23))
    pair.answer(bytes(101))
    pair.drop()
    refused = net.call(lambda: socket.socket(family))
    with refused, pytest.raises(ConnectionRefusedError):
        refused.connect((pair.raddr, pair.rport))
    closed, failed = watched.wait_for(2)
    assert (closed.phase, closed.bytes_sent, closed.bytes_received) == (Phase.CLOSED, 23, 101)
    assert closed.established_ns > closed.connect_ns
    assert (failed.phase, failed.sk_err) == (Phase.FAILED, 111)
    assert watched.open_now() == []


def test_runs_that_were_missed_are_counted_as_lost(watch, monkeypatch) -> None:
    kernel = watch().kernel
    programs = kernel.loaded.programs
    missed = {programs["sock_set_state"]: 7, programs["sock_state_again"]: 2}
    missed[programs["process_exec"]] = 30
    monkeypatch.setattr(bpf_syscall, "missed_runs", lambda program: missed.get(program, 0))
    assert kernel.lost()["missed_runs"] == 32  # the first program's are made up for
    os.close(kernel.attached.descriptors.pop("sock_state_again"))
    assert kernel.lost()["missed_runs"] == 39


# ---- a ring that is full of something else -------------------------------------------------------


def test_a_flood_of_questions_costs_questions_alone(watch, net) -> None:
    watched = watch(RING_PAGES=64)
    pairs = [Pair(net) for _ in range(MANY)]
    begun_ns = time.monotonic_ns()
    with net.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asker:
        for _ in range(200):
            asker.sendto(bytes(4000), ("127.0.0.1", 53))
        lost, last_ns = watched.kernel.losses.read()["lost_dns"]
        assert lost > 100 and begun_ns < last_ns < time.monotonic_ns()
        for pair in pairs:
            pair.drop()
        assert len(watched.wait_for(MANY)) == MANY
        assert watched.counted("lost_conn") == 0
        asked = len([event for event in watched.read() if isinstance(event, DnsEvent)])
        asker.sendto(bytes(4000), ("127.0.0.1", 53))  # what was read makes room
        watched.until(
            lambda: len([event for event in watched.read() if isinstance(event, DnsEvent)]) > asked
        )


# ---- sockets that are gone -----------------------------------------------------------------------


def test_an_entry_without_its_socket_is_ended_and_told_no_figures_of(watch, net) -> None:
    watched = watch()
    pair = Pair(net)
    pair.send(bytes(1009))
    (entry,) = watched.open_now()
    data = watched.kernel.connection(entry.sk)
    sockets = [(entry.sk, entry.cookie)]
    assert watched.kernel.live_figures(sockets)[entry.sk].bytes_sent == 1009
    assert watched.kernel.gone(sockets) == [False]
    pair.drop()
    watched.wait_for(1)
    put_back(watched, entry, data)
    assert watched.kernel.gone(sockets) == [True]
    assert watched.kernel.live_figures(sockets) == {}
    assert watched.kernel.live_bytes(sockets) == [(0, 0)]
    assert not watched.kernel.forget_connection(entry.sk, entry.connect_ns + 1)
    leftovers = Leftovers(watched.kernel)
    assert leftovers.turn(0) == []
    ended = leftovers.turn(CONFIRM_NS)
    (told,) = (each for each in ended if each.netns == net.inode)
    assert (told.cookie, told.phase, told.end_ns) == (entry.cookie, Phase.CLOSED, CONFIRM_NS)
    assert told.flags & ConnFlag.END_UNSEEN
    assert watched.open_now() == [] and leftovers.total() >= 1


def test_a_socket_that_lives_is_not_gone(watch, net) -> None:
    watched = watch()
    waiting = net.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams = net.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    half = Pair(net)
    with waiting, datagrams:
        waiting.bind(("127.0.0.1", 0))
        datagrams.connect(waiting.getsockname())
        datagrams.send(b"datagram")
        half.server.shutdown(socket.SHUT_WR)
        entries = watched.open_now()
        assert len(entries) == 2
        sockets = [(each.sk, each.cookie) for each in entries]
        assert watched.kernel.gone(sockets) == [False, False]
        leftovers = Leftovers(watched.kernel)
        leftovers.turn(0)
        assert [e for e in leftovers.turn(CONFIRM_NS) if e.netns == net.inode] == []
    half.drop()
    watched.wait_for(2)
    assert watched.kernel.gone(sockets) == [True, True]


def test_a_socket_at_the_same_address_gives_its_figures_to_nobody_else(watch, net) -> None:
    watched = watch()
    pair = Pair(net)
    (entry,) = watched.open_now()
    data = bytearray(watched.kernel.connection(entry.sk))
    struct.pack_into("=Q", data, COOKIE_AT, entry.cookie + 4711)
    put_back(watched, entry, bytes(data))
    pair.send(bytes(307))
    pair.drop()
    (told,) = watched.wait_for(1)
    assert told.cookie == entry.cookie + 4711
    assert told.flags & ConnFlag.END_UNSEEN
    assert (told.bytes_sent, told.rtt_us, told.sk_err) == (0, 0, 0)
    assert watched.counted("stale") == 1 and watched.open_now() == []


# ---- everything at once --------------------------------------------------------------------------


@pytest.mark.parametrize("defines", [{}, {"RING_PAGES": 16}, {"MAX_CONNS": 16}])
def test_begun_is_told_and_lost_and_nothing_else(watch, tmp_path: Path, defines) -> None:
    """Two loads in network namespaces and cgroups of their own, which go with them; the reader
    stands still for a moment; another kernel side looks on."""
    watched = watch(**defines)
    beside = watch()
    kernel = watched.kernel
    load = build_load(tmp_path)
    cgroups = [Path(kernel.cgroup or "") / f"conmond-test-{os.getpid()}-{n}" for n in range(2)]
    loads = []
    try:
        for cgroup in cgroups:
            cgroup.mkdir()
            words = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
            command = ["sh", "-c", words, cgroup, load, "8", "100000000", str(STORM_S), "0"]
            loads.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        started = time.monotonic()
        told = 0
        while any(each.poll() is None for each in loads):
            if not 0.5 < time.monotonic() - started < 1:
                told += sum(isinstance(event, ConnEvent) for event in watched.read())
                watched.events.clear()
            beside.read()
            beside.events.clear()
            time.sleep(0.01)
        made = sum(json.loads(each.communicate()[0])["established"] for each in loads)
    finally:
        for each in loads:
            each.kill()
            each.wait()
        for cgroup in cgroups:
            cgroup.rmdir()
    deadline = time.monotonic() + WAIT_S
    while True:
        told += sum(isinstance(event, ConnEvent) for event in watched.read())
        watched.events.clear()
        counted = kernel.counters()
        still_open = len(list(kernel.connections()))
        if counted["conns"] == told + counted["lost_conn"] + still_open and still_open < 8:
            break
        assert time.monotonic() < deadline, (counted, told, still_open)
        time.sleep(0.05)
    assert 0 < made <= counted["conns"] + counted["conn_full"]
    assert counted["lost_conn"] or "RING_PAGES" not in defines
    assert counted["conn_full"] or "MAX_CONNS" not in defines
