"""Connections made otherwise than by connect() on a plain TCP socket; HTTP/2 in the clear."""

import json
import subprocess
import sys
import time

import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.programs import SCRIPTS, Curl
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "gcc", "h2load", "ip", "nghttp", "nghttpd")

RESPONSE_S = 0.060
CONNECTED_US = Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US)
TALK = """
sock.sendall(b"GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n")
while sock.recv(999):
    pass
"""
MPTCP = "import socket, sys; sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
DEVICE = "import socket, sys; sock = socket.socket(); sock.setsockopt(1, 25, b'wan0\\0')\n"
CONNECT = "sock.connect((sys.argv[1], int(sys.argv[2])))\n"
FAST_OPEN = """
import socket, sys
for _ in range(2):  # the first asks for a cookie, the second sends its request with the SYN
    with socket.socket() as sock:
        request = b"GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n"
        sock.sendto(request, 0x20000000, (sys.argv[1], int(sys.argv[2])))
        while sock.recv(999):
            pass
"""


@pytest.fixture(scope="module")
def site(lab):
    lab.there.sysctl("net.ipv4.tcp_fastopen", 0x403)  # every listener takes part
    return lab.serve(Behaviour(response_delay_s=RESPONSE_S), world.FAR4)


@pytest.fixture(scope="module")
def uring(tmp_path_factory):
    path = tmp_path_factory.mktemp("uring") / "uring_get"
    subprocess.run(["gcc", "-o", path, SCRIPTS / "uring_get.c", "-luring"], check=True)
    return str(path)


def assert_served(record, site):
    assert (record["state"], record["error"], record["peer"]) == ("closed", None, world.FAR4)
    assert (record["rport"], record["transport"]) == (site.port, "tcp")
    assert record["sockconn_us"] == CONNECTED_US
    assert record["txn_resp_us"] == Within(RESPONSE_S * 1e6 + world.RTT_US)
    assert record["prot_specific"]["resp"] == 200


@pytest.mark.parametrize("how", ["inline", "async"])
def test_io_uring(watch, site, uring, how):
    seen = watch.run([uring, world.FAR4, str(site.port), how])
    assert seen.done.code == 0
    assert_served(seen.record, site)
    assert seen.record["comm"] == "uring_get"
    assert (seen.record["tid"] == seen.done.pid) == (how == "inline")


@pytest.mark.parametrize("head", [MPTCP, DEVICE], ids=["mptcp", "bindtodevice"])
def test_other_sockets(watch, site, head):
    code = head + CONNECT + TALK
    assert_served(watch.run([sys.executable, "-c", code, world.FAR4, str(site.port)]).record, site)


def test_fast_open(watch, site):
    argv = [sys.executable, "-c", FAST_OPEN, world.FAR4, str(site.port)]
    seen = watch.run(argv, count=2)
    first, second = sorted(seen.records, key=lambda record: record["start"])
    assert_served(first, site)
    assert second["sockconn_us"] == CONNECTED_US
    # the request left with the SYN, so its answer holds the way there and back and nothing more
    assert second["txn_resp_us"] == Within(RESPONSE_S * 1e6 + world.RTT_US)
    assert (second["state"], second["prot_specific"]["resp"]) == ("closed", 200)
    assert second["tcp"]["bytes_sent"] == first["tcp"]["bytes_sent"]


def test_through_a_socks_proxy(lab, watch, site):
    # socat stands for the proxy's way on; to curl the peer is the proxy, and so says the record
    proxy = lab.there.popen([sys.executable, str(SCRIPTS / "socks.py"), world.FAR4, "1080"])
    try:
        assert proxy.stdout.readline().strip() == "up"
        name = lab.name("proxy", world.FAR4)
        argv = Curl(lab).to_urls(
            f"http://{world.FAR4}:{site.port}/", options=["--proxy", f"socks5h://{name}:1080"]
        )
        seen = watch.run(argv)
        assert seen.done.code == 0, seen.done.stderr
        record = seen.record
        assert (record["host"], record["peer"], record["rport"]) == (name, world.FAR4, 1080)
        # the greeting, the request to connect, and HTTP: three questions, three answers
        assert record["turns"]["count"] == 3
        assert record["turns"]["max_us"] == Within(RESPONSE_S * 1e6 + world.RTT_US)
    finally:
        proxy.kill()
        proxy.communicate()


@pytest.fixture(scope="module")
def http2(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("http2")
    (folder / "index.html").write_text("here")
    server = lab.there.popen(["nghttpd", "-d", str(folder), "--no-tls", "-a", world.FAR4, "8702"])
    connect = f"import socket; socket.create_connection(('{world.FAR4}', 8702)).close()"
    for _ in range(100):
        probe = lab.there.popen([sys.executable, "-c", connect])
        probe.communicate()
        if probe.returncode == 0:
            break
        time.sleep(0.05)
    yield 8702
    server.kill()
    server.communicate()


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/none", 404)])
def test_http2_in_the_clear(lab, watch, http2, path, status):
    name = lab.name("http2", world.FAR4)
    argv = Curl(lab).to_urls(f"http://{name}:{http2}{path}", options=["--http2-prior-knowledge"])
    seen = watch.run(argv)
    said = json.loads(seen.done.stdout.splitlines()[0])
    record = seen.record
    assert record["prot_specific"] == {
        "protocol": "http",
        "resp": status,
        "method": "GET",
        "version": "2",
    }
    # SETTINGS are not the answer
    assert record["txn_resp_us"] == Within(
        (said["time_starttransfer"] - said["time_pretransfer"]) * 1e6
    )
    assert record["turns"] == {
        "count": 1, "sum_us": record["txn_resp_us"], "max_us": record["txn_resp_us"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "argv", [["nghttp", "-n"], ["h2load", "-n7", "-c1", "-m3"]], ids=["nghttp", "h2load"]
)
def test_other_clients_of_http2(lab, watch, http2, argv):
    name = lab.name("http2", world.FAR4)
    record = watch.run([*argv, f"http://{name}:{http2}/"]).record
    assert record["host"] == name
    assert record["prot_specific"]["resp"] == 200
    assert record["txn_resp_us"] == CONNECTED_US
    # each of h2load's seven streams, three at a time
    assert record["turns"]["count"] == (7 if argv[0] == "h2load" else 1)
    assert record["turns"]["max_us"] == Between(world.RTT_US, 3 * world.RTT_US)
