"""conmond --inbound: accepted connections, as their server sees them."""

import os
import socket

import pytest

from tests.clients.expectations import Between, Within
from tests.clients.watch import Watch
from tests.lab import world
from tests.lab.daemon import Daemon
from tests.lab.programs import Curl, Wget
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip", "wget")

HELLO_S, RESPONSE_S = 0.060, 0.090


@pytest.fixture(scope="module")
def both(lab):
    daemon = Daemon("--json", "--inbound")
    yield Watch(lab, daemon)
    daemon.stop()


def server_side(both, port):
    found = [r for r in both.daemon.records() if r["role"] == "server" and r["lport"] == port]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("address", [world.FAR4, world.FAR6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
def test_both_ends_of_one_connection(lab, both, tls, address):
    context = lab.tls(tls) if tls else None
    site = lab.serve(
        Behaviour(tls=context, hello_delay_s=HELLO_S, response_delay_s=RESPONSE_S), address
    )
    host = lab.name(f"inbound{len(address)}", address)
    client = Curl(lab)
    seen = both.run(
        client.argv(host, site.port, tls), wanted=lambda r: site.port in (r["lport"], r["rport"])
    )
    (ours,) = [r for r in seen.records if r["role"] == "client"]
    theirs = server_side(both, site.port)
    assert (theirs["laddr"], theirs["lport"]) == (ours["raddr"], ours["rport"])
    assert (theirs["raddr"], theirs["rport"]) == (ours["laddr"], ours["lport"])
    assert theirs["peer"] == ours["laddr"]
    assert (theirs["state"], theirs["error"]) == ("closed", None)
    # the server is this very process; the kernel's name for it is its thread's owner's
    assert (theirs["pid"], theirs["uid"]) == (os.getpid(), 0)
    assert theirs["netns"] == lab.there.inode
    assert (theirs["dns"], theirs["sockconn_us"]) == (None, None)
    assert theirs["attempts"] in (None, [])
    # what the server itself took, without the way
    assert theirs["txn_resp_us"] == Within(RESPONSE_S * 1e6)
    assert theirs["turns"]["count"] == 1
    if tls:
        assert (theirs["host"], theirs["host_source"]) == (host, "sni")
        for key in ("version", "cipher", "sni", "result", "resumed"):
            assert theirs["tls"][key] == ours["tls"][key]
        # the hello comes half a round trip later and the end is seen half a one later
        assert theirs["tls_us"] == Between(HELLO_S * 1e6, ours["tls_us"] + world.RTT_US)
    else:
        assert (theirs["host"], theirs["host_source"]) == (host, "http")  # that it was asked for
        assert theirs["prot_specific"] == ours["prot_specific"]
    assert theirs["tcp"]["bytes_sent"] == Between(
        ours["tcp"]["bytes_received"], ours["tcp"]["bytes_received"] + 64
    )
    assert theirs["tcp"]["bytes_received"] == ours["tcp"]["bytes_sent"]


def test_a_server_that_speaks_first(lab, both):
    site = lab.serve(Behaviour(greeting=b"220 lab\r\n", greeting_delay_s=0.070), world.NEAR4)

    def talk():
        with socket.create_connection((world.NEAR4, site.port)) as sock:
            sock.recv(99)

    lab.here.call(talk)
    both.settle()
    record = server_side(both, site.port)
    assert record["greeting_us"] == Within(70_000)
    assert record["txn_resp_us"] is None


def test_nobody_says_anything(lab, both):
    site = lab.serve(Behaviour(), world.NEAR4)
    lab.here.call(lambda: socket.create_connection((world.NEAR4, site.port)).close())
    both.settle()
    record = server_side(both, site.port)
    assert record["pid"] == os.getpid()  # it closed
    assert (record["txn_resp_us"], record["greeting_us"]) == (None, None)


def test_without_the_flag_there_are_none(lab, watch):
    site = lab.serve(Behaviour(), world.NEAR4)
    watch.program(Wget(lab), world.NEAR4, site.port)
    assert watch.daemon.records(lambda r: r["role"] != "client") == []
