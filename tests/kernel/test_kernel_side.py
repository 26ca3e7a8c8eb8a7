"""The real programs in this kernel, watching real sockets; what the sockets themselves say of
their addresses, bytes and round trips is the witness."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from monitor.correlate.hellos import Hellos
from monitor.correlate.text import address_text
from monitor.decode import ConnEvent, ConnFlag, Event, HelloEvent, Phase, decode, decode_conn
from monitor.kernel import bpf_syscall, elf, uprobe
from monitor.kernel.kernel import Kernel
from tests.lab.netns import Namespace, namespace
from tests.unit.events import Capture

pytestmark = pytest.mark.kernel("ip")

WAIT_S = 5.0
MANY = 23
SO_COOKIE = 57
LOOKUP_CALL_BYTES = 16 + 8 + 16 + 2 + 2 + 4 + 256 + 32  # struct lookup_call, bpf/maps.h
NO_ROUTE = ("192.0.2.1", 443)


class Watched:
    """The kernel side, and what it said of one namespace."""

    def __init__(self, kernel: Kernel, inode: int) -> None:
        self.kernel = kernel
        self.inode = inode
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        self.events += [decode(data) for data in self.kernel.ring.read()]
        return self.events

    @property
    def conns(self) -> list[ConnEvent]:
        return [e for e in self.read() if isinstance(e, ConnEvent) and e.netns == self.inode]

    def hellos(self, of: ConnEvent) -> Hellos:
        found = Hellos()
        for event in self.read():
            if isinstance(event, HelloEvent) and (event.sk, event.connect_ns) == of[12:15:2]:
                found.add(event)
        return found

    def wait_for(self, count: int) -> list[ConnEvent]:
        """That many connections, and none more a moment later."""
        self.until(lambda: len(self.conns) >= count)
        time.sleep(0.02)
        conns = self.conns
        assert len(conns) == count, conns
        return conns

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_S} s: {self.events[-5:]}"
            time.sleep(0.002)

    def open_now(self) -> list[ConnEvent]:
        conns = [decode_conn(data) for data in self.kernel.connections()]
        return [conn for conn in conns if conn.netns == self.inode]

    def counted(self, name: str) -> int:
        return self.kernel.counters()[name]


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture(scope="module")
def loaded() -> Iterator[Kernel]:
    kernel = Kernel.open()
    yield kernel
    kernel.close()


@pytest.fixture
def watched(loaded: Kernel, net: Namespace) -> Iterator[Watched]:
    before = Watched(loaded, net.inode)
    before.read()
    made = Watched(loaded, net.inode)
    yield made
    assert made.open_now() == []


@pytest.fixture
def small(net: Namespace) -> Iterator[Callable[..., Watched]]:
    kernels = []

    def open_with(**defines: int) -> Watched:
        kernels.append(Kernel.open(defines))
        return Watched(kernels[-1], net.inode)

    yield open_with
    for kernel in kernels:
        kernel.close()


class Pair:
    """Both ends of a connection in the namespace; the client's end is what is watched."""

    def __init__(self, net: Namespace, family: int = socket.AF_INET, to: str = "127.0.0.1") -> None:
        wide = socket.AF_INET6 if ":" in to and not to.startswith("::ffff:") else socket.AF_INET
        self.listener = net.call(lambda: socket.socket(wide))
        self.listener.bind(("::1" if wide == socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen()
        self.client = net.call(lambda: socket.socket(family))
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.settimeout(WAIT_S)
        self.client.connect((to, self.listener.getsockname()[1]))
        self.server, _ = self.listener.accept()
        self.server.settimeout(WAIT_S)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listener.close()
        self.laddr, self.lport = self.client.getsockname()[:2]
        self.raddr, self.rport = self.client.getpeername()[:2]
        self.cookie = cookie(self.client)

    def send(self, data: bytes) -> None:
        """To the server, one packet."""
        self.client.sendall(data)
        take(self.server, len(data))

    def answer(self, data: bytes) -> None:
        self.server.sendall(data)
        take(self.client, len(data))

    def drop(self) -> None:
        """Reset at once, so that no later packet changes a figure."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self.client.close()
        self.server.close()


def take(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def cookie(sock: socket.socket) -> int:
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


def tcp_info(sock: socket.socket) -> dict[str, int]:
    """struct tcp_info, include/uapi/linux/tcp.h."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    rtt, rttvar = struct.unpack_from("=II", raw, 68)
    (retransmits,) = struct.unpack_from("=I", raw, 100)
    (received,) = struct.unpack_from("=Q", raw, 128)
    sent, again = struct.unpack_from("=QQ", raw, 200)
    return {
        "rtt_us": rtt,
        "rttvar_us": rttvar,
        "retransmits": retransmits,
        "bytes_sent": sent - again,
        "bytes_received": received,
    }


def test_every_connection_is_told_with_the_figures_of_its_socket(watched, net) -> None:
    witness = {}
    began = time.monotonic_ns()
    pairs = [Pair(net) for _ in range(MANY)]
    for i, pair in enumerate(pairs, start=1):
        pair.send(b"q" * (100 + i))
        pair.answer(b"a" * (3000 + 7 * i))
        witness[pair.cookie] = tcp_info(pair.client), pair
    assert {c.cookie for c in watched.open_now()} == set(witness)
    for pair in pairs:
        pair.drop()
    ended = time.monotonic_ns()
    for conn in watched.wait_for(MANY):
        figures, pair = witness.pop(conn.cookie)
        assert {name: getattr(conn, name) for name in figures} == figures
        assert conn.rtt_us > 0
        assert (conn.lport, conn.rport) == (pair.lport, pair.rport)
        assert address_text(conn.family, conn.laddr) == pair.laddr
        assert address_text(conn.family, conn.raddr) == pair.raddr
        assert (conn.pid, conn.uid, conn.phase) == (os.getpid(), os.getuid(), Phase.CLOSED)
        times = (
            conn.connect_ns, conn.established_ns, conn.first_tx_ns, conn.first_resp_ns, conn.end_ns,
        )  # fmt: skip
        assert began < times[0] and times[-1] < ended and list(times) == sorted(times)
        assert conn.turn_count == 1
        assert conn.turn_sum_ns == conn.turn_max_ns == conn.first_resp_ns - conn.first_tx_ns
        assert conn.tx_head[: conn.tx_head_len] == b"q" * 32
        assert conn.rx_head[: conn.rx_head_len] == b"a" * 32
        assert conn.flags == ConnFlag.PACKETS
    assert not witness


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_fin_is_no_byte_of_payload(watched, net, first) -> None:
    pair = Pair(net)
    pair.send(b"q" * 11)
    pair.answer(b"a" * 13)
    ends = [pair.client, pair.server] if first == "client" else [pair.server, pair.client]
    ends[0].shutdown(socket.SHUT_WR)
    assert ends[1].recv(1) == b""
    ends[1].close()
    ends[0].close()
    (conn,) = watched.wait_for(1)
    assert (conn.bytes_sent, conn.bytes_received) == (11, 13)
    assert bool(conn.flags & ConnFlag.LOCAL_CLOSE) == (first == "client")
    assert conn.flags & ConnFlag.RX_FIN and conn.sk_err == 0


def test_ipv6(watched, net) -> None:
    pair = Pair(net, socket.AF_INET6, "::1")
    pair.send(b"q" * 5)
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert (conn.family, conn.rport, conn.bytes_sent) == (socket.AF_INET6, pair.rport, 5)
    assert address_text(conn.family, conn.laddr) == address_text(conn.family, conn.raddr) == "::1"
    assert (conn.cookie, conn.tx_head_len) == (pair.cookie, 5)


def test_ipv4_through_an_ipv6_socket(watched, net) -> None:
    pair = Pair(net, socket.AF_INET6, "::ffff:127.0.0.1")
    pair.send(b"q" * 5)
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert (conn.family, conn.rport, conn.lport) == (socket.AF_INET6, pair.rport, pair.lport)
    assert (conn.cookie, conn.tx_head_len, conn.bytes_sent) == (pair.cookie, 5, 5)
    for address in (conn.laddr, conn.raddr):
        assert address_text(conn.family, address) == "127.0.0.1"


# ---- connections that fail -----------------------------------------------------------------------


def test_a_refused_connection(watched, net) -> None:
    client = net.call(socket.socket)
    with pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", 9))
    (conn,) = watched.wait_for(1)
    assert (conn.phase, conn.sk_err, conn.rport) == (Phase.FAILED, 111, 9)
    assert conn.cookie == cookie(client) and conn.lport > 0 and conn.established_ns == 0
    client.close()
    assert len(watched.conns) == 1


def test_a_syn_without_an_answer_is_counted_as_often_as_the_socket_sent_it(watched, net) -> None:
    listener = net.call(socket.socket)
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fill = [net.call(socket.socket) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    silent = fill[-1]
    watched.until(lambda: tcp_info(silent)["retransmits"])
    figures = tcp_info(silent)
    number = cookie(silent)
    for sock in (silent, *fill[:-1], listener):
        sock.close()
    conn = next(c for c in watched.wait_for(3) if c.cookie == number)
    assert (conn.phase, conn.retransmits) == (Phase.FAILED, figures["retransmits"])
    assert conn.rtt_us == 0


def test_a_connect_without_a_route_is_told_when_its_socket_goes(watched, net) -> None:
    client = net.call(socket.socket)
    with pytest.raises(OSError, match="unreachable"):
        client.connect(NO_ROUTE)
    (noted,) = watched.open_now()
    assert (noted.phase, noted.cookie) == (Phase.CALLING, cookie(client))
    assert watched.conns == []
    client.close()
    (conn,) = watched.wait_for(1)
    assert conn.phase == Phase.FAILED and conn.flags & ConnFlag.SYNC_FAIL
    assert (address_text(conn.family, conn.raddr), conn.rport) == NO_ROUTE
    assert (conn.pid, conn.established_ns) == (os.getpid(), 0)


def test_a_socket_that_tries_again_tells_of_both(watched, net) -> None:
    server = net.call(socket.socket)
    server.bind(("127.0.0.1", 0))
    server.listen()
    client = net.call(socket.socket)
    with pytest.raises(OSError, match="unreachable"):
        client.connect(NO_ROUTE)
    client.connect(server.getsockname())
    client.close()
    server.close()
    failed, good = watched.wait_for(2)
    assert failed.flags & ConnFlag.SYNC_FAIL and failed.established_ns == 0
    assert good.established_ns > 0 and not good.flags & ConnFlag.SYNC_FAIL
    assert good.cookie == failed.cookie


# ---- what is left behind, and what does not fit --------------------------------------------------


def test_a_process_killed_inside_getaddrinfo_leaves_nothing(watched, net) -> None:
    resolver = net.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    resolver.bind(("127.0.0.1", 53))  # takes questions and stays silent
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libc.so.6" in line)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    offset = elf.inspect(fd, ["getaddrinfo"]).symbols["getaddrinfo"]
    program = watched.kernel.loaded.programs["getaddrinfo_enter"]
    probe = uprobe.attach(program, f"/proc/self/fd/{fd}", offset)
    calls = bpf_syscall.MapBatch(
        watched.kernel.loaded.maps["lookup_by_thread"], 8, LOOKUP_CALL_BYTES
    )

    def inside() -> bool:
        return any(bytes(value[48:]).startswith(b"killed.example\0") for value in calls.read())

    try:
        child = net.popen(
            ["python3", "-c", "import socket; socket.getaddrinfo('killed.example', 443)"]
        )
        watched.until(inside)
        child.kill()
        child.communicate()
        watched.until(lambda: not inside())
    finally:
        os.close(probe)
        os.close(fd)
        resolver.close()


def test_what_does_not_fit_the_map_is_counted(small, net) -> None:
    watched = small(MAX_CONNS=8)
    pairs = [Pair(net) for _ in range(MANY)]
    assert 0 < len(watched.open_now()) <= 8
    for pair in pairs:
        pair.drop()
    watched.until(lambda: not watched.open_now())
    told = len(watched.conns)
    assert 0 < told <= 8
    # each once, though its connect() and its SYN were both refused
    assert MANY - told <= watched.counted("conn_full") < 2 * (MANY - told)
    pair = Pair(net)
    pair.drop()
    assert len(watched.wait_for(told + 1)) == told + 1  # there is room again


def test_a_full_ring_loses_what_it_counts_and_no_more(small, net) -> None:
    watched = small(RING_PAGES=1)
    pairs = [Pair(net) for _ in range(101)]
    for pair in pairs:
        pair.drop()
    watched.until(lambda: not watched.open_now())
    told = [e for e in watched.read() if isinstance(e, ConnEvent)]
    elsewhere = len(list(watched.kernel.connections()))
    counted = watched.kernel.counters()
    assert counted["lost_conn"] > 0
    assert counted["conns"] == len(told) + counted["lost_conn"] + elsewhere
    before = len(watched.conns)
    Pair(net).drop()
    watched.wait_for(before + 1)


# ---- TLS in pieces -------------------------------------------------------------------------------

FULL = Capture("tls13_full")


def record(kind: int, size: int) -> bytes:
    return struct.pack(">BHH", kind, 0x0303, size) + bytes(size)


def test_a_client_hello_in_many_packets_is_put_together(watched, net) -> None:
    pair = Pair(net)
    pair.send(FULL.client[:9])
    for byte in FULL.client[9:]:
        pair.send(bytes([byte]))
    pair.answer(FULL.server[:20])
    pair.answer(FULL.server[20:])
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert conn.flags & ConnFlag.TLS and not conn.flags & (ConnFlag.TX_GAP | ConnFlag.RX_GAP)
    whole = Hellos()
    for data, received in ((FULL.client, False), (FULL.server, True)):
        whole.add(HelloEvent(0, 0, 0, 0, received, 1, data))
    hellos = watched.hellos(conn)
    assert hellos.client is not None and not hellos.client.truncated
    assert hellos.client == whole.client
    assert hellos.server is not None and hellos.server == whole.server
    assert [(r.type, r.len) for r in conn.records()] == [
        (22, len(FULL.client) - 5),
        (22, len(FULL.server) - 5),
    ]


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_record_headers_split_over_packets_are_read(watched, net, cut) -> None:
    pair = Pair(net)
    pair.send(FULL.client)
    pair.answer(FULL.server + record(23, 99)[:cut])
    pair.answer(record(23, 99)[cut:])
    pair.send(record(20, 1) + record(23, 53)[:cut])
    pair.send(record(23, 53)[cut:])
    for byte in record(23, 7):
        pair.answer(bytes([byte]))
    pair.send(record(23, 3) * 2)
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert not conn.flags & (ConnFlag.TX_GAP | ConnFlag.RX_GAP)
    records = conn.records()
    assert [(r.type, r.len, r.flags & 1) for r in records] == [
        (22, len(FULL.client) - 5, 0), (22, len(FULL.server) - 5, 1), (23, 99, 1),
        (20, 1, 0), (23, 53, 0), (23, 7, 1), (23, 3, 0), (23, 3, 0),
    ]  # fmt: skip
    assert [r.at_us for r in records] == sorted(r.at_us for r in records)
    assert (conn.end_ns - conn.connect_ns) // 1000 >= records[-1].at_us > 0


def test_the_log_of_records_ends_and_turns_are_counted_after_it(watched, net) -> None:
    pair = Pair(net)
    pair.send(FULL.client)
    pair.answer(FULL.server)
    for _ in range(20):
        pair.send(record(23, 20))
        pair.answer(record(23, 30))
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert conn.log_len == len(conn.records()) == 32
    assert conn.turn_count == 5  # 2 + 2 * 15 records fill it
    assert 0 < conn.turn_max_ns <= conn.turn_sum_ns


def test_alerts_in_the_clear_are_told_with_their_number(watched, net) -> None:
    pair = Pair(net)
    pair.send(FULL.client)
    pair.answer(b"\x15\x03\x03\0\x02\x02\x28")
    pair.send(b"\x15\x03\x03\0\x02\x01\0")
    pair.drop()
    (conn,) = watched.wait_for(1)
    assert (conn.alert_rx, conn.alert_tx) == (40 + 1, 0 + 1)
