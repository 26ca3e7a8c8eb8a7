"""UDP and QUIC: who spoke to whom, by which name, and how long the first answer took."""

import contextlib
import socket
import sys
import threading
import time

import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.programs import SCRIPTS

pytestmark = pytest.mark.client("ip")

ANSWER_S = 0.080
DNS_S = 0.050
OWN_WORK_US = 30_000  # of a handshake in Python
CONNECTED = """
import socket, sys
info = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
sock = socket.socket(*info[:2])
sock.connect(info[4])
sock.settimeout(float(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    sock.send(b"question")
    try:
        sock.recv(99)
    except TimeoutError:
        pass
"""
UNCONNECTED = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.sendto(b"question", (sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(scope="module", params=[world.FAR4, world.FAR6], ids=["ipv4", "ipv6"])
def echo(request, lab):
    """An address whose UDP port answers after a while."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET

    def open_socket():
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((request.param, 0))
        return sock

    sock = lab.there.call(open_socket)

    def serve():
        while True:
            try:
                data, peer = sock.recvfrom(99)
                if not data:
                    return
            except OSError:
                return
            time.sleep(ANSWER_S)
            sock.sendto(b"answer", peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield request.param, sock.getsockname()[1]
    with contextlib.suppress(OSError):  # not connected; it wakes the thread all the same
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    thread.join(timeout=2)


def test_a_connected_socket(lab, watch, echo):
    address, port = echo
    host = lab.name("udp", address, delay_s=DNS_S)
    argv = [sys.executable, "-c", CONNECTED, host, str(port), "5", "3"]
    record = watch.run(argv).record
    assert (record["transport"], record["state"], record["error"]) == ("udp", "closed", None)
    assert (record["host"], record["dns"]) == (host, [address])
    assert (record["peer"], record["raddr"], record["rport"]) == (address, address, port)
    assert record["laddr"] == ("fd66:3::1" if ":" in address else "10.66.3.1")
    assert record["dns_us"] == Within(lab.resolver.waited_us(host))
    assert record["sockconn_us"] is None and record["tls"] is None
    wait_us = ANSWER_S * 1e6 + world.RTT_US
    assert record["txn_resp_us"] == Between(wait_us, wait_us + world.LINK_LATE_US)
    assert record["turns"]["count"] == 3
    assert record["turns"]["sum_us"] == Between(3 * wait_us, 3 * (wait_us + world.LINK_LATE_US))
    assert record["tcp"] == {
        "rtt_us": None,
        "rttvar_us": None,
        "retransmits": None,
        "bytes_sent": 3 * len(b"question"),
        "bytes_received": 3 * len(b"answer"),
    }


def test_nobody_answers(lab, watch):
    argv = [sys.executable, "-c", CONNECTED, world.SILENT4, "999", "0.2", "1"]
    record = watch.run(argv).record
    assert (record["transport"], record["peer"]) == ("udp", None)
    assert (record["raddr"], record["txn_resp_us"]) == (world.SILENT4, None)
    assert record["tcp"]["bytes_received"] == 0


@pytest.mark.parametrize("address", [world.NEAR4, world.FAR4, world.NEAR6, world.FAR6])
def test_nobody_listens(lab, watch, address):
    # ICMP says so
    script = (
        "import socket, sys\n"
        "found = socket.getaddrinfo(sys.argv[1], 999, type=socket.SOCK_DGRAM)[0]\n"
        "sock = socket.socket(*found[:3])\n"
        "sock.settimeout(5)\n"
        "sock.connect(found[4])\n"
        "sock.send(b'question')\n"
        "try:\n    sock.recv(100)\nexcept ConnectionRefusedError:\n    print('refused')\n"
    )
    seen = watch.run([sys.executable, "-c", script, address])
    assert seen.done.stdout == "refused\n"
    record = seen.record
    assert (record["transport"], record["state"]) == ("udp", "failed")
    assert (record["error"], record["peer"]) == ("ECONNREFUSED", None)


def test_what_is_no_connection(lab, watch, echo, daemon):
    # neither getaddrinfo(), which connects sockets to sort addresses, nor one message to somebody
    address, port = echo
    host = lab.name("sorted", world.FAR4, world.FAR6)
    lookup = f"import socket; socket.getaddrinfo('{host}', 80)"
    before = len(daemon.records())
    for argv in (
        [sys.executable, "-c", lookup],
        [sys.executable, "-c", UNCONNECTED, address, str(port)],
    ):
        process = lab.here.popen(argv)
        process.communicate(timeout=10)
        assert process.returncode == 0
        watch.settle()
        mine = [r for r in daemon.records()[before:] if r["pid"] == process.pid]
        assert mine == []


@pytest.fixture(scope="module")
def quic(lab):
    """Ports of QUIC servers: one with the trusted certificate, one without, one that asks every
    client to come again with a token."""
    ports, processes = {}, []
    for port, (name, identity) in enumerate(
        {"trusted": lab.trusted, "untrusted": lab.untrusted, "retry": lab.trusted}.items(),
        start=4433,
    ):
        argv = [sys.executable, str(SCRIPTS / "quic_server.py"), world.FAR4, str(port)]
        argv += [str(identity.cert), str(identity.key), *(["retry"] if name == "retry" else [])]
        process = lab.there.popen(argv)
        assert process.stdout.readline().strip() == "up"
        processes.append(process)
        ports[name] = port
    yield ports
    for process in processes:
        process.kill()
        process.communicate()


def get(lab, host, port):
    return [sys.executable, str(SCRIPTS / "quic_get.py"), host, str(port), str(lab.ca_file)]


def test_quic(lab, watch, quic):
    host = lab.name("quic", world.FAR4, delay_s=DNS_S)
    seen = watch.run(get(lab, host, quic["trusted"]))
    record = seen.record
    assert (record["transport"], record["state"], record["error"]) == ("quic", "closed", None)
    assert (record["host"], record["peer"]) == (host, world.FAR4)
    tls = record["tls"]
    assert (tls["source"], tls["version"], tls["result"]) == ("wire", "TLSv1.3", "ok")
    assert (tls["sni"], tls["alpn"]) == (host, ["lab"])
    assert tls["cipher"].startswith("TLS_")
    own_us = int(seen.done.stdout)
    # the client's note is made before its last packet leaves
    assert record["tls_us"] == Between(own_us * 0.95 - 500, own_us * 1.05 + 5_000)
    assert record["dns_us"] == Within(lab.resolver.waited_us(host))
    assert record["tcp"]["bytes_sent"] > 1200


def test_quic_with_a_retry(lab, watch, quic):
    # the client's second Initial has keys of its own, and the handshake a round trip more
    host = lab.name("quic", world.FAR4, delay_s=DNS_S)
    seen = watch.run(get(lab, host, quic["retry"]))
    record = seen.record
    assert (record["transport"], record["state"]) == ("quic", "closed")
    assert (record["tls"]["result"], record["tls"]["sni"]) == ("ok", host)
    assert record["tls"]["cipher"].startswith("TLS_")
    own_us = int(seen.done.stdout)
    assert own_us > 2 * world.RTT_US
    assert record["tls_us"] == Between(own_us * 0.95 - 500, own_us * 1.05 + 5_000)


def test_quic_with_curl(lab, watch, quic):
    # curl_cffi has curl with ngtcp2 and BoringSSL, whose ClientHello takes two datagrams
    host = lab.name("quic", world.FAR4, delay_s=DNS_S)
    code = (
        "import sys; from curl_cffi import CurlHttpVersion, requests; requests.get(sys.argv[1], "
        "verify=sys.argv[2], http_version=CurlHttpVersion.V3ONLY, timeout=2)"
    )
    argv = [sys.executable, "-c", code, f"https://{host}:{quic['trusted']}/", str(lab.ca_file)]
    record = watch.run(argv).record  # the server speaks no HTTP/3: only the handshake is well
    assert (record["transport"], record["host"]) == ("quic", host)
    assert (record["tls"]["result"], record["tls"]["sni"]) == ("ok", host)
    assert record["tls"]["alpn"] == ["h3"]
    assert record["tls_us"] == Between(world.RTT_US, world.RTT_US + OWN_WORK_US)


def test_quic_with_a_certificate_that_nobody_trusts(lab, watch, quic):
    host = lab.name("quic", world.FAR4)
    record = watch.run(get(lab, host, quic["untrusted"])).record
    assert (record["state"], record["error"]) == ("failed", "EPROTO")
    assert record["tls"]["result"] in ("rejected", "alert")
    assert record["tls_us"] is None and record["tls"]["sni"] == host


def test_quic_that_nobody_answers(lab, watch):
    record = watch.run(get(lab, world.SILENT4, 4433)).record
    assert (record["transport"], record["state"]) == ("quic", "failed")
    assert (record["error"], record["peer"]) == ("ETIMEDOUT", None)
    assert record["tls"]["result"] == "timeout"


def test_a_server_of_quic_is_no_client(lab, watch, quic, daemon):
    host = lab.name("quic", world.FAR4)
    before = len(daemon.records())
    watch.run(get(lab, host, quic["trusted"]))
    there = [r for r in daemon.records()[before:] if r["netns"] == lab.there.inode]
    assert there == []


def test_connections_over_one_socket_are_told_apart(lab, watch, quic):
    names = [f"shared{number}.lab.test" for number in range(3)]
    ports = quic["trusted"], quic["retry"]
    argv = [sys.executable, str(SCRIPTS / "quic_shared.py"), world.FAR4, *map(str, ports)]
    seen = watch.run([*argv, str(lab.ca_file), *names], count=3)
    assert seen.done.code == 0, seen.done.stderr
    records = sorted(seen.records, key=lambda record: record["start"])
    assert {r["tls"]["sni"]: r["rport"] for r in records} == {
        names[0]: ports[0],
        names[1]: ports[1],
        names[2]: ports[0],
    }
    assert records[2]["tls"]["sni"] == names[2]
    assert {(r["transport"], r["state"], r["tls"]["result"]) for r in records} == {
        ("quic", "closed", "ok")
    }
    assert len({record["id"] for record in records}) == 3
    assert len({record["lport"] for record in records}) == 1
    for record in records:
        assert record["tls_us"] == Between(world.RTT_US, 2 * world.RTT_US + 2 * OWN_WORK_US)
        assert 1200 < record["tcp"]["bytes_sent"] < 20_000


@pytest.mark.parametrize("echo", [world.FAR6], indirect=True)
def test_behind_extension_headers(watch, echo):
    address, port = echo
    # six bytes of padding as destination options, in each datagram that leaves
    options = (
        "sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))"
    )
    script = CONNECTED.replace("sock.connect", options + "\nsock.connect")
    record = watch.run([sys.executable, "-c", script, address, str(port), "5", "2"]).record
    assert (record["transport"], record["peer"]) == ("udp", address)
    assert record["turns"]["count"] == 2
